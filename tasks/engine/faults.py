"""What the machine does to a run, said in a line or two instead of a traceback: see `explained`."""

from __future__ import annotations

import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data._utils import signal_handling

from tasks.base import Batch, InputError
from tasks.engine.outcomes import RunFailed

AGAIN = "the same command goes on from the last checkpoint"
WORKER = (
    f"a data loading process was killed; {AGAIN}\n"
    "If it comes back: too little memory or shared memory (make doctor); lower train.num_workers"
)
# What torch says (a pattern of its message) -> what is said. Tried in order.
SAYINGS = {
    r"DataLoader worker.*(exited unexpectedly|is killed by signal)|Pin memory thread exited unexpectedly": WORKER,
    r"unable to (open|allocate|resize|mmap).*shared memory|unable to open shared memory|No space left.*torch_": (
        f"the shared memory is full; {AGAIN}\nGive the container more (--shm-size=8g), or set train.num_workers=0"
    ),
    r"(?i)timed? ?out": (
        f"another process of this run did not answer within train.timeout_minutes; {AGAIN}\n"
        "If all were still at work, raise train.timeout_minutes"
    ),
    r"(?i)connection (closed|reset|refused)|broken pipe|socket (closed|error)|gloo.*(peer|pair)|NCCL.*(remote|abort)": (
        f"another process of this run has ended; its own message says why; {AGAIN}"
    ),
    r"does not have a deterministic implementation|CUBLAS_WORKSPACE_CONFIG": (
        "train.deterministic=true refuses an operation: {first}\n"
        "Choose another one, or set train.deterministic=false and accept that runs differ in the last bits"
    ),
}
MEMORY = (
    "out of memory: {first}\n"
    "Lower train.batch_size, or raise train.accumulation, and run again; what was saved before is kept"
)


def from_worker(error: BaseException) -> bool:
    """Return whether an error arose while reading what a data loading process sent: it died before torch noticed."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    reading = any(f.co_name == "_try_get_data" and f.co_filename.endswith("dataloader.py") for f in frames)
    gone = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return reading and (gone or str(error) == "got end of file during message")


def saying(error: BaseException) -> str | None:
    """Return what to say about an error that the machine caused; None for one that the code did."""
    lines = str(error).strip().splitlines()
    first = lines[0][:200] if lines else type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return MEMORY.format(first=first)
    if from_worker(error):
        return WORKER
    if not isinstance(error, RuntimeError | OSError) or isinstance(error, RunFailed):
        return None
    if re.search(r"can't allocate memory|Cannot allocate memory|out of memory", str(error)):
        return MEMORY.format(first=first)
    for pattern, text in SAYINGS.items():
        if re.search(pattern, str(error), re.DOTALL):
            return text.replace("{first}", first.split(". ")[0])
    return None


class WorkerDeaths:
    """Lets torch raise that a data loading process died only while a batch is read.

    torch raises it from its handler of SIGCHLD, so in whatever line the main process runs: one that saves a checkpoint
    would call it a full disk, and one that answers the first error of the dead worker would lose that answer.
    """

    def __init__(self) -> None:
        self.reading = self.missed = False
        self.torchs: Callable[[int, Any], Any] = lambda number, frame: None

    def listen(self) -> None:
        """Stand before torch's handler, which is set now: torch sets it once, with the first worker."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread set handlers
        signal_handling._set_SIGCHLD_handler()
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler is not self:
            self.torchs = handler
            signal.signal(signal.SIGCHLD, self)

    def __call__(self, number: int, frame: Any) -> None:
        """Answer SIGCHLD."""
        if self.reading:
            self.torchs(number, frame)
        else:
            self.missed = True

    def raise_missed(self) -> None:
        """Let torch raise what it would have raised while no batch was read, if that worker is still needed."""
        if self.missed:
            self.missed = False
            self.torchs(signal.SIGCHLD, None)


DEATHS = WorkerDeaths()


def read(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield the batches; that a data loading process died is raised here, as `explained` expects it."""
    iterator, end = iter(batches), object()
    while True:
        DEATHS.reading = True
        try:
            DEATHS.raise_missed()
            batch = next(iterator, end)
        finally:  # nothing but this: a call would let the handler in once more
            DEATHS.reading = False
        if batch is end:
            return
        yield batch


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error that the machine caused inside the block into a `RunFailed`; leave all others as they are.

    Raises:
        RunFailed: Memory ran out, a data loading process or another process of the run died or fell silent, or an
            operation is not deterministic where that was asked for. What was saved before is kept.
    """
    DEATHS.listen()
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | RunFailed):  # what makes a task wraps its errors
            if (text := saying(cause)) is not None:
                raise RunFailed(text) from error
            cause = cause.__cause__
        raise
