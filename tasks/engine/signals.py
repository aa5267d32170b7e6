"""Signals turned into requests that the loop answers between two steps."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOTHING, SAVE, STOP = 0, 1, 2  # ordered: the largest request of all processes wins


class Requests:
    """What signals have asked for so far.

    Two flags rather than one level: a stop that arrives while a save is being answered must outlive the answer.

    Attributes:
        saving: A save was asked for and not yet answered.
        stopping: A stop was asked for.
        number: Signal that asked to stop.
    """

    def __init__(self) -> None:
        self.saving = self.stopping = False
        self.number = int(signal.SIGTERM)

    @property
    def pending(self) -> int:
        """The strongest request: NOTHING, SAVE or STOP."""
        return STOP if self.stopping else SAVE if self.saving else NOTHING

    def ask_to_stop(self, number: int, frame: Any = None) -> None:
        """SIGINT, SIGTERM, SIGUSR2: save and stop. A second Ctrl-C stops at once, without saving.

        SIGUSR2 is how a cluster announces preemption or the end of the time limit. It may send SIGTERM along, and
        whichever is first, the run must know that it will be continued.
        """
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not (self.stopping and self.number == signal.SIGUSR2):
            self.number = number
        self.stopping = True

    def ask_to_save(self, number: int, frame: Any = None) -> None:
        """SIGUSR1: save and go on."""
        self.saving = True


def begin_child(parent: int) -> None:
    """Ready a run between fork and exec: `preexec_fn=partial(begin_child, os.getpid())`.

    Linux sends it SIGTERM when its launcher dies, even by kill -9: it saves and gives up the folder. SIGUSR1, which
    asks for a checkpoint, does not end it while it still loads. SIGINT reaches it even if the launcher blocks that, as
    Ray's workers do.

    Args:
        parent: The launcher's process.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it was watched
            os._exit(128 + signal.SIGTERM)


@contextmanager
def requests() -> Iterator[Requests]:
    """Listen to SIGINT, SIGTERM and SIGUSR1, 2 while the block runs; the handlers before are put back after it."""
    asked = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # Python lets only the main thread set handlers
        return
    handlers = {
        signal.SIGINT: asked.ask_to_stop, signal.SIGTERM: asked.ask_to_stop, signal.SIGUSR1: asked.ask_to_save,
        signal.SIGUSR2: asked.ask_to_stop,
    }  # fmt: skip
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
