"""Data loading processes that die: their death is raised only where a batch is read."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.utils.data._utils import signal_handling

from tasks.base import Batch


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


def read_batches(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches; the death of a data loading process is raised here, as `translate_errors` expects it."""
    iterator, end = iter(batches), object()
    while True:
        DEATHS.reading = True
        try:
            DEATHS.raise_missed()
            batch = next(iterator, end)
        finally:  # only this assignment: a call would let the handler run once more
            DEATHS.reading = False
        if batch is end:
            return
        yield batch
