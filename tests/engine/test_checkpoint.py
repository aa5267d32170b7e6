"""Checkpoints are whole or absent, and what cannot be read is never overwritten."""

import errno
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.base import InputError
from tasks.engine import checkpoint

STATE = {"run": "e/r", "networks": {"model": {"w": torch.arange(1000.0)}}, "step": 3}


def test_a_saved_state_is_read_back(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    loaded = checkpoint.load(tmp_path / "last.pt", run="e/r")
    assert torch.equal(loaded["networks"]["model"]["w"], STATE["networks"]["model"]["w"])  # type: ignore[index]
    assert not list(tmp_path.glob("*.tmp"))


def test_the_checkpoint_before_stays_beside_the_new_one(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    checkpoint.save(tmp_path / "last.pt", {**STATE, "step": 4})
    assert checkpoint.load(tmp_path / "last.previous.pt", run="e/r")["step"] == 3
    assert checkpoint.load(tmp_path / "last.pt", run="e/r")["step"] == 4


@pytest.mark.parametrize("content", ["truncated", "empty", "text", "a pickle", "another run's", "another format"])
def test_a_file_that_is_not_this_runs_checkpoint_is_kept_aside(tmp_path: Path, content: str) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {**STATE, "run": "other"} if content == "another run's" else STATE)
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "text":
        path.write_text("hello\n")
    elif content == "a pickle":
        torch.save({"format": 1, "networks": {}, "evil": Path("x")}, path)
    elif content == "another format":
        torch.save({"epoch": 3, "state_dict": {}}, path)
    before = path.read_bytes()
    with pytest.raises(InputError) as error:
        checkpoint.load(path, run="e/r")
    assert len(str(error.value).splitlines()) <= 2
    assert str(path) in str(error.value)
    assert (tmp_path / "last.unreadable-1.pt").read_bytes() == before
    assert not path.exists()
    path.write_bytes(b"again")
    with pytest.raises(InputError):
        checkpoint.load(path, run="e/r")
    assert (tmp_path / "last.unreadable-1.pt").read_bytes() == before
    assert (tmp_path / "last.unreadable-2.pt").read_bytes() == b"again"


PASSING = [OSError(errno.ESTALE, "Stale file handle"), OSError(errno.EIO, "Input/output error"), MemoryError()]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: getattr(error, "strerror", "memory"))
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_passing_read_error_is_retried(
    name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path / name, STATE)
    read, errors = torch.load, [error, error]

    def load(*words: Any, **options: Any) -> Any:
        if errors:
            raise errors.pop()
        return read(*words, **options)

    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", (0.0, 0.0))
    assert checkpoint.load(tmp_path / name, run="e/r")["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
@pytest.mark.parametrize("target", ["/proc/self/mem", "/nowhere/last.pt"])
def test_a_lasting_read_error_is_reported_and_the_checkpoint_stays(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", (0.0,))
    (tmp_path / "last.pt").symlink_to(target)  # reading the first byte fails, or opening
    assert checkpoint.latest(tmp_path) == tmp_path / "last.pt"
    with pytest.raises(InputError, match=r"last\.pt cannot be read now: .*\nNothing was changed; run the same command"):
        checkpoint.load(tmp_path / "last.pt", run="e/r")
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_a_checkpoint_of_a_newer_format_is_refused_untouched(name: str, tmp_path: Path) -> None:
    torch.save({"format": checkpoint.FORMAT + 1, "everything": "elsewhere"}, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=r"has format 2, this version reads format 1.*\nNothing was changed"):
        checkpoint.load(tmp_path / name, run="e/r")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == before


def test_after_setting_a_broken_checkpoint_aside_the_one_before_is_the_latest(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", STATE)
    checkpoint.save(tmp_path / "last.pt", {**STATE, "step": 4})
    (tmp_path / "last.pt").write_bytes(b"broken")
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    with pytest.raises(InputError, match="resume from the checkpoint before it"):
        checkpoint.load(latest, run="e/r")
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert checkpoint.load(latest, run="e/r")["step"] == 3


def test_a_disk_that_refuses_leaves_the_old_checkpoint_valid(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, STATE)
    large = {**STATE, "networks": {"model": {"w": torch.zeros(100_000)}}}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a write past it fails, as on a full disk
    try:
        with pytest.raises(InputError, match=r"cannot save a checkpoint in .*from before is still valid"):
            checkpoint.save(path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path, run="e/r")["step"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt"]
