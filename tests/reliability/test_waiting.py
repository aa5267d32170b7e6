"""Batches that do not come, and processes that fail alone: every wait has an end, its cause and a way out."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.base import InputError, Shard
from tasks.engine import checkpoint, dead_workers
from tasks.engine.dead_workers import read_batches
from tasks.engine.distributed import process_group
from tasks.engine.errors import RunFailed, Stopped, translate_errors
from tests.engine import toys

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
]


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_batch_that_does_not_come_ends_the_run_with_the_option(evaluating: bool, tmp_path: Path) -> None:
    made = toys.trainer(toys.Slow(evaluating=evaluating), tmp_path / "r", timeout_minutes=0.01, num_workers=1)
    with pytest.raises(RunFailed, match=r"no batch came within train\.timeout_minutes=0\.01; the same command goes on"):
        made.fit()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("evaluating", "num_workers", "step"), [(False, 1, 2), (False, 0, 0), (True, 1, 4)])
def test_a_signal_is_answered_while_a_batch_is_waited_for(
    evaluating: bool, num_workers: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_workers, "STOP_SECONDS", 0.2)
    task = toys.Slow(evaluating=evaluating, num_workers=num_workers)
    made = toys.trainer(task, tmp_path / "r", num_workers=num_workers, timeout_minutes=1)
    toys.kill_while_waiting(made, 4 if evaluating else 2)
    with pytest.raises(Stopped) as stopped:
        made.fit()
    toys.close(made)
    assert stopped.value.code == 143 and stopped.value.saved == (step > 0)
    assert not multiprocessing.active_children()
    whole, again = toys.trainer(toys.Toy(), tmp_path / "whole"), toys.trainer(toys.Toy(), tmp_path / "r")
    again.fit()
    whole.fit()
    assert again.record.entries["resumed_from"] == ([step] if step else [])  # type: ignore[union-attr]
    assert all(torch.equal(value, toys.weights(whole)[name]) for name, value in toys.weights(again).items())


def test_a_batch_that_comes_late_after_a_signal_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.engine.signals import listen

    def late(number: int) -> None:
        if number == 1:
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(0.3)

    with listen() as signals:
        read = list(read_batches(toys.Loaded([0, 1, 2], late), minutes=1, signals=signals))
    assert read == [0, 1, 2] and signals.stopping
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0 and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def full(*args: Any, **options: Any) -> None:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_a_full_shared_memory_is_said_where_torch_would_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the worker inherits it
    batches = toys.Loaded([{"x": [torch.ones(3)]}], lambda number: None)
    with pytest.raises(RunFailed, match=r"the shared memory is full; .*\nGive the container more"), translate_errors():
        list(read_batches(batches, minutes=1))


def test_a_process_ends_although_an_error_holds_its_workers() -> None:
    code = """
from tasks.engine import dead_workers
from tests.engine import toys
held = iter(toys.Loaded([0, 1], lambda number: None))
next(held)
raise SystemExit(3)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=90).returncode == 3


FAILURES = {
    "reading": "process 1 failed: picture 7 cannot be read now",
    "loading": "process 1: ",
    "limit": "process 1 failed: out of memory: ",
    "whole": "",
}


@pytest.mark.parametrize("how", FAILURES)
def test_an_error_of_one_process_ends_all_and_is_said(how: str, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    if how == "loading":
        made = toys.trainer(toys.Toy(), folder)
        made.fit()
        toys.close(made)
    words = [sys.executable, "-m", "tests.reliability.test_waiting", str(folder), how]
    code = f"import sys; from tasks.engine.processes import spawn; sys.exit(spawn({words!r}, 2, grace_seconds=60))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == {"whole": 0, "limit": 1}.get(how, 2), done.stderr
    assert FAILURES[how] in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("ended by itself") == 2  # nobody was killed


class Unread(toys.Toy):
    """Process 1 cannot read its second batch."""

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        def happens(number: int) -> None:
            if shard.index == 1 and number == 1:
                raise InputError("picture 7 cannot be read now")

        return toys.Loaded(super().train_batches(epoch, shard, start), happens, num_workers=0)


def end_memory(how: str) -> None:
    """Take a gigabyte where less is allowed to this process, or to a group of processes that the system then kills."""
    if how == "limit":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 2**26, now + 2**26))
    else:
        (Path(os.environ["GROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
    torch.ones(2**28)


def main(folder: Path, how: str) -> int:
    """What each of two processes does; "comes back" is started by torchrun, whose first start loses process 1."""
    from launch.train import guarded
    from tasks.engine.run import report_own_failure

    def run() -> int:
        with process_group("cpu", timeout_minutes=5) as world:
            if how == "loading" and world.rank == 1:
                checkpoint.RETRY_SECONDS = ()

                def unread(path: Path) -> Any:
                    raise OSError(5, "Input/output error")

                checkpoint._load = unread
            task = Unread() if how == "reading" else toys.Toy()
            if how == "comes back" and world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                task.before_step = toys.kill_at(8, signal.SIGKILL)
            if how in ("limit", "kill") and world.rank == 1:
                batches = iter(range(8))
                task.before_step = lambda: None if next(batches, None) is not None else end_memory(how)
            with translate_errors():
                made = toys.trainer(task, folder, world=world, checkpoint_minutes=0)
                with report_own_failure(world), translate_errors():
                    made.fit()
        return 0

    return guarded(run)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
    finally:
        print("ended by itself", flush=True)
