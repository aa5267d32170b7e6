"""The projected step of many tensors at once: few launches, no host read, one collective for sharded weights.

Moments and updates are computed by the optimizers; here are the rows' inner products, the decisions and the step. The
rows of all matrices of a batch lie in one vector, so that a decision costs the same for one matrix or a hundred; the
formulas themselves are those of `adamp.projection`, which work entry by entry on such vectors.

Letters: `N` rows of all matrices of a batch on this process, `T` matrices, `R` rows and `C` entries a row of a single
    one, `s` step size, `x` decay of a step before its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamp.projection import (
    CHANNEL,
    Products,
    RowSums,
    choose,
    decay_ratio,
    is_orthogonal,
    radial_coefficient,
)
from adamp.step.dtensor import Layout, sum_over_processes
from adamp.step.precision import store_all

CHUNK = 2**24  # entries whose products are held at once: they take memory, one more chunk takes four launches


class Run(NamedTuple):
    """Neighbouring matrices with equally many rows: `[start, stop)` of the T, `[first, last)` of their N rows."""

    start: int
    stop: int
    first: int
    last: int
    rows: int
    global_rows: int


@dataclass
class Batch:
    """Tensors of one group, device, dtype and placement on their way through a step.

    Attributes:
        options: Their group's options.
        weights: Weights in working precision, of a sharded one this process's part; changed in place.
        grads: Gradients in working precision; only read.
        updates: What is to be subtracted, times `step_size`.
        disposable: Whether `updates` may be written to, as they are neither gradients nor a state.
        step_size: s, a float or a 0-d tensor on the weights' device, in their dtype.
        decay: x, likewise; None for no decay.
        matrices: Which of the tensors may be projected.
        layout: How they are spread over processes.
        owned: What the optimizer holds, each beside its working precision, which is written back at the end.
        projected: Momentum that is to become the projected update, one for each parameter, or None.
    """

    options: Mapping[str, Any]
    weights: list[Tensor]
    grads: list[Tensor]
    updates: list[Tensor]
    disposable: bool
    step_size: float | Tensor
    decay: float | Tensor | None
    matrices: list[int]
    layout: Layout
    owned: list[tuple[list[Tensor], list[Tensor]]]
    projected: list[Tensor] | None = None
    runs: list[Run] = field(init=False)
    stats: Tensor = field(init=False)  # (4, N): w·g times sqrt(C), w·w, g·g, w·u; or (2, N): w·w, w·u
    totals: Tensor = field(init=False)  # (5, T): rows not below the threshold, Σw·g times sqrt(R C), Σw·w, Σg·g, Σw·u

    @property
    def tested(self) -> bool:
        """Whether gradients decide, rather than the group's mark."""
        return bool(self.options["scale_invariant"] == "auto")


def descend_together(batches: Sequence[Batch]) -> None:
    """Decide for every matrix, project the updates and set `w <- w - (s q + x r w)`, in one rounding.

    The processes that share sharded weights must all call this with the same batches.
    """
    for batch in batches:
        _sort_by_rows(batch)
        if batch.matrices:
            _sum_rows(batch)
    projecting = [batch for batch in batches if batch.matrices]
    # Rows split over processes are completed first, whole tensors then. In the usual case, all weights sharded along a
    # single dimension of the mesh, the first call carries everything and the second nothing.
    late = [batch for batch in projecting if batch.layout.within_rows]
    early = [batch for batch in projecting if not batch.layout.within_rows]
    for batch in early:
        _sum_tensors(batch)
    sum_over_processes(
        [(batch.stats, batch.layout.within_rows) for batch in late]
        + [(batch.totals, batch.layout.across_rows) for batch in early if batch.tested]
    )
    for batch in late:
        _sum_tensors(batch)
    sum_over_processes([(batch.totals, batch.layout.across_rows) for batch in late if batch.tested])
    for batch in batches:
        _descend(batch)


def _sort_by_rows(batch: Batch) -> None:
    # Equal numbers of rows side by side: their rows are then one (n, R) block, and a tensor's sum is a sum over its
    # last dimension, in fixed order. Sums by index (index_add, scatter) are not deterministic on a GPU.
    shapes = batch.layout.global_shapes

    def rows(index: int) -> tuple[int, int]:
        return batch.weights[index].shape[0], shapes[index][0]

    batch.matrices.sort(key=rows)
    batch.runs, start, first = [], 0, 0
    for (local, total), members in groupby(batch.matrices, key=rows):
        size = len(list(members))
        batch.runs.append(Run(start, start + size, first, first + size * local, local, total))
        start, first = start + size, first + size * local


