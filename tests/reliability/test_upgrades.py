"""Runs of the first version go on with this one, and its results are read.

States of other optimizers: `tests/adamp/test_migration.py` (the published package, timm, pytorch_optimizer) and
`tests/adamp/test_adamp.py` (torch's AdamW).

The fixture `first/` was written by `python -m tests.reliability.test_upgrades FOLDER` with the version that its
run.json names. It is never written again: what it holds is what people have on their disks.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from evidence.runs import run as runs
from launch.trained import restore
from tasks.engine import checkpoint
from tasks.engine.errors import Stopped
from tasks.engine.run_record import RunRecord
from tests.engine import toys

FIRST = Path(__file__).parent / "first"
CONFIG: dict[str, Any] = {
    "experiment_name": "toys", "opt_name": "sgdp", "scale_name": "mini", "opt": {"lr": 0.1, "weight_decay": 1e-3},
    "train": {"seed": 0, "epochs": 3}, "tag": None,
}  # fmt: skip


def trainer(folder: Path, *, stop: int | None = None) -> toys.Trainer:
    record = RunRecord(folder, name=folder.name, config=CONFIG)
    toys.OPEN.append(record)
    task = toys.Toy()
    if stop is not None:
        task.before_step = toys.kill_at(stop)
    return toys.Trainer(
        task, toys.two_phases(), toys.options(ema_decay=0.9), (), folder, toys.CPU, name="toys/stopped", record=record
    )  # fmt: skip


def write(base: Path) -> None:
    """Write the fixture: a run stopped in its second phase, and the lines of one that was not."""
    whole = trainer(base / "whole" / "stopped")
    whole.fit()
    toys.close(whole)
    stopped = trainer(base / "toys" / "stopped", stop=7)
    try:
        stopped.fit()
    except Stopped as error:
        stopped.record.update(  # type: ignore[union-attr]
            status="interrupted", error=str(error), command="", data={"name": "toy"}, scores=stopped.state.scores,
            best=vars(stopped.state.best), monitor="val/top1",
        )  # fmt: skip
    toys.close(stopped)
    (base / "whole.jsonl").write_bytes((base / "whole" / "stopped" / "metrics.jsonl").read_bytes())
    shutil.rmtree(base / "whole")
    for rest in (*base.rglob(".lock"), *base.rglob("*.previous.pt"), *base.rglob("timing.jsonl")):
        rest.unlink()


@pytest.fixture
def first(tmp_path: Path) -> Path:
    shutil.copytree(FIRST, tmp_path / "first")
    return tmp_path / "first"


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_the_first_version_goes_on_to_the_end_it_would_have_had(first: Path) -> None:
    folder = first / "toys" / "stopped"
    made = trainer(folder)
    made.fit()
    toys.close(made)
    expected, found = lines(first / "whole.jsonl"), lines(folder / "metrics.jsonl")
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for one, other in zip(expected, found, strict=True):
        assert one.keys() <= other.keys()
        keys = [key for key in one if key.split("/")[0] not in ("cosine", "margin", "oscillation", "projected")]
        # Another machine adds up in another order; the kept digits are those of float32.
        assert [other[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-3, abs=1e-5)


def test_results_of_the_first_version_are_read(first: Path) -> None:
    run = runs.load_run(first / "toys" / "stopped")
    assert run is not None and run.text("status") == "interrupted"
    assert run.series("norm/mean")[0][0] == 0 and run.scores["val/top1"] > 0
    assert run.text("opt_name") == "sgdp"
    assert [each.name for each in runs.load_runs(first, "toys")] == ["stopped"]
    assert restore.weights(first / "toys" / "stopped", "last").keys() == {"model"}


def test_checkpoints_of_the_first_version_hold_what_this_one_asks_for(first: Path) -> None:
    state = checkpoint.load(first / "toys" / "stopped" / "checkpoints" / "last.pt", run="toys/stopped")
    assert state["format"] == 1 and state["step"] == 7 and state["at"]["phase"] == 1
    assert {"networks", "averages", "optimizers", "probes", "scaler", "processes", "metrics_offset"} <= state.keys()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
