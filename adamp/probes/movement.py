"""Length and direction of each filter's movement in a step, from inner products alone.

Notation: `R` rows (filters) of a weight, `w0` and `w1` the weight before and after the step, `g` its gradient,
`d = w1 - w0`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BLOCK = 1 << 19  # entries: blocks of 2 MiB stay in a CPU's cache between products; smaller ones cost more calls


class Movement(NamedTuple):
    """Inner products of the rows of a weight, each (R,); `wg` and `gg` are zeros without a gradient."""

    ww0: Tensor
    ww1: Tensor
    dd: Tensor
    w1d: Tensor
    wg: Tensor
    gg: Tensor


class StepGeometry:
    """Computes `Movement`; keeps the memory of its intermediate products, which is slow to allocate on a CPU."""

    def __init__(self) -> None:
        self._scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, w0: Tensor, w1: Tensor, g: Tensor | None) -> Movement:
        """Return the inner products of a real weight's rows, (R,) each. Overwrites `w0` with `d`."""
        rows, row_length = w0.shape[0], max(1, w0.shape[1:].numel())
        height = max(1, _BLOCK // row_length if w0.device.type == "cpu" else rows)
        blocks = [
            self._block(w0[k : k + height], w1[k : k + height], None if g is None else g[k : k + height])
            for k in range(0, max(rows, 1), height)  # a process without a row has one empty block
        ]
        n0, n1, nd, w1d, wg, ng = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return Movement(ww0=n0.square(), ww1=n1.square(), dd=nd.square(), w1d=w1d, wg=wg, gg=ng.square())

    def _block(self, w0: Tensor, w1: Tensor, g: Tensor | None) -> tuple[Tensor, ...]:
        """Return `‖w0‖`, `‖w1‖`, `‖d‖`, `w1·d`, `w0·g` and `‖g‖` of some rows."""
        n0 = row_norms(w0)
        none = torch.zeros_like(n0)
        wg, ng = (none, none) if g is None else (self._dot(w0, g), row_norms(g))
        d = torch.sub(w1, w0, out=w0)
        return n0, row_norms(w1), row_norms(d), self._dot(w1, d), wg, ng

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        key = (a.device, a.dtype)
        if key not in self._scratch or self._scratch[key].numel() < a.numel():
            self._scratch[key] = torch.empty(a.numel(), device=a.device, dtype=a.dtype)
        products = self._scratch[key][: a.numel()].view(a.shape)
        return torch.mul(a, b, out=products).sum(dim=tuple(range(1, a.ndim)))


MovementMeter = StepGeometry  # the name in older pickles


def row_norms(x: Tensor) -> Tensor:
    """Return the norm of each row of `x`, (R,)."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)))
    return norms


def direction_change(rows: Movement) -> Tensor:
    """Return `‖w1/‖w1‖ - w0/‖w0‖‖` of each row, (R,); 0 for a row that is zero before or after.

    The effective step size of §2.2 of the AdamP paper, measured exactly. With a = w1·d its square is
    `2 (‖d‖² ‖w1‖² - a²) / (‖w0‖ ‖w1‖ (‖w0‖ ‖w1‖ + w0·w1))`. The direct form, 2 - 2 cos, cannot resolve changes below
    3e-4 in float32; it is used beyond a right angle, where the first one fails. The first form loses changes below 3e-4
    of the row's whole movement `‖d‖ / ‖w1‖` in float32.
    """
    norms = rows.ww0.sqrt() * rows.ww1.sqrt()
    dot = rows.ww1 - rows.w1d  # w0·w1
    # Squared length of the part of d orthogonal to w1
    tangential = (rows.dd - rows.w1d * (rows.w1d / rows.ww1)).clamp(min=0)
    near = 2 * tangential * (rows.ww1 / norms) / (norms + dot)
    far = 2 - 2 * (dot / norms).clamp(min=-1)
    return torch.where(norms == 0, 0, torch.where(dot > 0, near, far)).sqrt()
