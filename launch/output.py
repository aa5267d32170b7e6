"""Standard output that fails: its reader has gone, as in `make status | head -1`, or the disk under a log is full."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
from collections.abc import Callable
from typing import Any

CLOSED = 141  # 128 + SIGPIPE, as of a program that the signal ends


def until_closed(call: Callable[[], int]) -> int:
    """Call and return the exit code; where the reader of the output has gone, end without a traceback.

    A broken pipe of another kind, such as to a data worker, is raised as ever.
    """
    try:
        try:
            return call()
        finally:
            if sys.stdout is not None:  # closed from the start
                sys.stdout.flush()
    except BrokenPipeError:
        closed = [number for number in (1, 2) if _reader_has_gone(number)]
        for number in closed:  # the interpreter flushes once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        if not closed:
            raise
        return CLOSED


def _reader_has_gone(number: int) -> bool:
    look = select.poll()
    look.register(number, 0)
    return any(event & select.POLLERR for _, event in look.poll(0))


class _Lenient(io.RawIOBase):
    """Writes to a file descriptor, and drops what it does not take."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        try:
            return os.write(self.number, data)
        except OSError:
            return len(data)


def train_without_output() -> None:
    """From now on let no trouble with standard output and error end this process: what it trains is worth more.

    Streams that are no files of the process, such as a notebook's, stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):  # closed from the start, or no file
            continue
        if isinstance(getattr(getattr(stream, "buffer", None), "raw", None), _Lenient):
            continue
        with contextlib.suppress(OSError):
            stream.flush()
        lenient = io.TextIOWrapper(
            io.BufferedWriter(_Lenient(number)), encoding=stream.encoding, errors="backslashreplace",
            line_buffering=True, write_through=name == "stderr",
        )  # fmt: skip
        setattr(sys, name, lenient)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(lenient)
