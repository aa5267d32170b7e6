"""The command at its default size: minutes, and what it must reach."""

import json
import resource

import pytest

from tests import commands

# Guessing gives next to 0. Seconds of one core: six minutes on two.
LEAST, SECONDS = 30.0, 720


@pytest.mark.slow
def test_a_mini_run_finds_products_within_its_time(tmp_path, environment):
    words = ["experiment=coco-centernet", "opt=adamp", "pictures=false", "train.progress=false", "train.device=cpu"]
    words += [f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = commands.finish(commands.start(words, environment), seconds=3000)
    assert done.code == 0, done.err
    spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    (folder,) = (tmp_path / "runs" / "coco-centernet").iterdir()
    scores = json.loads((folder / "run.json").read_text())["scores"]
    assert scores["val/ap50"] > LEAST, scores
    assert spent < SECONDS
