"""Cache folder of fetched and generated data sets, and the lock that lets processes share one generation."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return where `make data` puts data sets: `$ADAMP_DATA`, or `~/.cache/adamp/data`.

    Without HOME a user whom the system does not know, as in some containers, has a folder of temporary files.
    """
    try:
        return Path(os.environ.get("ADAMP_DATA") or "~/.cache/adamp/data").expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"adamp-data-{os.geteuid()}"


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold a lock beside what is to be made: of several processes that start at once, one makes it.

    Raises:
        OSError: The folder around `target` cannot be made or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: then several make the same
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file frees the lock
