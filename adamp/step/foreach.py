"""The projected step of many tensors at once: few launches, no host read, one collective for sharded weights.

Moments and updates are computed by the optimizers; this module computes the rows' inner products, the decisions and
the step. The rows of all matrices of a batch lie in one vector, so that a decision costs the same for one matrix or a
hundred; the formulas themselves are those of `adamp.projection`, which work elementwise on such vectors.

The rows of a marked matrix are its slices, see `adamp.marks`.

Notation: `N` rows of all matrices of a batch on this process, `T` matrices, `R` rows and `C` entries per row of a
    single one, `s` step size, `x` decay of a step before its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamp.marks import num_slices, spread
from adamp.projection import (
    Products,
    RowSums,
    choose,
    decay_ratio,
    forced_decision,
    is_orthogonal,
    radial_coefficient,
    slice_sums,
    threshold,
)
from adamp.step.dtensor import Layout, sum_over_processes
from adamp.step.precision import write_back_all

CHUNK = 2**24  # entries whose products are held at once: they take memory, one more chunk takes four launches


@dataclass
class StepBuffers:
    """Tensors of one group, device, dtype and placement in one step.

    Attributes:
        options: The options of their group.
        weights: Weights in the compute dtype, of a sharded one this process's part; changed in place.
        grads: Gradients in the compute dtype, read only.
        updates: The updates, before the step size.
        can_overwrite_updates: Whether `updates` are neither gradients nor optimizer state.
        step_size: s, a float or a 0-d tensor on the weights' device, in their dtype.
        decay: x, likewise; None for no decay.
        matrices: Indices of the tensors that may be projected, sorted by their number of rows.
        layout: The distribution of the tensors over processes.
        write_backs: Pairs of the optimizer's tensors and their compute dtype, written back at the end.
        projected: Momentum buffers that become the projected update, one for each parameter, or None.
    """

    options: Mapping[str, Any]
    weights: list[Tensor]
    grads: list[Tensor]
    updates: list[Tensor]
    can_overwrite_updates: bool
    step_size: float | Tensor
    decay: float | Tensor | None
    matrices: list[int]
    layout: Layout
    write_backs: list[tuple[list[Tensor], list[Tensor]]]
    projected: list[Tensor] | None = None

    @property
    def is_tested(self) -> bool:
        """Whether gradients decide on the projection, rather than the group's `scale_invariant`."""
        return bool(self.options["scale_invariant"] == "auto")

    def row_lengths(self) -> list[int]:
        """Return C of each matrix."""
        return [math.prod(self.layout.global_shapes[i][1:]) for i in self.matrices]

    def split_by_matrix(self, rows: Tensor) -> list[Tensor]:
        """Split one value per row, (N,), into one tensor per matrix that broadcasts over it."""
        mode, shapes = self.options["scale_invariant"], [self.weights[i].shape for i in self.matrices]
        parts = torch.split(rows, [num_slices(shape, mode) for shape in shapes])
        return [spread(part, shape, mode) for part, shape in zip(parts, shapes, strict=True)]


def apply_batches_(batches: Sequence[StepBuffers]) -> None:
    """Decide for every matrix, project the updates and set `w <- w - (s q + x r w)`, rounded once.

    The processes that share sharded weights must all call this with the same batches.
    """
    # Inner products of the rows of weight, gradient and update
    products = {i: _row_products(batch) for i, batch in enumerate(batches) if batch.matrices}

    # One all-reduce for every sharded matrix of the batches: for rows split over processes the rows' products, for
    # whole rows the sums over each matrix. Only batches with both kinds of sharding need a second one.
    split_rows = [i for i in products if batches[i].layout.within_rows]
    whole_rows = [i for i in products if not batches[i].layout.within_rows]
    sums = {i: _matrix_sums(batches[i], products[i]) for i in whole_rows if batches[i].is_tested}
    sum_over_processes(
        [(products[i], batches[i].layout.within_rows) for i in split_rows]
        + [(sums[i], batches[i].layout.across_rows) for i in sums]
    )
    late = {i: _matrix_sums(batches[i], products[i]) for i in split_rows if batches[i].is_tested}
    sum_over_processes([(late[i], batches[i].layout.across_rows) for i in late])
    sums.update(late)

    # Projection, decay and the step itself
    for i, batch in enumerate(batches):
        _apply_(batch, products.get(i), sums.get(i))


