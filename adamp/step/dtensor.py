"""DTensor weights, as FSDP2 and tensor parallelism create them: local parts, layout and reductions over processes.

A matrix sharded along its first dimension keeps its rows whole: their inner products are local, and only the decision
needs sums over processes. Sharded along another dimension, the rows' inner products are sums over processes. The slices
of a marked matrix (`adamp.marks`) are its rows: columns are whole where the second dimension is sharded, the tensor as
one slice never is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from adamp.marks import ScaleInvariantMode, num_blocks, num_slices


class Layout(NamedTuple):
    """Distribution of the tensors of a batch over the processes.

    Attributes:
        global_shapes: Shape of each whole tensor in real numbers.
        across_rows: Groups of processes among which rows (slices) are divided.
        within_rows: Groups of processes among which each row (slice) is divided.
    """

    global_shapes: list[torch.Size]
    across_rows: tuple[Any, ...] = ()
    within_rows: tuple[Any, ...] = ()


def is_built_by_zero_redundancy() -> bool:
    """Return whether a ZeroRedundancyOptimizer is building an optimizer of this process's parameters alone.

    It tells the optimizer in no other way than by being its caller.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if module is not None else None
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, module.ZeroRedundancyOptimizer):  # type: ignore[union-attr]
            return bool(caller.world_size > 1)
        frame = frame.f_back
    return False


def is_sharded(x: Tensor) -> bool:
    """Return whether `x` is a DTensor, of whatever placement."""
    if type(x) in (Tensor, torch.nn.Parameter):
        return False  # without the import, which takes half a second
    try:
        from torch.distributed.tensor import DTensor
    except ImportError:  # torch built without distributed, or before it was public
        return False
    return isinstance(x, DTensor)


def placement_of(x: Tensor) -> Any:
    """Return mesh and placements, which tensors of one batch share; None for an ordinary tensor."""
    return (x.device_mesh, x.placements) if is_sharded(x) else None  # type: ignore[attr-defined]


def has_whole_rows(x: Tensor) -> bool:
    """Return whether each process has values of a DTensor, and a row that it has a part of as a whole."""
    return all(p.is_replicate() or (not p.is_partial() and p.dim == 0) for p in x.placements)  # type: ignore[attr-defined]


def local(x: Tensor) -> Tensor:
    """Return this process's part of a DTensor, a tensor that shares its memory; any other tensor itself."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def check_grad(grad: Tensor, param: Tensor) -> None:
    """Raise RuntimeError if a parameter is a DTensor and its gradient is not, or the other way round."""
    if is_sharded(grad) != is_sharded(param):
        kinds = ("a DTensor", "an ordinary tensor")
        is_param, is_grad = kinds if is_sharded(param) else kinds[::-1]
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} is {is_param} and its gradient {is_grad}: set both alike"
        )


def local_grad(grad: Tensor, param: Tensor) -> Tensor:
    """Return this process's part of a gradient, placed as its parameter is."""
    check_grad(grad, param)
    if is_sharded(grad) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return local(grad)


def from_local(part: Tensor, like: Tensor) -> Tensor:
    """Return a DTensor of this process's part, placed as `like`; the part itself for an ordinary tensor."""
    return _dtensor(part, like, shape=like.shape, placements=like.placements) if is_sharded(like) else part  # type: ignore[attr-defined]


def gather(part: Tensor, param: Tensor) -> Tensor:
    """Return the whole tensor of which each process has the part that it has of `param`, in real numbers.

    Every process must call this, as all functions below.
    """
    if not is_sharded(param):
        return part
    shape = layout_of([param]).global_shapes[0]
    whole: Tensor = _dtensor(part, param, shape=shape, placements=param.placements).full_tensor()  # type: ignore[attr-defined]
    return whole


def scatter(whole: Tensor, param: Tensor) -> Tensor:
    """Return this process's part of a tensor that each process has, the inverse of `gather`."""
    return _part(whole, param, param.placements) if is_sharded(param) else whole  # type: ignore[attr-defined]


def gather_rows(sums: Sequence[Tensor], param: Tensor, mode: ScaleInvariantMode = "auto") -> Sequence[Tensor]:
    """Return several sums over the rows of the whole weight, each (R, ...), from those over this process's part.

    Of a weight that is marked otherwise, over its slices.
    """
    if not is_sharded(param):
        return sums
    from torch.distributed.tensor import Partial

    parts, blocks = torch.stack(list(sums), dim=-1), num_blocks(mode)
    shape = torch.Size([num_slices(param.shape, mode), *parts.shape[1:]])
    if blocks:  # columns are divided within each block
        parts, shape = parts.view(blocks, -1, *shape[1:]), torch.Size([blocks, param.shape[1], *shape[1:]])
    axis = None if mode == "tensor" else 1 if blocks else 0
    # Of slices that are divided among processes each has a term
    placements = [p if p.is_replicate() or p.dim == axis else Partial() for p in param.placements]  # type: ignore[attr-defined]
    whole: Tensor = _dtensor(parts, param, shape=shape, placements=placements).full_tensor()
    return (whole.flatten(0, 1) if blocks else whole).unbind(-1)


