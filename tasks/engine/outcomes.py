"""How a run can end other than well. Free of torch, so that a command line can be answered before torch is loaded."""

from __future__ import annotations

import signal


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop, and can be resumed
    """The run saved a checkpoint and stopped because a signal asked for it.

    Attributes:
        code: Exit code for the shell, 128 + signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.code = 128 + number


class RunFailed(RuntimeError):  # noqa: N818 - "failed" is the status in the record
    """The run cannot go on, e.g. because its loss is not finite. One or two lines; what was saved before is kept."""


class Diverged(RunFailed):
    """The loss or a weight is not finite: a result, which a table shows as "failed".

    Attributes:
        step: First optimizer step where it was not finite, counted from 1.
    """

    step: int = 0

    @classmethod
    def at(
        cls, step: int, what: str = "the loss is not finite", *, epoch: float, lr: float, kept: object = None
    ) -> Diverged:
        """Return the error of a run that has just diverged."""
        error = cls(
            f"{what} at step {step} (epoch {epoch:.2f}); "
            f"lower opt.lr (now {lr:g}), or clip with train.clip_norm\n"
            f"Last good checkpoint: {kept or 'none was due yet'}"
        )
        error.step = step
        return error

    @classmethod
    def recorded(cls, error: str, folder: object) -> Diverged:
        """Return the error of a run that diverged when it was run before."""
        return cls(f"{error.splitlines()[0]}\nIt was run before, and diverges again; to run it anew move {folder} away")
