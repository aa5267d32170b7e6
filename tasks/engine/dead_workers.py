"""Reading batches: the death of a data loading process is raised only here, and no wait lasts for ever."""

from __future__ import annotations

import atexit
import math
import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data._utils import signal_handling

from tasks.base import Batch, InputError
from tasks.engine.signals import SignalRequests

STOP_SECONDS = 5.0  # that a run which is asked to stop still waits for a batch
MOST_SECONDS = 1e8  # three years: the timer takes no infinity


class WorkerDeaths:
    """Lets torch raise the death of a data loading process only while a batch is read.

    torch raises it from its handler of SIGCHLD, so in whatever line the main process runs: one that saves a checkpoint
    would take it for a full disk, and one that handles the first error of the dead worker would lose that error.
    """

    def __init__(self) -> None:
        self.reading = self.missed = False
        self.torch_handler: Callable[[int, Any], Any] = lambda number, frame: None

    def listen(self) -> None:
        """Install this in front of torch's handler, which is set now: torch sets it once, with the first worker."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread set handlers
        signal_handling._set_SIGCHLD_handler()
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler is not self:
            self.torch_handler = handler
            signal.signal(signal.SIGCHLD, self)

    def __call__(self, number: int, frame: Any) -> None:
        """Handle SIGCHLD."""
        if self.reading:
            self.torch_handler(number, frame)
        else:
            self.missed = True

    def raise_missed(self) -> None:
        """Let torch raise what came while no batch was read, if that worker is still needed."""
        if self.missed:
            self.missed = False
            self.torch_handler(signal.SIGCHLD, None)


DEATHS = WorkerDeaths()


class WaitsTooLong(Exception):  # noqa: N818 - the reader turns it into the run's own error
    """The next batch does not come: the time for it is over, or a signal asked to stop a while ago."""


def read_batches(
    batches: Iterable[Batch], *, minutes: float = math.inf, signals: SignalRequests | None = None
) -> Iterator[Batch]:
    """Yield the batches; the death of a data loading process is raised here, as `translate_errors` expects it.

    Args:
        batches: Of one pass.
        minutes: Longest wait for one batch.
        signals: A request to stop ends a wait that lasts `STOP_SECONDS` longer.

    Raises:
        WaitsTooLong: A wait was ended. The batch that was waited for has changed nothing.
    """
    iterator, end = iter(batches), object()
    while True:
        DEATHS.reading = True
        try:
            DEATHS.raise_missed()
            with _bounded(60 * minutes, signals):
                batch = next(iterator, end)
        except Exception as error:
            error.while_reading = True  # type: ignore[attr-defined]
            if isinstance(error, WaitsTooLong):
                end_workers()
            if isinstance(error, InputError) and "Original Traceback" in str(error):  # torch adds a worker's
                raise InputError(str(error).rpartition(f"{InputError.__name__}: ")[2].strip()) from error
            raise
        finally:  # only this assignment: a call would let the handler run once more
            DEATHS.reading = False
        if batch is end:
            return
        yield batch


def end_workers() -> None:
    """Kill the data loading processes: they ignore the signals that stop a run, so a stuck one would hold its end."""
    DEATHS.listen()
    DEATHS.reading = False
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join(STOP_SECONDS)


# Python ends daemons by SIGTERM, which they ignore, and then waits: those of a pass that an error still holds
atexit.register(end_workers)


def was_reading(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, arose while this process read a batch: the others do not know of it."""
    while error is not None and not getattr(error, "while_reading", False):
        error = error.__cause__ or error.__context__
    return error is not None


@contextmanager
def _bounded(seconds: float, signals: SignalRequests | None) -> Iterator[None]:
    """Raise `WaitsTooLong` in the block when it takes too long: a handler alone can end a wait for another process."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def give_up(number: int, frame: Any) -> None:
        raise WaitsTooLong

    def hurry() -> None:
        signal.setitimer(signal.ITIMER_REAL, min(STOP_SECONDS, seconds))

    previous = signal.signal(signal.SIGALRM, give_up)
    if signals is not None:
        signals.when_stopping = hurry
    stopping = signals is not None and signals.stopping
    try:
        signal.setitimer(signal.ITIMER_REAL, min(STOP_SECONDS if stopping else MOST_SECONDS, seconds))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signals is not None:
            signals.when_stopping = None
        signal.signal(signal.SIGALRM, previous)