def _row_products(batch: StepBuffers) -> Tensor:
    """Return w·g, w·w, g·g and w·u of every row, (4, N); if the decision is forced w·w and w·u alone, (2, N)."""
    ws, gs, us = ([xs[i] for i in batch.matrices] for xs in (batch.weights, batch.grads, batch.updates))
    mode = batch.options["scale_invariant"]

    def row_dots(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        # Of each pair of matrices (R,), see `adamp.projection.slice_dot`
        sums: list[Tensor] = []
        for part in _chunks(a):
            sums += [slice_sums(x, mode) for x in torch._foreach_mul(a[part], b[part])]
        return sums

    if not batch.is_tested:
        return torch.cat(row_dots(ws, ws) + row_dots(ws, us)).view(2, -1)
    return torch.cat(row_dots(ws, gs) + row_dots(ws, ws) + row_dots(gs, gs) + row_dots(ws, us)).view(4, -1)


def _chunks(xs: Sequence[Tensor]) -> Iterator[slice]:
    """Divide into neighbours of at most `CHUNK` entries, or a single tensor."""
    start, size = 0, 0
    for index, x in enumerate(xs):
        if size and size + x.numel() > CHUNK:
            yield slice(start, index)
            start, size = index, 0
        size += x.numel()
    yield slice(start, len(xs))


class RowBlock(NamedTuple):
    """Neighbouring matrices with equally many rows: `matrices` of the T, whose R `rows` each are `span` of the N."""

    matrices: slice
    span: slice
    rows: int


def _row_blocks(batch: StepBuffers) -> list[RowBlock]:
    # The rows of one block form an (n, R) matrix, and a sum over a matrix is a sum over the last dimension, in fixed
    # order. Sums by index (index_add, scatter) are not deterministic on a GPU.
    blocks, start, first = [], 0, 0
    for rows, members in groupby(batch.matrices, key=lambda i: batch.weights[i].shape[0]):
        stop = start + len(list(members))
        last = first + (stop - start) * rows
        blocks.append(RowBlock(slice(start, stop), slice(first, last), rows))
        start, first = stop, last
    return blocks


def _matrix_sums(batch: StepBuffers, products: Tensor) -> Tensor:
    """Return, summed over the rows of each matrix, those not below the threshold and the row products, (5, T)."""
    # Channel-wise test (eq. 11). Failures are counted, so that a row with a NaN cosine fails.
    limits = _thresholds(batch, batch.row_lengths(), [batch.weights[i].shape[0] for i in batch.matrices])
    below = is_orthogonal(RowSums(*products[:3]), limits, eps=batch.options["eps"])
    rows = torch.cat([(~below).to(products.dtype)[None], products])
    return torch.cat(
        [
            rows[:, block.span].reshape(5, block.matrices.stop - block.matrices.start, block.rows).sum(-1)
            for block in _row_blocks(batch)
        ],
        dim=1,
    )


def _thresholds(batch: StepBuffers, row_lengths: Sequence[int], repeats: Sequence[int]) -> Tensor:
    """Return `delta / sqrt(row length)` of each matrix, repeated; filled on the device, as a CUDA graph needs it."""
    weight = batch.weights[0]
    limits = torch.zeros(sum(repeats), dtype=weight.dtype, device=weight.device)
    delta = batch.options["delta"]
    per_matrix = list(torch.split(limits, list(repeats)))
    torch._foreach_add_(per_matrix, [threshold(delta, length) for length in row_lengths])
    return limits


def _coefficients(batch: StepBuffers, products: Tensor, sums: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Return for each row the `c` of the radial part `c w` and the factor of the decay, (N,) each."""
    eps, wd_ratio = batch.options["eps"], batch.options["wd_ratio"]
    if sums is None:
        ww, wu = products
        rows = Products(wu, ww)
        return radial_coefficient(forced_decision(True, ww.device), rows, rows, eps=eps), wd_ratio
    # Layer-wise test where the channel-wise one failed
    failures, wg, ww, gg, wu = sums
    lengths = [math.prod(batch.layout.global_shapes[i]) for i in batch.matrices]
    layer = is_orthogonal(RowSums(wg, ww, gg), _thresholds(batch, lengths, [1] * len(lengths)), eps=eps)
    decision = choose(failures == 0, layer)
    # Each row gets its matrix's decision and sums
    per_matrix = torch.stack([decision.to(ww.dtype), wu, ww])
    per_row = [
        per_matrix[:, block.matrices, None].expand(-1, -1, block.rows).reshape(3, -1) for block in _row_blocks(batch)
    ]
    decision, whole_wu, whole_ww = torch.cat(per_row, dim=1)
    rows, whole = Products(products[3], products[1]), Products(whole_wu, whole_ww)
    coefficient = radial_coefficient(decision, rows, whole, eps=eps)
    return coefficient, decay_ratio(decision, wd_ratio=wd_ratio, dtype=ww.dtype)


def _apply_(batch: StepBuffers, products: Tensor | None, sums: Tensor | None) -> None:
    """Subtract update and decay from the weights, given the products of the rows and their sums if tested."""
    weights, decay, steps = batch.weights, batch.decay, batch.updates
    if batch.can_overwrite_updates:
        torch._foreach_mul_(steps, batch.step_size)
    else:
        steps = list(torch._foreach_mul(steps, batch.step_size))
    # Vectors, scalars and matrices that are never projected: s u + x w
    unprojected = sorted(set(range(len(weights))) - set(batch.matrices))
    if unprojected and decay is not None:
        decays = torch._foreach_mul([weights[i] for i in unprojected], decay)
        torch._foreach_add_([steps[i] for i in unprojected], decays)
    # Projected matrices: s (u - c w) + x r w = s u - (s c - x r) w
    if products is not None:
        coefficient, ratio = _coefficients(batch, products, sums)
        factor = coefficient * batch.step_size
        if decay is not None:
            factor = factor - decay * ratio
        for i, f in zip(batch.matrices, batch.split_by_matrix(factor), strict=True):
            steps[i].addcmul_(f, weights[i], value=-1)
        if batch.projected is not None:
            for i, c in zip(batch.matrices, batch.split_by_matrix(coefficient), strict=True):
                batch.projected[i].addcmul_(c, weights[i], value=-1)
    torch._foreach_sub_(weights, steps)
    for targets, values in batch.write_backs:
        write_back_all(targets, values)
