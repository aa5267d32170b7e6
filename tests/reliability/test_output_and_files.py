"""A log that cannot be written, a file system without locks: the run goes on, with a line where it matters."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from evidence.runs import progress
from tasks.engine.run_record import RunRecord
from tests import commands

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


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    made = RunRecord(tmp_path / "e" / "r", name="r", config=CONFIG)
    assert "the file system has no locks (Function not implemented)" in caplog.text
    made.update(status="running")
    assert progress.read_progress(tmp_path / "e" / "r").status == "running"  # the process that noted itself is alive
    made.close()
    (tmp_path / "e" / "r" / ".lock").write_text(str((1 << 22) + 1))
    assert progress.read_progress(tmp_path / "e" / "r").status == "interrupted"
