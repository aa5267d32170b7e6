"""Errors that end a run, and the translation of machine failures into them.

Free of torch at import, so that a command line can be answered before torch is loaded.
"""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tasks.base import InputError
from tasks.engine.signals import STOP, SignalRequests


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can be resumed
    """The run stopped because a signal asked for it, with a checkpoint unless it waited for data.

    Attributes:
        code: Exit code for the shell, 128 + signal number.
        saved: Whether a checkpoint of its last step was saved.
    """

    def __init__(self, number: int, *, saved: bool = True) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + ("" if saved else " while it waited for data"))
        self.code, self.saved = 128 + number, saved


class RunFailed(RuntimeError):  # noqa: N818 - "failed" is the status in the record
    """The run cannot go on, e.g. because its loss is not finite. One or two lines; checkpoints are kept."""


class Diverged(RunFailed):
    """The loss or a weight is not finite: a result, which a table shows as "failed".

    Attributes:
        step: First optimizer step where it was not finite, counted from 1.
    """

    step: int = 0

    @classmethod
    def at(
        cls, step: int, what: str = "the loss is not finite", *, epoch: float, lr: float, last_checkpoint: object = None
    ) -> Diverged:
        """Return the error of a run that has just diverged."""
        error = cls(
            f"{what} at step {step} (epoch {epoch:.2f}); "
            f"lower opt.lr (now {lr:g}), or clip with train.clip_norm\n"
            f"Last good checkpoint: {last_checkpoint or 'none was due yet'}"
        )
        error.step = step
        return error

    @classmethod
    def recorded(cls, error: str, folder: object) -> Diverged:
        """Return the error of a run that diverged when it was run before."""
        return cls(f"{error.splitlines()[0]}\nIt was run before, and diverges again; to run it anew move {folder} away")


ANOTHER = "another process of this run"
RESUMES = "the same command goes on from the last checkpoint"
WORKER_DIED = (
    f"a data loading process was killed; {RESUMES}\n"
    "If it comes back: too little memory or shared memory (make doctor); lower train.num_workers"
)
# Pattern of torch's message -> message for the user; the first match wins
TRANSLATIONS = {
    r"DataLoader worker.*(exited unexpectedly|is killed by signal)|Pin memory thread exited unexpectedly": WORKER_DIED,
    r"unable to (open|allocate|resize|mmap).*shared memory|unable to open shared memory|No space left.*torch_": (
        f"the shared memory is full; {RESUMES}\nGive the container more (--shm-size=8g), or set train.num_workers=0"
    ),
    r"(?i)timed? ?out": (
        f"{ANOTHER} did not answer within train.timeout_minutes; {RESUMES}\n"
        "If all were still at work, raise train.timeout_minutes"
    ),
    r"(?i)connection (closed|reset|refused)|broken pipe|socket (closed|error)|gloo.*(peer|pair)|NCCL.*(remote|abort)": (
        f"{ANOTHER} has ended; its own message says why; {RESUMES}"
    ),
    r"does not have a deterministic implementation|CUBLAS_WORKSPACE_CONFIG": (
        "train.deterministic=true refuses an operation: {first}\n"
        "Choose another one, or set train.deterministic=false and accept that runs differ in the last bits"
    ),
}
OUT_OF_MEMORY = (
    "out of memory: {first}\n"
    "Lower train.batch_size, or raise train.accumulation, and run again; what was saved before is kept"
)


def is_from_worker(error: BaseException) -> bool:
    """Return whether an error arose while reading from a data loading process: it died before torch noticed."""
    frames = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    reading = any(f.co_name == "_try_get_data" and f.co_filename.endswith("dataloader.py") for f in frames)
    gone = isinstance(error, ConnectionError | EOFError | FileNotFoundError)
    return reading and (gone or str(error) == "got end of file during message")


def end_of_wait(signals: SignalRequests, minutes: float, *, save: Callable[[], None] | None) -> Exception:
    """Return the error that ends a run whose next batch does not come.

    Args:
        signals: Whether one asked to stop.
        minutes: `train.timeout_minutes`.
        save: Writes a checkpoint of the last step; None where none can be written.
    """
    if signals.pending != STOP:
        return RunFailed(
            f"no batch came within train.timeout_minutes={minutes:g}; {RESUMES}\n"
            "Does the disk of the data answer? Slow data need a longer train.timeout_minutes"
        )
    if save is not None:
        save()
    return Stopped(signals.number, saved=save is not None)


def machine_failure(error: BaseException) -> str | None:
    """Return the message for an error that the machine caused; None for an error of the code."""
    import torch  # loaded by now

    lines = str(error).strip().splitlines()
    first = lines[0][:200] if lines else type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return OUT_OF_MEMORY.format(first=first)
    if is_from_worker(error):
        return WORKER_DIED
    if not isinstance(error, RuntimeError | OSError) or isinstance(error, RunFailed):
        return None
    if re.search(r"can't allocate memory|Cannot allocate memory|out of memory", str(error)):
        return OUT_OF_MEMORY.format(first=first)
    for pattern, text in TRANSLATIONS.items():
        if re.search(pattern, str(error), re.DOTALL):
            return text.replace("{first}", first.split(". ")[0])
    return None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn an error that the machine caused inside the block into a `RunFailed`; leave all others as they are.

    Raises:
        RunFailed: Out of memory, a data loading process or another process of the run died or hangs, or an
            operation is not deterministic although `train.deterministic` is set. Checkpoints are kept.
    """
    from tasks.engine.dead_workers import DEATHS  # loads torch

    DEATHS.listen()
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError | RunFailed):  # what makes a task wraps its errors
            if (text := machine_failure(cause)) is not None:
                raise RunFailed(text) from error
            cause = cause.__cause__
        raise
