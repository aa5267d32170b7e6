"""What the machine may do to a run, done for real: a process or a worker dies, memory or disk ends, clocks go back.

A full and a read-only disk under the whole command are in `tests/scripts/test_train_input.py`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tasks.base import InputError
from tasks.engine import provenance
from tasks.engine.distributed import World, process_group
from tasks.engine.errors import RunFailed, translate_errors
from tasks.engine.processes import free_port
from tasks.engine.run_record import RunRecord
from tests import commands
from tests.engine import toys

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {"experiment_name": "toys"}


class Deadly(Dataset[int]):
    """A worker that loads item 5 is killed, as by the system when memory ends."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


WORKER_KILLED = "a data loading process was killed; the same command goes on"


def test_a_killed_data_worker_is_said_in_a_line_or_two() -> None:
    # In a process of its own: torch may raise a second time, anywhere, when it hears of the death.
    code = (
        "from torch.utils.data import DataLoader\n"
        "from tasks.engine.errors import translate_errors\n"
        "from tests.reliability.test_faults import Deadly\n"
        "with translate_errors():\n"
        "    list(DataLoader(Deadly(), num_workers=1, batch_size=1))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.split("RunFailed: ")[1].strip().splitlines()
    assert said[0].startswith(WORKER_KILLED)
    assert len(said) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("seen_as", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_killed_data_worker_is_not_taken_for_another_process_of_the_run(
    seen_as: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What reading its tensors raises if that comes before the signal of its death.
    def get(timeout: float) -> object:
        raise seen_as

    batches = iter(DataLoader(Deadly(), num_workers=1, batch_size=1))
    monkeypatch.setattr(batches._data_queue, "get", get)  # type: ignore[attr-defined]
    with pytest.raises(RunFailed, match=WORKER_KILLED), translate_errors():
        next(batches)
    batches._shutdown_workers()  # type: ignore[attr-defined]


def test_memory_that_ends_is_said_with_what_to_change() -> None:
    with pytest.raises(RunFailed, match=r"out of memory: .*\nLower train\.batch_size"), translate_errors():
        torch.empty(2**55)
    with pytest.raises(RunFailed, match="out of memory"), translate_errors():
        bytearray(2**62)


def test_errors_of_the_code_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error, translate_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(error.value, RunFailed)
    with pytest.raises(InputError), translate_errors():
        raise InputError("timed out")


def test_a_cell_that_runs_out_of_memory_leaves_the_others_of_its_sweep_alone(tmp_path: Path) -> None:
    words = commands.options(tmp_path, "model.width=4000,0.125", "train.epochs=1")
    done = commands.call("--multirun", *words)
    assert done.code == 1, done.err
    assert "failed: out of memory: " in done.err and "Traceback" not in done.err
    states = {path.parent.name: json.loads(path.read_text())["status"] for path in tmp_path.glob("runs/*/*/run.json")}
    assert sorted(states.values()) in (["failed", "finished"], ["finished"], ["finished", "running"]), states
    assert any("width=0.125" in name and state == "finished" for name, state in states.items())


def test_a_lock_file_that_a_dead_process_left_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".lock").write_text("99999999")
    made = RunRecord(tmp_path / "r", name="r", config=CONFIG)
    with pytest.raises(InputError, match=f"is being run by process {os.getpid()} now"):
        RunRecord(tmp_path / "r", name="r", config=CONFIG)
    made.close()


def test_a_clock_that_goes_back_changes_neither_times_nor_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = toys.trainer(toys.Toy(), tmp_path / "whole")
    whole.fit()
    toys.close(whole)

    class Backwards(datetime):
        hours = 0

        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            cls.hours += 1
            return datetime(2026, 1, 1, 23 - cls.hours % 20, tzinfo=UTC)

    monkeypatch.setattr(provenance, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: 1.0)
    again = toys.trainer(toys.Toy(), tmp_path / "back", checkpoint_minutes=0)
    again.fit()
    again.record.update(status="finished")  # type: ignore[union-attr]
    toys.close(again)
    stored = json.loads((tmp_path / "back" / "run.json").read_text())
    assert 0 <= stored["wall_time_s"] < 60
    assert (tmp_path / "back" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert all(torch.equal(value, toys.weights(whole)[name]) for name, value in toys.weights(again).items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_metrics_is_said_and_no_line_is_lost(tmp_path: Path) -> None:
    made = RunRecord(tmp_path / "r", name="r", config=CONFIG)
    made.open_metrics(0)
    made.log_metrics({"step": 1, "epoch": 0.5})
    kept = made._metrics
    full = Path("/dev/full").open("ab")  # noqa: SIM115
    made._metrics = full
    with pytest.raises(InputError, match="No space left on device; run again to resume"):
        made.log_metrics({"step": 2, "epoch": 1.0})
    with pytest.raises(InputError, match="run again to resume"):
        made.metrics_offset()
    made._metrics = kept
    made.close()
    with pytest.raises(OSError, match="No space left"):
        full.close()
    assert (tmp_path / "r" / "metrics.jsonl").read_text().count("\n") == 1


def start_pair(folder: Path, how: str) -> list[subprocess.Popen[str]]:
    """Start two processes as torchrun would, without the suite's own launcher to look after them."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    env = {**os.environ, **group}
    words = [sys.executable, "-m", "tests.reliability.test_faults", str(folder), how]
    return [
        subprocess.Popen(words, cwd=ROOT, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "another process of this run has ended"),
        ("stops", "another process of this run did not answer within train.timeout_minutes"),
    ],
)
def test_when_one_of_two_processes_is_lost_the_other_ends_with_a_clear_error(
    how: str, said: str, tmp_path: Path
) -> None:
    first, second = start_pair(tmp_path, how)
    try:
        _, err = first.communicate(timeout=900)
    finally:
        for process in (first, second):
            if process.poll() is None:
                process.kill()
            process.communicate()
    assert first.returncode == 1, err
    assert f"failed: {said}" in err, err
    assert "Traceback" not in err


def test_a_process_that_waits_in_vain_for_the_others_says_so(tmp_path: Path) -> None:
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "RANK": "0"}
    words = [sys.executable, "-m", "tests.reliability.test_faults", str(tmp_path), "comes late"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **group}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: another process of this run did not answer within train.timeout_minutes" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def lose(world: World, folder: Path, how: str) -> None:
    """Train, and lose process 1 in the middle."""
    task = toys.Toy()
    seen = 0

    def hook() -> None:
        nonlocal seen
        seen += 1
        if world.rank == 1 and seen == 6:
            os.kill(os.getpid(), signal.SIGKILL if how == "dies" else signal.SIGSTOP)

    task.before_step = hook
    made = toys.trainer(task, folder, world=world)
    with translate_errors():
        made.fit()


def main(folder: Path, how: str) -> int:
    """What each process of a pair does; ends as `scripts/train.py` would."""
    try:
        if how == "comes late":
            with process_group("cpu", timeout_minutes=0.02):
                return 0
        with process_group("cpu", timeout_minutes=10) as world:
            if how == "stops":  # joining may take long on a busy machine, a step must not
                torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=20))
            lose(world, folder, how)
    except RunFailed as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # leaving the group would wait for the process that is gone
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
