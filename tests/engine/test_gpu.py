"""What only a CUDA device can show: `make test-gpu`. Skipped without one, and proved nowhere else."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.engine.distributed import World
from tests import commands
from tests.cuda import without_synchronisation
from tests.engine import toys

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def fitted(folder: Path, task: toys.Toy, **values: Any) -> Any:
    made = toys.trainer(task, folder, world=World(0, 1, torch.device("cuda", 0)), device="cuda", **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return made


@pytest.mark.parametrize(
    "values", [{}, {"precision": "bf16"}, {"precision": "fp16"}, {"ema_decay": 0.9}, {"compile": True}], ids=str
)
def test_stopping_and_resuming_on_the_device_changes_no_bit(tmp_path: Path, values: dict[str, Any]) -> None:
    whole = fitted(tmp_path / "whole", toys.Toy(), **values)
    task = toys.Toy()
    made = toys.trainer(task, tmp_path / "cut", world=World(0, 1, torch.device("cuda", 0)), device="cuda", **values)
    seen = 0

    def stop() -> None:
        nonlocal seen
        seen += 1
        if seen == 7:
            made.signals.stopping = True

    task.before_step = stop
    with pytest.raises(Exception, match="stopped"):
        made.fit()
    toys.close(made)
    resumed = fitted(tmp_path / "cut", toys.Toy(), **values)
    for name, value in toys.weights(whole).items():
        assert torch.equal(toys.weights(resumed)[name], value), name
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_step_reads_nothing_back_from_the_device_between_two_lines(tmp_path: Path) -> None:
    task = toys.Toy()
    seen = 0
    with contextlib.ExitStack() as watched:

        def watch() -> None:
            nonlocal seen
            seen += 1
            # Steps 3 to 5 lie between two lines of metrics: a synchronisation there stalls the device.
            if seen == 4:
                watched.enter_context(without_synchronisation())
            if seen == 6:
                watched.close()

        task.before_step = watch
        fitted(tmp_path, task, log_every=100, probe_every=1, oscillation_window=0)


def test_a_small_real_run_trains_on_the_device(tmp_path: Path) -> None:
    pytest.importorskip("hydra")
    words = [word for word in commands.TINY if not word.startswith("train.device")]
    done = commands.call(
        *words, "train.device=cuda", "train.precision=bf16", "train.channels_last=true", "train.compile=true",
        f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "cuda" in done.out


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_train_together_through_nccl(tmp_path: Path, environment: dict[str, str]) -> None:
    pytest.importorskip("hydra")
    words = [word for word in commands.TINY if not word.startswith("train.device")]
    more = ["train.device=cuda", "gpus=2", f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports"]
    done = commands.run([*words, *more], environment)
    assert done.code == 0, done.err
    assert "2 processes" in done.out
