"""The scale-invariance test and the radial projection: the one place of both formulas.

Notation: `R` rows (output channels, the first dimension), `C` entries per row, `w` weight, `g` gradient, `u` update.

Every function is out of place, works on any strides and never synchronises with the host: decisions are 0-d tensors,
and `torch.where` selects between both outcomes. Half precision is computed in float32, a complex weight as its real
and imaginary parts (rows of `2 C` real numbers).

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", eqs.
    9-11, Algorithms 1 and 2. https://arxiv.org/abs/2006.08217
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adamp.marks import ScaleInvariantMode, slices_first, spread
from adamp.step.precision import as_dtype_of, as_real, to_compute_dtype

View = Callable[[Tensor], Tensor]

NONE, CHANNEL, LAYER = 0, 1, 2  # the values of a decision


class RowSums(NamedTuple):
    """Inner products of the rows of a weight and its gradient, each (R, 1, ..., 1)."""

    wg: Tensor
    ww: Tensor
    gg: Tensor


class Products(NamedTuple):
    """Inner products of weight and update, and of the weight with itself, of rows or of whole tensors."""

    wu: Tensor
    ww: Tensor


class Projection(NamedTuple):
    """The result of `project`.

    Attributes:
        update: The update, without its radial part if the test fired.
        ratio: 0-d, factor of the weight decay: `wd_ratio` if the test fired, else 1; in the update's dtype.
        decision: 0-d integer: 0 not projected, 1 slice by slice (row by row unless marked otherwise), 2 as one vector.
    """

    update: Tensor
    ratio: Tensor
    decision: Tensor


def channel_view(x: Tensor) -> Tensor:
    """Return `x` as one row per output channel, (R, C); a copy where strides forbid a view.

    Example:
        >>> channel_view(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
    """
    return x.reshape(x.shape[:1].numel(), x.shape[1:].numel())


def layer_view(x: Tensor) -> Tensor:
    """Return `x` as a single row, (1, R C); a copy where strides forbid a view.

    Example:
        >>> layer_view(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([1, 600])
    """
    return x.reshape(1, x.numel())


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each pair of rows, (R, 1, ..., 1); at least two dimensions.

    Product and sum rather than a matrix product, which a GPU may round to TF32.
    """
    return (a * b).sum(dim=tuple(range(1, a.ndim)), keepdim=True)


def slice_sums(x: Tensor, mode: ScaleInvariantMode) -> Tensor:
    """Return the sum over each slice of a marked tensor, (N,)."""
    slices = slices_first(x, mode)
    return slices.sum(dim=tuple(range(1, slices.ndim)))


def slice_dot(a: Tensor, b: Tensor, mode: ScaleInvariantMode) -> Tensor:
    """Return the inner product of each pair of slices of a marked weight, in a shape that broadcasts over it."""
    return spread(slice_sums(a * b, mode), a.shape, mode)


def row_sums(weight: Tensor, grad: Tensor) -> RowSums:
    """Return the inner products that the test needs, each (R, 1, ..., 1), of real `weight` and `grad`."""
    return RowSums(row_dot(weight, grad), row_dot(weight, weight), row_dot(grad, grad))


def cosine(sums: RowSums, *, eps: float) -> Tensor:
    """Return |cos(w, g)| of each row; each norm is clamped to at least `eps` on its own."""
    return sums.wg.abs() / sums.ww.sqrt().clamp(min=eps) / sums.gg.sqrt().clamp(min=eps)


def threshold(delta: float, row_length: int) -> float:
    """Return the bound on each row's cosine, `delta / sqrt(row length)` (eq. 11)."""
    return delta / math.sqrt(max(row_length, 1))


def is_orthogonal(sums: RowSums, limit: float | Tensor, *, eps: float) -> Tensor:
    """Return for each row whether its cosine is below the limit, a number or one per row; a NaN cosine is not."""
    return cosine(sums, eps=eps) < limit


def choose(channel: Tensor, layer: Tensor) -> Tensor:
    """Return the decision: row by row if every row passed (`channel`), else as one vector if that passed (`layer`)."""
    return torch.where(channel, CHANNEL, torch.where(layer, LAYER, NONE))


def decay_ratio(decision: Tensor, *, wd_ratio: float, dtype: torch.dtype) -> Tensor:
    """Return the factor of the weight decay, `wd_ratio` for a projected tensor, else 1.

    In `dtype`, the update's: a float32 ratio would cost float64 weights 6e-8.
    """
    one = torch.ones((), dtype=dtype, device=decision.device)
    return torch.where(decision > NONE, one * wd_ratio, one)


def _radial_coefficient(wu: Tensor, ww: Tensor, *, eps: float) -> Tensor:
    # c with p (p·u) = c w, where p = w / (‖w‖ + eps); 0 for a zero row, with eps 0 as well.
    return torch.where(ww == 0, 0, wu / (ww.sqrt() + eps).square())


def radial_coefficient(decision: Tensor, rows: Products, whole: Products, *, eps: float) -> Tensor:
    """Return for each row the `c` of its radial part `c w`: its own, that of the whole tensor, or 0.

    Args:
        decision: One value for all rows, or one per row.
        rows: `w·u` and `w·w` of each row.
        whole: The same of the tensor that the row belongs to.
        eps: Added to each norm.
    """
    by_row = _radial_coefficient(rows.wu, rows.ww, eps=eps)
    by_layer = by_row if whole is rows else _radial_coefficient(whole.wu, whole.ww, eps=eps)
    return torch.where(decision == CHANNEL, by_row, torch.where(decision == LAYER, by_layer, 0))


def is_scale_invariant(weight: Tensor, grad: Tensor, *, delta: float, view: View, eps: float) -> Tensor:
    """Test that every row of the weight is orthogonal to its gradient, `max_k |cos(g_k, w_k)| < delta / sqrt(C)`.

    A scale-invariant weight is orthogonal to its gradient (eq. 4); eq. 11 turns this into a test. One row at
    or above the threshold rejects the tensor. A zero gradient or a zero weight has cosine 0 and passes, NaN
    does not.

    Args:
        weight: The weight, any shape.
        grad: Its gradient as backward left it (no weight decay, no momentum), same shape.
        delta: Threshold before the division by `sqrt(C)`; the paper uses 0.1.
        view: `channel_view` to test each output channel, `layer_view` to test the tensor as one vector.
        eps: Lower bound of each norm in the cosine.

    Returns:
        0-d bool tensor.

    Example:
        >>> w, g = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[-4.0, 3.0], [0.0, 2.0]])
        >>> is_scale_invariant(w, g, delta=0.1, view=channel_view, eps=1e-8)
        tensor(True)
        >>> is_scale_invariant(w, g + w, delta=0.1, view=channel_view, eps=1e-8)
        tensor(False)
    """
    w, g = view(to_compute_dtype(weight)), view(to_compute_dtype(grad))
    return is_orthogonal(row_sums(w, g), threshold(delta, w.shape[1]), eps=eps).all()


def remove_radial(update: Tensor, weight: Tensor, *, view: View, eps: float) -> Tensor:
    """Project the update on the tangent space of the weight, row by row: `u_k - p_k (p_k·u_k)` (eq. 10).

    `p_k = w_k / (‖w_k‖ + eps)`; a zero row leaves its update as it is.

    Args:
        update: The direction to project, any shape.
        weight: The weight, same shape.
        view: `channel_view` to project each output channel, `layer_view` to project the tensor as one vector.
        eps: Added to each norm.

    Returns:
        The projected update, in the update's shape and dtype.

    Example:
        >>> remove_radial(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]]), view=channel_view, eps=0.0)
        tensor([[0., 1.]])
    """
    w, u = view(to_compute_dtype(weight)), view(to_compute_dtype(update))
    tangent = u - _radial_coefficient(row_dot(w, u), row_dot(w, w), eps=eps) * w
    return as_dtype_of(tangent.reshape(as_real(update).shape), update)


def forced_decision(mode: ScaleInvariantMode, device: torch.device) -> Tensor:
    """Return the decision for a parameter whose group forces it: slice by slice, as one vector, or not at all."""
    return torch.full((), LAYER if mode == "tensor" else CHANNEL if mode else NONE, device=device)


def decide(sums: RowSums, num_weights: int, *, delta: float, eps: float) -> Tensor:
    """Test one tensor of at least two dimensions, first its rows, then the tensor as one vector.

    Args:
        sums: Inner products of its rows.
        num_weights: Its number of entries, R C.
        delta: See `is_scale_invariant`.
        eps: See `is_scale_invariant`.

    Returns:
        0-d integer: 0 leave the update alone, 1 project row by row, 2 project as one vector.
    """
    # Channel-wise test first; the whole tensor only if it fails
    rows = sums.wg.shape[0]
    channel = is_orthogonal(sums, threshold(delta, num_weights // max(rows, 1)), eps=eps).all()
    layer = is_orthogonal(RowSums(*(x.sum() for x in sums)), threshold(delta, num_weights), eps=eps)
    return choose(channel, layer)


def project(
    update: Tensor,
    weight: Tensor,
    grad: Tensor,
    *,
    delta: float,
    eps: float,
    wd_ratio: float,
    scale_invariant: ScaleInvariantMode = "auto",
) -> Projection:
    """Remove the radial part of an update if the weight is scale-invariant, as SGDP and AdamP do.

    The gradient decides (eq. 11), the update is projected. The channel view is tried first, then the layer
    view; the paper's formula names one cosine, the order is that of the authors' code. Vectors and scalars
    are never projected.

    Args:
        update: The direction of the step, before the learning rate; same shape as `weight`.
        weight: The weight before this step and before its decay.
        grad: The gradient as backward left it.
        delta: Threshold of the test, see `is_scale_invariant`. 0 turns the test off.
        eps: Clamps the norms of the test, is added to the norm of the projection.
        wd_ratio: Factor of the weight decay of projected tensors.
        scale_invariant: "auto" decides by the test; True or a mark (`adamp.marks`) always projects, True row by row;
            False never projects.

    Returns:
        The update, the decay's factor and the decision.

    Example:
        >>> w, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> result = project(torch.tensor([[1.0, 1.0]]), w, g, delta=0.1, eps=0.0, wd_ratio=0.1)
        >>> result.update, result.ratio, result.decision
        (tensor([[0., 1.]]), tensor(0.1000), tensor(1))
    """
    u, w, g = to_compute_dtype(update), to_compute_dtype(weight), to_compute_dtype(grad)
    if weight.ndim < 2 or scale_invariant is False:
        none = forced_decision(False, u.device)
        return Projection(update, decay_ratio(none, wd_ratio=wd_ratio, dtype=u.dtype), none)

    # Scale-invariance test on the gradient (eq. 11), unless the group forces the decision
    ww, wu = slice_dot(w, w, scale_invariant), slice_dot(w, u, scale_invariant)
    if scale_invariant == "auto":
        decision = decide(RowSums(row_dot(w, g), ww, row_dot(g, g)), w.numel(), delta=delta, eps=eps)
    else:
        decision = forced_decision(scale_invariant, u.device)

    # Projection of the update on the tangent space, by rows or other slices, or as one vector (eq. 10)
    coefficient = radial_coefficient(decision, Products(wu, ww), Products(wu.sum(), ww.sum()), eps=eps)
    tangent = torch.where(decision > NONE, u - coefficient * w, u)
    ratio = decay_ratio(decision, wd_ratio=wd_ratio, dtype=u.dtype)
    return Projection(as_dtype_of(tangent, update), ratio, decision)
