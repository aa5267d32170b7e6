"""Checkpoint files: atomic writes, safe loading, and unreadable files kept aside."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from tasks.base import InputError

FORMAT = 1  # of the file; raise it when its keys change meaning
Contents = dict[str, Any]


def save(path: Path, contents: Contents) -> None:
    """Write a checkpoint beside `path`, then rename it: a reader or a crash sees the old file or the new one.

    The file that stood there before stays as `<stem>.previous.pt` until the next save.

    Raises:
        InputError: The file cannot be written, e.g. on a full disk; the checkpoint before is untouched.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **contents}, file)
            file.flush()
            os.fsync(file.fileno())
    # torch reports a short write of its archive as a RuntimeError.
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        previous = f"{path} from before is still valid" if path.exists() else "there was none before"
        cause: BaseException = error
        while not isinstance(cause, OSError) and cause.__context__ is not None:
            cause = cause.__context__
        reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error).splitlines()[0]
        raise InputError(
            f"cannot save a checkpoint in {path.parent}: {reason}; {previous}; run again to resume"
        ) from None
    if path.exists():
        _keep_previous(path)
    temporary.replace(path)
    _sync_folder(path.parent)


def _keep_previous(path: Path) -> None:
    previous = path.with_suffix(".previous.pt")
    with contextlib.suppress(OSError):
        previous.unlink(missing_ok=True)
        previous.hardlink_to(path)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: Path, *, run: str) -> Contents:
    """Read a checkpoint of the named run onto the CPU.

    Only tensors and plain containers are unpickled. A file that cannot be read, or that belongs to another run, is
    moved aside under a name that nothing overwrites.

    Raises:
        InputError: The file is truncated, not a checkpoint, or another run's.
    """
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a broken archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise _set_aside(path, f"cannot be read ({reason})") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT or "networks" not in contents:
        raise _set_aside(path, "is not a checkpoint of this suite, or of another version")
    if contents.get("run") != run:
        raise _set_aside(path, f"belongs to the run {contents.get('run')!r}")
    return dict(contents)


def _set_aside(path: Path, reason: str) -> InputError:
    number = 1
    while (aside := path.with_name(f"{path.stem}.unreadable-{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)
    previous = path.with_suffix(".previous.pt")
    next_run = "resume from the checkpoint before it" if previous.exists() else "start over"
    return InputError(
        f"checkpoint {path} {reason}\nIt is kept as {aside.name}; run the same command again to {next_run}."
    )


def latest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the last one, else the one before it, else None."""
    for path in (folder / "last.pt", folder / "last.previous.pt"):
        if path.exists():
            return path
    return None