def _dots(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """Return the inner products of the rows of each pair of matrices, each (R,); see `adamp.projection.row_dot`."""
    sums: list[Tensor] = []
    for part in _chunks(a):
        products = torch._foreach_mul(a[part], b[part])
        sums += [x.sum(dim=tuple(range(1, x.ndim))) for x in products]
    return sums


def _chunks(xs: Sequence[Tensor]) -> Iterator[slice]:
    """Divide into neighbours of at most `CHUNK` entries, or a single tensor."""
    start, size = 0, 0
    for index, x in enumerate(xs):
        if size and size + x.numel() > CHUNK:
            yield slice(start, index)
            start, size = index, 0
        size += x.numel()
    yield slice(start, len(xs))


def _sum_rows(batch: Batch) -> None:
    ws, gs, us = ([xs[i] for i in batch.matrices] for xs in (batch.weights, batch.grads, batch.updates))
    if not batch.tested:
        batch.stats = torch.cat(_dots(ws, ws) + _dots(ws, us)).view(2, -1)
        return
    wg = _dots(ws, gs)
    lengths = (math.prod(batch.layout.global_shapes[i][1:]) for i in batch.matrices)
    torch._foreach_mul_(wg, [math.sqrt(length) for length in lengths])
    batch.stats = torch.cat(wg + _dots(ws, ws) + _dots(gs, gs) + _dots(ws, us)).view(4, -1)


def _sum_tensors(batch: Batch) -> None:
    if not batch.tested:
        return
    wg, ww, gg, _ = batch.stats
    below = is_orthogonal(RowSums(wg, ww, gg), 1, delta=batch.options["delta"], eps=batch.options["eps"])
    rows = torch.cat([(~below).to(wg.dtype)[None], batch.stats])  # counted, so that NaN is not below and stays out
    parts = [rows[:, run.first : run.last].reshape(5, run.stop - run.start, run.rows).sum(-1) for run in batch.runs]
    torch._foreach_mul_([part[1] for part in parts], [math.sqrt(run.global_rows) for run in batch.runs])
    batch.totals = torch.cat(parts, dim=1)


def _coefficients(batch: Batch) -> tuple[Tensor, Tensor | float]:
    """Return for each row the `c` of the radial part `c w` and the factor of the decay, (N,) each."""
    eps, wd_ratio = batch.options["eps"], batch.options["wd_ratio"]
    if not batch.tested:
        ww, wu = batch.stats
        forced = torch.full((), CHANNEL, device=ww.device)
        products = Products(wu, ww)
        return radial_coefficient(forced, products, products, eps=eps), wd_ratio
    outside, wg, ww, gg, wu = batch.totals
    layer = is_orthogonal(RowSums(wg, ww, gg), 1, delta=batch.options["delta"], eps=eps)
    decision = choose(outside == 0, layer)
    per_tensor = torch.stack([decision.to(ww.dtype), wu, ww])
    spread = [per_tensor[:, run.start : run.stop, None].expand(-1, -1, run.rows).reshape(3, -1) for run in batch.runs]
    decision, whole_wu, whole_ww = torch.cat(spread, dim=1)
    rows, whole = Products(batch.stats[3], batch.stats[1]), Products(whole_wu, whole_ww)
    coefficient = radial_coefficient(decision, rows, whole, eps=eps)
    return coefficient, decay_ratio(decision, wd_ratio=wd_ratio, dtype=ww.dtype)


def _per_matrix(batch: Batch, rows: Tensor) -> list[Tensor]:
    """Split a value a row, (N,), into one tensor for each matrix that broadcasts over it, (R, 1, ..., 1)."""
    weights = [batch.weights[i] for i in batch.matrices]
    parts = torch.split(rows, [w.shape[0] for w in weights])
    return [part.view(-1, *[1] * (w.ndim - 1)) for part, w in zip(parts, weights, strict=True)]


def _descend(batch: Batch) -> None:
    weights, decay = batch.weights, batch.decay
    steps = batch.updates
    if batch.disposable:
        torch._foreach_mul_(steps, batch.step_size)
    else:
        steps = list(torch._foreach_mul(steps, batch.step_size))
    plain = sorted(set(range(len(weights))) - set(batch.matrices))
    if plain and decay is not None:
        torch._foreach_add_([steps[i] for i in plain], torch._foreach_mul([weights[i] for i in plain], decay))
    if batch.matrices:
        coefficient, ratio = _coefficients(batch)
        # s (u - c w) + x r w = s u - (s c - x r) w
        factor = coefficient * batch.step_size
        if decay is not None:
            factor = factor - decay * ratio
        for i, f in zip(batch.matrices, _per_matrix(batch, factor), strict=True):
            steps[i].addcmul_(f, weights[i], value=-1)
        if batch.projected is not None:
            for i, c in zip(batch.matrices, _per_matrix(batch, coefficient), strict=True):
                batch.projected[i].addcmul_(c, weights[i], value=-1)
    torch._foreach_sub_(weights, steps)
    for targets, values in batch.owned:
        store_all(targets, values)
