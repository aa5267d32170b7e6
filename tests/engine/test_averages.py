"""Moving averages: the same buffers on every process, exact resume, integers copied, skipped updates left out."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.engine.distributed import World, process_group
from tasks.engine.errors import Stopped
from tasks.engine.evaluate import evaluate
from tasks.engine.train_state import moving_averages
from tests.engine import toys

CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "accumulation": {"accumulation": 2}, "loss scaling": {"precision": "fp16"},
}  # fmt: skip


def fit(folder: Path, world: World, *, stop_at: int | None = None, **values: Any) -> dict[str, torch.Tensor]:
    task = toys.Toy()
    if stop_at is not None and world.is_main:
        task.before_step = toys.kill_at(stop_at * values.get("accumulation", 1), signal.SIGTERM)
    made = toys.trainer(task, folder, world=world, ema_decay=0.8, **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return toys.weights(made)


def compare(folder: Path, world: World) -> None:
    """Train, and stop and resume, every case; each process compares all its weights and buffers."""
    for case, values in CASES.items():
        whole = fit(folder / case / "whole", world, **values)
        for step in (2, 8):  # inside the first epoch, and at an evaluation
            stopped = folder / case / f"stopped-{step}"
            with pytest.raises(Stopped):
                fit(stopped, world, stop_at=step, **values)
            resumed = fit(stopped, world, **values)
            assert all(torch.equal(whole[name], resumed[name]) for name in whole), (case, step)
            if world.is_main:
                lines = [(path / "metrics.jsonl").read_bytes() for path in (folder / case / "whole", stopped)]
                assert lines[0] == lines[1], (case, step)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("averages")
    if request.param == 1:
        compare(path, toys.CPU)
        return path
    words = [sys.executable, "-m", "tests.engine.test_averages", str(path)]
    code = f"import sys; from tasks.engine.processes import spawn; sys.exit(spawn({words!r}, 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_run_resumes_exactly_and_the_recorded_score_is_that_of_the_saved_average(folder: Path, case: str) -> None:
    run = folder / case / "whole"
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    task = toys.Toy()
    average = moving_averages(task.networks, 0.8)["model"]  # type: ignore[arg-type]
    average.load_state_dict(saved["averages"]["model"])
    precision = CASES[case].get("precision")
    scores = evaluate(
        task, task.eval_batches, {"model": average.module}, toys.CPU, seed=0, place=lambda batch: batch,
        autocast=lambda: torch.autocast("cpu", torch.float16, enabled=precision == "fp16"), stop=lambda: False,
    )  # fmt: skip
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert scores is not None
    assert {f"val_ema/{key.partition('/')[2]}": value for key, value in scores.items()} == {
        key: value for key, value in last.items() if key.startswith("val_ema/")
    }


def test_integer_buffers_are_copied_and_the_others_averaged() -> None:
    net = nn.BatchNorm1d(2)
    net.register_buffer("table", torch.tensor([11, 3]))
    average = moving_averages({"model": net}, 0.9999)["model"]
    for _ in range(20):
        net(torch.randn(8, 2) + 5)
        average.update_parameters(net)
    assert average.module.table.tolist() == [11, 3]
    assert int(average.module.num_batches_tracked) == 20  # type: ignore[arg-type]
    assert 0 < float(average.module.running_mean[0]) < float(net.running_mean[0])  # type: ignore[index]


def test_an_average_of_micro_batches_moves_once_a_step(tmp_path: Path) -> None:
    made = toys.trainer(toys.Toy(), tmp_path, ema_decay=0.8, accumulation=3, max_steps=4)
    made.fit()
    toys.close(made)
    assert int(made.state.averages["model"].n_averaged) == 4


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=2) as here:
        compare(Path(sys.argv[1]), here)
