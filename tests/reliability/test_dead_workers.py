"""A data loading process is killed, at each moment of a run: always the same line or two, and the run goes on after.

torch speaks of the death from a signal handler. So the tests wait until the process is dead: the handler then runs in
the very next line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from tasks.base import LoopState, Shard
from tasks.engine.dead_workers import read_batches
from tasks.engine.distributed import process_group
from tasks.engine.errors import RunFailed, translate_errors
from tests.engine import toys

ROOT = Path(__file__).resolve().parents[2]
KILLED = r"^a data loading process was killed; the same command goes on from the last checkpoint\n.*\Z"
pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
]


class Loaded(Sequence[Any]):
    """Batches from a process of their own, which dies at one of them, or waits at one to be killed.

    It is not killed anywhere else: it may hold a lock then that torch needs to end it.
    """

    def __init__(self, batches: Sequence[Any], *, deadly: int | None = None, waits_at: int | None = None) -> None:
        self.batches, self.deadly, self.waits_at = batches, deadly, waits_at
        self.here, self.there = multiprocessing.Pipe()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: Any) -> Any:
        if number == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.waits_at:
            self.there.send("waits")
            signal.pause()
        return self.batches[number]

    def kill(self) -> None:
        """Kill the process once it waits, and return when it is dead."""
        assert self.here.poll(60)
        self.here.recv()
        for worker in multiprocessing.active_children():
            os.kill(worker.pid or 0, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid or 0, os.WEXITED | os.WNOWAIT)

    def __iter__(self) -> Iterator[Any]:
        numbers = torch.Generator().manual_seed(0)
        return iter(DataLoader(self, batch_size=None, num_workers=1, generator=numbers))  # type: ignore[arg-type]


class Disturbed(toys.Toy):
    """Loads in other processes, which are killed once, at a moment of the second epoch."""

    def __init__(self, moment: str) -> None:
        super().__init__()
        self.moment, self.epoch, self.loaded = moment, 0, Loaded([])
        self.before_step = lambda: self.now("a step")

    def now(self, moment: str) -> None:
        """Kill, if it is this moment."""
        if moment == self.moment and self.epoch == 1:
            self.moment = "over"
            self.loaded.kill()

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Loaded:
        self.epoch = epoch
        deadly = {"an epoch's start": 0, "reading": 2}
        return self._load(super().train_batches(epoch, shard, start), deadly, waiting={"a step", "a save"})

    def eval_batches(self, shard: Shard) -> Mapping[str, Any]:
        batches = super().eval_batches(shard)["val"]
        return {"val": self._load(batches, {"reading to evaluate": 1}, waiting={"evaluating"})}

    def _load(self, batches: Sequence[Any], deadly: Mapping[str, int], *, waiting: set[str]) -> Loaded:
        if self.epoch != 1:
            return Loaded(batches)
        self.loaded = Loaded(batches, deadly=deadly.get(self.moment), waits_at=1 if self.moment in waiting else None)
        return self.loaded

    def predict(self, nets: Mapping[str, torch.nn.Module], batch: Any, state: LoopState) -> Any:
        self.now("evaluating")
        return super().predict(nets, batch, state)


MOMENTS = ["an epoch's start", "reading", "a step", "a save", "evaluating", "reading to evaluate"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_killed_at_any_moment_is_said_the_same_and_the_run_resumes(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, save = Disturbed(moment), torch.save

    def disturbed_save(*args: Any, **options: Any) -> None:
        task.now("a save")
        save(*args, **options)

    monkeypatch.setattr(torch, "save", disturbed_save)
    made = toys.trainer(task, tmp_path / "r", checkpoint_minutes=0)
    with pytest.raises(RunFailed, match=KILLED), translate_errors():
        made.fit()
    toys.close(made)
    again, whole = (toys.trainer(toys.Toy(), tmp_path / name) for name in ("r", "whole"))
    again.fit()
    whole.fit()
    assert all(torch.equal(value, toys.weights(whole)[name]) for name, value in toys.weights(again).items())


def test_the_process_whose_worker_is_killed_says_so_and_the_other_that_a_process_has_ended(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.reliability.test_dead_workers", str(tmp_path)]
    code = f"import sys; from tasks.engine.processes import spawn; sys.exit(spawn({words!r}, 2))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "process 1 failed: a data loading process was killed" in done.stderr, done.stderr
    assert "process 0 failed: another process of this run has ended" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def disturbed_answer(fails: Callable[[], None]) -> None:
    """Fail with a worker alive, and let it die while the error is answered, as a record is written then."""
    loaded = Loaded(range(8), waits_at=1)
    batches = iter(loaded)
    next(batches)
    try:
        with translate_errors():
            fails()
    finally:
        loaded.kill()
        for _ in range(3):  # lines in which the handler may run
            pass


def test_a_worker_that_dies_while_an_error_is_answered_does_not_replace_the_answer() -> None:
    def fails() -> None:
        raise MemoryError

    with pytest.raises(RunFailed, match="out of memory"):
        disturbed_answer(fails)


def test_a_death_that_was_heard_while_nothing_was_read_is_said_at_the_next_batch() -> None:
    loaded = Loaded(range(8), waits_at=1)
    batches = read_batches(loaded)
    with pytest.raises(RunFailed, match=KILLED), translate_errors():
        next(batches)
        loaded.kill()
        assert threading.active_count()  # a line of the run
        next(batches)


def test_workers_of_a_pass_that_is_over_disturb_no_other() -> None:
    with translate_errors():
        loaded = Loaded(range(8), waits_at=1)
        first = read_batches(loaded)
        next(first)
        loaded.kill()
        first.close()  # type: ignore[attr-defined]
        assert len(list(read_batches(Loaded(range(8))))) == 8


@pytest.mark.parametrize(
    "seen_as",
    [ConnectionResetError(104, "Connection reset by peer"), EOFError(), FileNotFoundError(2, "No such file"),
     OSError("got end of file during message")],
)  # fmt: skip
def test_a_broken_connection_to_a_worker_is_said_as_its_death(
    seen_as: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(timeout: float) -> object:
        raise seen_as

    batches = iter(DataLoader(range(8), num_workers=1))  # type: ignore[arg-type]
    monkeypatch.setattr(batches._data_queue, "get", get)  # type: ignore[attr-defined]
    with pytest.raises(RunFailed, match=KILLED), translate_errors():
        next(read_batches(batches))
    batches._shutdown_workers()  # type: ignore[attr-defined]


def main(folder: Path) -> None:
    """What each of two processes does; the second loses its worker. Ends as `scripts/train.py` would."""
    with process_group("cpu", timeout_minutes=5) as world:
        made = toys.trainer(Disturbed("reading" if world.rank == 1 else "never"), folder, world=world)
        try:
            with translate_errors():
                made.fit()
        except RunFailed as error:
            print(f"process {world.rank} failed: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # leaving the group would wait for the process that is gone


if __name__ == "__main__":
    main(Path(sys.argv[1]))
