"""Signals as requests that the training loop handles between two steps."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NOTHING, SAVE, STOP = 0, 1, 2  # ordered: the largest request of all processes wins


class SignalRequests:
    """Pending requests of signals.

    Two flags rather than one level: a stop that arrives during a requested save must not be lost.

    Attributes:
        saving: A save is requested and not yet done.
        stopping: A stop is requested.
        number: Signal that requested the stop.
        when_stopping: Called when a stop is requested, while a batch is waited for.
    """

    def __init__(self) -> None:
        self.saving = self.stopping = False
        self.number = int(signal.SIGTERM)
        self.when_stopping: Callable[[], None] | None = None

    @property
    def pending(self) -> int:
        """The strongest request: NOTHING, SAVE or STOP."""
        return STOP if self.stopping else SAVE if self.saving else NOTHING

    def ask_to_stop(self, number: int, frame: Any = None) -> None:
        """SIGINT, SIGTERM, SIGHUP, SIGUSR2: save and stop. A second Ctrl-C stops at once, without saving.

        With SIGUSR2 a cluster announces preemption or the end of the time limit. It wins over a SIGTERM that comes
        along, in either order, since it tells that the run will be continued.
        """
        if self.stopping and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not (self.stopping and self.number == signal.SIGUSR2):
            self.number = number
        self.stopping = True
        if self.when_stopping is not None:
            self.when_stopping()

    def ask_to_save(self, number: int, frame: Any = None) -> None:
        """SIGUSR1: save and continue."""
        self.saving = True


def begin_child(parent: int) -> None:
    """Set up a run's process between fork and exec: `preexec_fn=partial(begin_child, os.getpid())`.

    Linux sends it SIGTERM when its launcher dies, even by kill -9: it saves and releases the folder. SIGUSR1, a request
    to save, does not end it while it loads. SIGINT reaches it even if the launcher blocks that, as Ray's workers do.

    Args:
        parent: Process id of the launcher.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:  # it died before prctl
            os._exit(128 + signal.SIGTERM)


@contextmanager
def listen() -> Iterator[SignalRequests]:
    """Collect SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 during the block, and restore the handlers after it.

    SIGHUP, which comes when a terminal closes, stays ignored under nohup.
    """
    requests = SignalRequests()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # Python lets only the main thread set handlers
        return
    handlers = {
        signal.SIGINT: requests.ask_to_stop, signal.SIGTERM: requests.ask_to_stop, signal.SIGUSR1: requests.ask_to_save,
        signal.SIGUSR2: requests.ask_to_stop,
    }  # fmt: skip
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        handlers[signal.SIGHUP] = requests.ask_to_stop
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
