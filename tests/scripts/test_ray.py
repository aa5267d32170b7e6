"""`launcher=ray` on a real Ray, started on this machine for the test."""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
from pathlib import Path

import pytest

from evidence.runs import progress
from launch.on_ray import cell_environment, run_cell
from tests import commands

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install '.[ray]'"
)
PLACE = ["hydra.mode=MULTIRUN", "launcher=ray", "hydra.launcher.num_gpus=0", "hydra.launcher.num_cpus=0.5"]


@needs_ray
@pytest.mark.slow
def test_runs_on_ray_leave_the_bits_of_runs_here_and_a_failed_one_stops_no_other(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    grid = ["opt=sgd,adamp", "data.train_examples=64"]
    words = commands.options(tmp_path / "ray", *grid[:1], "data.train_examples=0,64", *PLACE)
    done = commands.finish(commands.start(words, environment), seconds=900)
    assert done.code == 2, done.err
    assert done.out.count("failed with code 2") == 2
    assert done.out.count("finished") == 2
    found = list(progress.iter_progress(tmp_path / "ray" / "runs"))
    assert sorted(each.status for each in found) == ["failed", "failed", "finished", "finished"]
    assert all("train_examples=0" in each.reason for each in found if each.status == "failed")

    here = commands.call("hydra.mode=MULTIRUN", *commands.options(tmp_path / "here", *grid), env=environment)
    assert here.code == 0, here.err
    for folder in (tmp_path / "here" / "runs" / "imagenet-resnet18").iterdir():
        other = tmp_path / "ray" / "runs" / "imagenet-resnet18" / folder.name
        assert (folder / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        a, b = (commands.weights(path / "checkpoints" / "last.pt") for path in (folder, other))
        assert all(a[key].equal(b[key]) for key in a)


@needs_ray
@pytest.mark.slow
def test_ctrl_c_lets_runs_on_ray_save(tmp_path: Path, environment: dict[str, str]) -> None:
    words = commands.options(tmp_path, "train.epochs=4000", "train.eval_epochs=4000", *PLACE)
    process = commands.start(words, environment)
    commands.wait_until(
        lambda: any(path.stat().st_size > 500 for path in tmp_path.glob("runs/*/*/metrics.jsonl")),
        process,
        seconds=400,
    )
    process.send_signal(signal.SIGINT)
    done = commands.finish(process)
    assert done.code == 130, done.err
    (found,) = progress.iter_progress(tmp_path / "runs")
    assert (found.status, found.reason) == ("interrupted", "stopped by SIGINT")
    assert found.retriable
    assert json.loads((found.folder / "launch.json").read_text())["launcher"] == "ray"


@pytest.mark.parametrize(("num_gpus", "seen"), [(0, ""), (0.5, "0,1"), (2, "0,1")])
def test_a_cell_without_gpus_sees_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_gpus: float, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # the node's, or Ray's for this worker
    log = tmp_path / "log"
    words = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    assert run_cell(words, str(log), str(tmp_path), cell_environment(str(log), num_gpus=num_gpus)) == 0
    assert log.read_text().strip() == seen
