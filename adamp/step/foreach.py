"""The projected step of many tensors at once: few launches, no host read, one collective for sharded weights.

Moments and updates are computed by the optimizers; this module computes the rows' inner products, the decisions and
the step. The rows of all matrices of a batch lie in one vector, so that a decision costs the same for one matrix or a
hundred; the formulas themselves are those of `adamp.projection`, which work elementwise on such vectors.

The rows of a marked matrix are its slices, see `adamp.marks`. On a GPU, where a launch costs more than a short sum, all
matrices with rows of one length are summed, and later updated, in common buffers.

Notation: `N` rows of all matrices of a batch on this process, `T` matrices, `R` rows and `C` entries per row of a
    single one, `s` step size, `x` decay of a step before its ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamp.marks import num_slices, spread
from adamp.projection import (
    CHANNEL,
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
from adamp.step.precision import as_real, write_back_all

CHUNK = 2**24  # entries whose products are held at once: they take memory, one more chunk takes more launches


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
        compensations: What rounding has taken from each weight, in the compute dtype, or None.
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
    compensations: list[Tensor] | None = None

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


def _shares_buffers(batch: StepBuffers) -> bool:
    """Return whether matrices with equally long rows are summed together: on a GPU, where all rows are dense.

    On the CPU each matrix is summed alone; torch.compile fuses such sums itself.
    """
    mode, matrices = batch.options["scale_invariant"], batch.matrices
    if not _launches_are_dear(batch.weights[0].device) or not (isinstance(mode, bool) or mode == "auto"):
        return False
    return all(
        _has_dense_rows(batch.weights[i]) and _strides(batch.weights[i]) == _strides(xs[i])
        for xs in (batch.grads, batch.updates)
        for i in matrices
    )


def _launches_are_dear(device: torch.device) -> bool:
    return device.type != "cpu" and not torch.compiler.is_compiling()


def _strides(x: Tensor) -> list[int]:
    # The stride of a dimension of size 1 means nothing
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1]


def _has_dense_rows(x: Tensor) -> bool:
    """Return whether rows follow each other in memory without a gap: contiguous or channels-last matrices."""
    if x.is_contiguous():
        return True
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _rows_in_buffer(buffer: Tensor, xs: Sequence[Tensor]) -> list[Tensor]:
    """Return consecutive parts of a buffer with the shapes and strides of some tensors."""
    parts = torch.split(buffer, [x.numel() for x in xs])
    return [part.as_strided(x.shape, x.stride(), part.storage_offset()) for part, x in zip(parts, xs, strict=True)]


def _row_products(batch: StepBuffers) -> Tensor:
    """Return w·g, w·w, g·g and w·u of every row, (4, N); if the decision is forced w·w and w·u alone, (2, N)."""
    ws, gs, us = ([xs[i] for i in batch.matrices] for xs in (batch.weights, batch.grads, batch.updates))
    mode = batch.options["scale_invariant"]
    if _shares_buffers(batch):
        pairs = [(ws, gs), (ws, ws), (gs, gs), (ws, us)] if batch.is_tested else [(ws, ws), (ws, us)]
        return _shared_row_products(pairs)

    def row_dots(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
        # Of each pair of matrices (R,), see `adamp.projection.slice_dot`
        sums: list[Tensor] = []
        for part in _chunks(a):
            sums += [slice_sums(x, mode) for x in torch._foreach_mul(a[part], b[part])]
        return sums

    if not batch.is_tested:
        return torch.cat(row_dots(ws, ws) + row_dots(ws, us)).view(2, -1)
    return torch.cat(row_dots(ws, gs) + row_dots(ws, ws) + row_dots(gs, gs) + row_dots(ws, us)).view(4, -1)


def _shared_row_products(pairs: Sequence[tuple[list[Tensor], list[Tensor]]]) -> Tensor:
    """Return the inner products of the rows of K pairs of lists of matrices, (K, N), with one sum per row length."""
    kinds, matrices = len(pairs), pairs[0][0]
    order = sorted(range(len(matrices)), key=lambda i: _row_length(matrices[i]))
    sums: dict[int, Tensor] = {}  # matrix -> (K, R)
    for part in _chunks([matrices[i] for i in order]):
        members = order[part]
        # Products of one length of rows lie together, (K, n, C)
        buffers: list[tuple[list[int], list[int], Tensor]] = []
        targets: list[list[Tensor]] = [[] for _ in range(kinds)]
        for length, run in groupby(members, key=lambda i: _row_length(matrices[i])):
            same_length = list(run)
            rows = [matrices[i].shape[0] for i in same_length]
            buffer = matrices[0].new_empty(kinds, sum(rows), length)
            buffers.append((same_length, rows, buffer))
            for kind in range(kinds):
                targets[kind] += _rows_in_buffer(buffer[kind].view(-1), [matrices[i] for i in same_length])
        products = list(chain.from_iterable(targets))
        torch._foreach_copy_(products, [xs[i] for xs, _ in pairs for i in members])
        torch._foreach_mul_(products, [xs[i] for _, xs in pairs for i in members])
        for same_length, rows, buffer in buffers:
            sums.update(zip(same_length, torch.split(buffer.sum(-1), rows, dim=1), strict=True))
    return torch.cat([sums[i] for i in range(len(matrices))], dim=1)


def _row_length(x: Tensor) -> int:
    return x.shape[1:].numel()


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
    columns = zip(torch.split(per_matrix, 1, dim=1), batch.matrices, strict=True)
    per_row = [column.expand(-1, batch.weights[i].shape[0]) for column, i in columns]
    decision, whole_wu, whole_ww = torch.cat(per_row, dim=1)
    by_row = decision == CHANNEL
    deciding = Products(torch.where(by_row, products[3], whole_wu), torch.where(by_row, products[1], whole_ww))
    coefficient = radial_coefficient(decision, deciding, deciding, eps=eps)
    return coefficient, decay_ratio(decision, wd_ratio=wd_ratio, dtype=ww.dtype)


def _subtract_rows_(batch: StepBuffers, targets: Sequence[Tensor], per_row: Tensor) -> None:
    """Subtract from each target matrix its weight, each row times a factor, `per_row` (N,)."""
    weights, matrices = batch.weights, batch.matrices
    if not _shares_buffers(batch):
        for i, factor in zip(matrices, batch.split_by_matrix(per_row), strict=True):
            targets[i].addcmul_(factor, weights[i], value=-1)
        return
    # The factor of each entry, so that one launch takes matrices of all shapes
    order = sorted(range(len(matrices)), key=lambda k: _row_length(weights[matrices[k]]))
    members = [matrices[k] for k in order]
    parts = torch.split(per_row, [weights[i].shape[0] for i in matrices])
    sorted_rows = torch.cat([parts[k] for k in order])
    factors = per_row.new_empty(sum(weights[i].numel() for i in members))
    row = entry = 0
    for length, run in groupby(members, key=lambda i: _row_length(weights[i])):
        rows = sum(weights[i].shape[0] for i in run)
        target = factors[entry : entry + rows * length].view(rows, length)
        target.copy_(sorted_rows[row : row + rows, None])
        row, entry = row + rows, entry + rows * length
    same_shape = _rows_in_buffer(factors, [weights[i] for i in members])
    torch._foreach_addcmul_([targets[i] for i in members], same_shape, [weights[i] for i in members], value=-1)


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
        _subtract_rows_(batch, steps, factor)
        if batch.projected is not None:
            _subtract_rows_(batch, batch.projected, coefficient)
    if batch.compensations is None:
        torch._foreach_sub_(weights, steps)
    else:
        _subtract_compensated_(batch, steps, batch.compensations)
    for targets, values in batch.write_backs:
        write_back_all(targets, values)


def _subtract_compensated_(batch: StepBuffers, steps: list[Tensor], lost: list[Tensor]) -> None:
    """Subtract the steps from the weights by Kahan's summation, see `adamp.step.precision.subtract_compensated_`."""
    weights, (stored, _) = batch.weights, batch.write_backs[0]
    torch._foreach_sub_(steps, lost)
    rounded = list(torch._foreach_sub(weights, steps))
    low = [torch.empty_like(x, dtype=as_real(like).dtype) for x, like in zip(rounded, stored, strict=True)]
    torch._foreach_copy_(low, rounded)
    torch._foreach_copy_(rounded, low)
    torch._foreach_copy_(lost, weights)
    torch._foreach_sub_(lost, rounded)
    torch._foreach_sub_(lost, steps)
    torch._foreach_copy_(weights, rounded)
