"""Checkpoint files: atomic writes, safe loading, and damaged files kept aside.

A file that the file system fails to deliver is not a damaged file: it is read again, then reported, and stays.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from tasks.base import InputError

log = logging.getLogger(__name__)

FORMAT = 1  # of the file; raise it when its keys change meaning
Contents = dict[str, Any]
T = TypeVar("T")
RETRY_SECONDS = (0.1, 0.4, 1.5)  # before reading again
# Errors that say what is there, not that the file system failed
LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def read_again(read: Callable[[], T], path: Path, *, lasting: tuple[type[OSError], ...] = LASTING) -> T:
    """Return what `read` returns; after a passing error, such as a stale handle, it is called again.

    Args:
        read: Reads the file.
        path: The file.
        lasting: Errors that are raised as they are, at once.

    Raises:
        InputError: The file cannot be read now; nothing was changed.
    """
    seconds = iter(RETRY_SECONDS)
    while True:
        try:
            return read()
        except lasting:
            raise
        except (OSError, MemoryError) as error:
            pause = next(seconds, None)
            if pause is None:
                reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "out of memory"
                raise InputError(
                    f"{path} cannot be read now: {reason.splitlines()[0][:120]}\n"
                    "Nothing was changed; run the same command again when it can be read, or move the file away."
                ) from None
        time.sleep(pause)


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
            sync(file.fileno(), temporary)
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
    try:
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot save a checkpoint in {path.parent}: {error.strerror}; run again to resume") from None
    _sync_folder(path.parent)


def _keep_previous(path: Path) -> None:
    previous = path.with_suffix(".previous.pt")
    with contextlib.suppress(OSError):
        previous.unlink(missing_ok=True)
        previous.hardlink_to(path)


# What file systems such as FUSE and CIFS answer to an fsync that they lack
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def sync(handle: int, path: Path) -> None:
    """Force a file to the disk; where the file system knows no such thing, say so once.

    Raises:
        OSError: The disk failed.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _warn_unsupported(path.parent, f"fsync ({error.strerror}): a power cut may lose the last checkpoint")


@functools.cache
def _warn_unsupported(folder: Path, what: str) -> None:
    log.warning("the file system of %s does not support %s", folder, what)


def _sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk. The file in it is whole already, so no failure ends the run."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            sync(handle, folder / "last.pt")
        finally:
            os.close(handle)


def load(path: Path, *, run: str) -> Contents:
    """Read a checkpoint of the named run onto the CPU.

    Only tensors and plain containers are unpickled. A damaged file, or one that belongs to another run, is moved
    aside under a name that nothing overwrites. One that cannot be read now, or of a newer format, stays.

    Raises:
        InputError: The file cannot be read now, is damaged, not a checkpoint, of a newer format, or another run's.
    """
    try:
        contents = read_again(lambda: _load(path), path, lasting=())
    except _DamagedError as error:
        raise _set_aside(path, f"cannot be read ({error})") from None
    saved_format = contents.get("format") if isinstance(contents, dict) else None
    if isinstance(saved_format, int) and saved_format > FORMAT:
        raise InputError(
            f"checkpoint {path} has format {saved_format}, this version reads format {FORMAT}: a newer one wrote it\n"
            "Nothing was changed; resume with the newer version, or give the new run a name of its own with tag=NAME."
        )
    if not isinstance(contents, dict) or saved_format != FORMAT or "networks" not in contents:
        raise _set_aside(path, "is not a checkpoint of this suite, or of another version")
    if contents.get("run") != run:
        raise _set_aside(path, f"belongs to the run {contents.get('run')!r}")
    return dict(contents)


class _DamagedError(Exception):
    """The file can be read and holds no whole checkpoint."""


def _load(path: Path) -> Any:
    """Unpickle a checkpoint; torch also reports a failed read or allocation as a broken archive."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception:  # torch raises a dozen kinds for a broken archive
        if not path.is_dir():
            with path.open("rb") as file:
                while file.read(2**20):
                    pass
    # The file system delivers every byte, so that a second failure lies in the bytes
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL, errno.EISDIR):
            raise
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(reason) from None
        raise _DamagedError(reason) from None


def free_name(path: Path, word: str) -> Path:
    """Return "<stem>.<word>-<number><suffix>" beside `path`, with the first number that is free."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.stem}.{word}-{number}{path.suffix}")):
        number += 1
    return free


def _set_aside(path: Path, reason: str) -> InputError:
    aside = free_name(path, "unreadable")
    path.rename(aside)
    if path.stem == "best":
        way_out = "put a copy back, or train anew under another name with tag=NAME."
    elif path.with_suffix(".previous.pt").exists():
        way_out = "run the same command again to resume from the checkpoint before it."
    else:
        way_out = "run the same command again with train.restart=true to start over."
    return InputError(f"checkpoint {path} {reason}\nIt is kept as {aside.name}; {way_out}")


def names(folder: Path) -> list[str]:
    """Return the names of the checkpoints in a folder, none where there is no folder.

    Raises:
        InputError: The folder cannot be read now.
    """
    try:
        return sorted(path.name for path in read_again(lambda: list(folder.iterdir()), folder) if path.suffix == ".pt")
    except LASTING:
        return []


def latest(folder: Path) -> Path | None:
    """Return the checkpoint to resume from: the last one, else the one before it, else None.

    Raises:
        InputError: The folder cannot be read now.
    """
    found = names(folder)
    return next((folder / name for name in ("last.pt", "last.previous.pt") if name in found), None)


def unusable(folder: Path) -> list[str]:
    """Return the names of checkpoints that were set aside, so that starting over would pass over them.

    Raises:
        InputError: The folder cannot be read now.
    """
    return [name for name in names(folder) if name.startswith("last.") and ".unreadable-" in name]
