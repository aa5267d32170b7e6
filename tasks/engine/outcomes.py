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
