"""Output that cannot be written, file systems that lack an operation: the run goes on, with a line where it matters."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evidence.runs import progress
from launch.cell import Cell
from launch.local import Packing
from tasks.base import InputError
from tasks.engine import checkpoint
from tasks.engine.errors import Stopped
from tasks.engine.run_record import RunRecord
from tests import commands
from tests.engine import toys

CONFIG: dict[str, Any] = {"experiment_name": "toys"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_run_outlives_a_closed_pipe_and_a_full_disk_under_its_log(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = commands.options(tmp_path, "train.epochs=1", "train.progress=true")
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, str(commands.ROOT / "scripts" / "train.py"), *words]
        done = subprocess.run(command, env=commands.importing(commands.ROOT, environment), stdout=writer, stderr=full)
    os.close(writer)
    assert done.returncode == 0
    assert commands.record(tmp_path)["status"] == "finished"


def refuse(number: int) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    made = RunRecord(tmp_path / "e" / "r", name="r", config=CONFIG)
    assert "the file system has no locks (Function not implemented)" in caplog.text
    made.update(status="running")
    assert progress.read_progress(tmp_path / "e" / "r").status == "running"  # the process that noted itself is alive
    made.close()
    (tmp_path / "e" / "r" / ".lock").write_text(str((1 << 22) + 1))
    assert progress.read_progress(tmp_path / "e" / "r").status == "interrupted"


@pytest.mark.parametrize(("number", "goes_on"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_an_fsync_that_the_file_system_lacks_is_said_once_and_one_that_fails_is_an_error(
    number: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint._warn_unsupported.cache_clear()
    monkeypatch.setattr(os, "fsync", refuse(number))
    made = toys.trainer(toys.Toy(), tmp_path / "r")
    if goes_on:
        made.fit()
        assert checkpoint.load(tmp_path / "r" / "checkpoints" / "last.pt", run="toys/toy")["step"] == 12
        assert caplog.text.count("does not support fsync") == 2  # the run's folder and that of its checkpoints
    else:
        with pytest.raises(InputError, match="Input/output error"):
            made.fit()
    toys.close(made)


def test_a_folder_whose_entries_cannot_be_forced_to_the_disk_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def for_files_alone(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", for_files_alone)
    checkpoint.save(tmp_path / "last.pt", {"run": "r", "networks": {}})
    assert checkpoint.load(tmp_path / "last.pt", run="r")["run"] == "r"


@pytest.mark.parametrize("ignored", [False, True])
def test_a_hangup_saves_and_stops_unless_nohup_ignores_it(ignored: bool, tmp_path: Path) -> None:
    task = toys.Toy()
    task.before_step = toys.kill_at(5, signal.SIGHUP)
    made = toys.trainer(task, tmp_path / "r")
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        if ignored:
            made.fit()
        else:
            with pytest.raises(Stopped, match="stopped by SIGHUP") as stopped:
                made.fit()
            assert stopped.value.code == 129
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert made.state.progress.step == (12 if ignored else 5)
    assert checkpoint.latest(tmp_path / "r" / "checkpoints")
    toys.close(made)


def test_a_launcher_whose_notes_and_logs_cannot_be_written_runs_its_cells(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Plan:
        experiment, name, argv, config, folder = "toys", "r", (), CONFIG, tmp_path / "file" / "r"

    (tmp_path / "file").write_text("")  # no folder can be made in it
    cell = Cell(0, (), Plan())  # type: ignore[arg-type]
    cell.note(launcher="local")
    codes = Packing(1, [], command=lambda cell: [sys.executable, "-c", "raise SystemExit(3)"]).run([cell])
    assert codes == {0: 3}
    assert "its launcher's note cannot be written" in caplog.text
    assert "its run goes without a log" in capfd.readouterr().err