def scatter_rows(values: Tensor, param: Tensor) -> Tensor:
    """Return the values of this process's rows, from those of all rows, (R, ...)."""
    if not is_sharded(param):
        return values
    from torch.distributed.tensor import Replicate

    placements = [p if p.is_replicate() or p.dim == 0 else Replicate() for p in param.placements]  # type: ignore[attr-defined]
    return _part(values, param, placements)


def _dtensor(part: Tensor, param: Tensor, *, shape: torch.Size, placements: Sequence[Any]) -> Any:
    from torch.distributed.tensor import DTensor

    stride = param.stride() if shape == param.shape else torch.empty(shape, device="meta").stride()
    mesh = param.device_mesh  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


def _part(whole: Tensor, param: Tensor, placements: Sequence[Any]) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    mesh = param.device_mesh  # type: ignore[attr-defined]
    copies = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = copies.redistribute(placements=placements).to_local()  # no communication
    return part


def place_like(state: Tensor, param: Tensor) -> Tensor:
    """Return a loaded state with the placement of its parameter; scalars are ordinary tensors.

    So a checkpoint of whole tensors goes on sharded, and one of DTensors goes on whole.
    """
    is_scalar = state.ndim == 0
    if is_sharded(state) and (is_scalar or placement_of(state) != placement_of(param)):
        state = state.full_tensor()  # type: ignore[attr-defined]
    if is_sharded(param) and not is_sharded(state) and not is_scalar and state.shape == param.shape:
        state = from_local(_part(state, param, param.placements).clone(), param)  # type: ignore[attr-defined]
    return state


def check_placement(param: Tensor) -> None:
    """Raise RuntimeError if the processes hold terms of a sum, which is `param`, and not its values."""
    if is_sharded(param):
        for placement in param.placements:  # type: ignore[attr-defined]
            if placement.is_partial():
                raise RuntimeError(
                    f"a parameter of shape {tuple(param.shape)} has the placement {placement}: an optimizer needs "
                    "values, not terms of a sum; redistribute it"
                )


def check_blocks(param: Tensor, mode: ScaleInvariantMode) -> None:
    """Raise ValueError if a mark has blocks of an axis that is divided among processes."""
    if num_blocks(mode) < 2 or not is_sharded(param):
        return
    placements, mesh = param.placements, param.device_mesh  # type: ignore[attr-defined]
    if any(not p.is_replicate() and p.dim == 0 and mesh.size(i) > 1 for i, p in enumerate(placements)):
        raise ValueError(
            f"scale_invariant={mode!r} marks a parameter of shape {tuple(param.shape)} whose first dimension is "
            "sharded: its blocks cannot be told apart; shard the second dimension, or use 'columns'"
        )


def layout_of(params: Sequence[Tensor], mode: ScaleInvariantMode = "auto") -> Layout:
    """Return the layout of parameters that share a placement and a mark."""
    shapes = [torch.Size([*param.shape, 2]) if param.is_complex() else param.shape for param in params]
    if not params or not is_sharded(params[0]):
        return Layout(shapes)
    across: list[Any] = []
    within: list[Any] = []
    mesh = params[0].device_mesh  # type: ignore[attr-defined]
    check_placement(params[0])
    for dim, placement in enumerate(params[0].placements):  # type: ignore[attr-defined]
        if not placement.is_replicate():  # Shard, or the strided one of FSDP over tensor parallelism
            is_across = mode != "tensor" and placement.dim == (1 if num_blocks(mode) else 0)
            (across if is_across else within).append(mesh.get_group(dim))
    return Layout(shapes, tuple(across), tuple(within))


def sum_over_processes(items: Iterable[tuple[Tensor, Sequence[Any]]]) -> None:
    """Add up each tensor, in place, over each of its groups of processes: one collective per group and dtype.

    Every process of a group must call this with the same items. All get the same bits.
    """
    _reduce_(items, "SUM")


def max_over_processes(items: Iterable[tuple[Tensor, Sequence[Any]]]) -> None:
    """Set each tensor to its maximum over each of its groups of processes, as `sum_over_processes`."""
    _reduce_(items, "MAX")


def _reduce_(items: Iterable[tuple[Tensor, Sequence[Any]]], operation: str) -> None:
    items = [(tensor, groups) for tensor, groups in items if groups]
    for group in dict.fromkeys(group for _, groups in items for group in groups):
        members = [tensor for tensor, groups in items if group in groups]
        for kind in dict.fromkeys((x.device, x.dtype) for x in members):
            tensors = [x for x in members if (x.device, x.dtype) == kind]
            message = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(message, op=getattr(dist.ReduceOp, operation), group=group)
            parts = torch.split(message, [x.numel() for x in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
