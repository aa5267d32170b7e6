"""The oscillation metric Q: path length of a weight over its displacement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adamp.step.dtensor import gather, local, scatter
from adamp.step.precision import to_compute_dtype

_RESOLUTION = 2.0**-24  # of float32


class OscillationWindow:
    """Path length and displacement of every entry of some parameters over a window of consecutive steps.

    For entry i, `l_i = Σ_t |w_i(t+1) - w_i(t)|` and `d_i = |w_i(end) - w_i(start)|`. A window gives three
    values: the mean and the median of `q_i = l_i / d_i` over the entries that moved, and `Σ l_i / Σ d_i`. The
    mean is the metric of the AdaRem paper (Fig. 2); few entries with tiny `d_i` dominate it, which is why the
    other two are there. An entry that came back to its start counts with `q_i = 2^24`, the most that float32 resolves.

    Args:
        num_steps: Length of a window, 0 for none.
        parameters: The parameters to follow.

    Reference:
        "Adaptive Gradient Method with Resilience and Momentum", §4.
    """

    def __init__(self, num_steps: int, parameters: list[Tensor]) -> None:
        self._num_steps = num_steps
        self._parameters = parameters
        self._done = 0  # steps of the open window
        self._start: list[Tensor] = []  # empty between windows
        self._path: list[Tensor] = []
        self._last: list[Tensor] = []  # the weights after the previous step

    def before_step(self, *, may_start: bool) -> None:
        """Open a window if none is open and `may_start`."""
        if not self._num_steps or not (self._start or may_start):
            return
        if not self._start:
            self._done = 0
            self._start = [to_compute_dtype(local(p)).clone() for p in self._parameters]
            self._path = [torch.zeros_like(w) for w in self._start]
        if not self._last:  # at a window's start, or when it goes on after loading a state
            self._last = [to_compute_dtype(local(p)).clone() for p in self._parameters]

    def after_step(self) -> Tensor | None:
        """Add the step to the path lengths; at the window's end return mean, median and ratio, (3,)."""
        if not self._start:
            return None
        weights = [to_compute_dtype(local(p)) for p in self._parameters]
        torch._foreach_sub_(self._last, weights)
        torch._foreach_abs_(self._last)
        torch._foreach_add_(self._path, self._last)
        torch._foreach_copy_(self._last, weights)
        self._done += 1
        if self._done < self._num_steps:
            return None
        values = self._values()
        self._start, self._path, self._last = [], [], []
        return values

    def _values(self) -> Tensor:
        device = self._start[0].device
        ends = (to_compute_dtype(local(p)) for p in self._parameters)
        distances = [(w - s).abs() for w, s in zip(ends, self._start, strict=True)]
        moved, path = (
            torch.cat([gather(x, p).flatten().to(device) for x, p in zip(parts, self._parameters, strict=True)])
            for parts in (distances, self._path)
        )
        q = path / torch.maximum(moved, path * _RESOLUTION)  # NaN for 0 / 0, left out below
        return torch.stack([q.nanmean(), q.nanmedian(), path.sum() / moved.sum()])

    def state_dict(self) -> dict[str, Any]:
        """Return the open window, of sharded parameters as whole tensors."""
        start, path = (
            [gather(x, p) for x, p in zip(parts, self._parameters, strict=False)] for parts in (self._start, self._path)
        )
        return {"done": self._done, "start": start, "path": [x.clone() for x in path]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore an open window."""
        self._done = state["done"]
        for key in ("start", "path"):
            pairs = zip(state[key], self._parameters, strict=False)
            tensors = [scatter(x.to(p.device, copy=True), p).clone() for x, p in pairs]
            setattr(self, f"_{key}", tensors)
        self._last = []
