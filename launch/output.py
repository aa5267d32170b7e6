"""Standard output that its reader has closed, as in `make status | head -1`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable

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
