"""Progress of a run on standard error: a bar in a terminal, timed plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two plain lines when standard error is not a terminal


class ProgressBar:
    """Progress over all optimizer steps of a run, on process 0.

    Args:
        total: Optimizer steps of the whole run.
        done: Steps done before this process started.
        batch_size: Global batch, for the throughput.
        visible: False prints nothing.
    """

    def __init__(self, total: int, *, done: int, batch_size: int, visible: bool) -> None:
        self.total, self.batch_size, self.visible = total, batch_size, visible
        self.first_step, self.started = done, time.monotonic()
        self.last_line = self.started
        self.bar: Any = None
        if visible and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, mininterval=0.5, smoothing=0.05)

    def step(self) -> None:
        """Count one optimizer step."""
        if self.bar is not None:
            self.bar.update(1)

    def rate(self, step: int) -> float:
        """Return examples per second since this process started."""
        return (step - self.first_step) * self.batch_size / max(time.monotonic() - self.started, 1e-9)

    def seconds(self) -> float:
        """Return seconds since this process started."""
        return time.monotonic() - self.started

    def show(self, step: int, *, epoch: float, loss: float | None, lr: float) -> None:
        """Show loss, learning rate and throughput: on the bar, or as a line every `LINE_SECONDS`."""
        if not self.visible:
            return
        values = {"lr": f"{lr:.2g}", "examples/s": f"{self.rate(step):.0f}"}
        if loss is not None:
            values = {"loss": f"{loss:.3f}", **values}
        if self.bar is not None:
            self.bar.set_postfix(values, refresh=False)
        elif time.monotonic() - self.last_line >= LINE_SECONDS:
            self.last_line = time.monotonic()
            left = self.seconds() / max(step - self.first_step, 1) * (self.total - step)
            text = "  ".join(f"{key} {value}" for key, value in values.items())
            self.say(f"step {step}/{self.total}  epoch {epoch:.2f}  {text}  {_clock(left)} left")

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.visible:
            tqdm.write(text, file=sys.stderr)
            sys.stderr.flush()

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self.bar is not None:
            self.bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
