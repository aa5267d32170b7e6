"""DTensor weights, as FSDP2 and tensor parallelism create them: local parts, layout and sums over processes.

A matrix sharded along its first dimension keeps its rows whole: their inner products are local, and only the decision
needs sums over processes. Sharded along another dimension, the rows' inner products are sums over processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Layout(NamedTuple):
    """Distribution of the tensors of a batch over the processes.

    Attributes:
        global_shapes: Shape of each whole tensor in real numbers.
        across_rows: Groups of processes among which rows are divided.
        within_rows: Groups of processes among which each row is divided.
    """

    global_shapes: list[torch.Size]
    across_rows: tuple[Any, ...] = ()
    within_rows: tuple[Any, ...] = ()


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


def local(x: Tensor) -> Tensor:
    """Return this process's part of a DTensor, a tensor that shares its memory; any other tensor itself."""
    return x.to_local() if is_sharded(x) else x  # type: ignore[attr-defined]


def local_grad(grad: Tensor, param: Tensor) -> Tensor:
    """Return this process's part of a gradient, placed as its parameter is."""
    if is_sharded(grad) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    return local(grad)


def layout_of(params: Sequence[Tensor]) -> Layout:
    """Return the layout of parameters that share a placement."""
    shapes = [torch.Size([*param.shape, 2]) if param.is_complex() else param.shape for param in params]
    if not params or not is_sharded(params[0]):
        return Layout(shapes)
    across: list[Any] = []
    within: list[Any] = []
    mesh = params[0].device_mesh  # type: ignore[attr-defined]
    for dim, placement in enumerate(params[0].placements):  # type: ignore[attr-defined]
        if placement.is_partial():
            raise RuntimeError(
                f"a parameter has the placement {placement}: an optimizer needs values, not terms of a sum"
            )
        if not placement.is_replicate():  # Shard, or the strided one of FSDP over tensor parallelism
            (across if placement.dim == 0 else within).append(mesh.get_group(dim))
    return Layout(shapes, tuple(across), tuple(within))


def sum_over_processes(items: Iterable[tuple[Tensor, Sequence[Any]]]) -> None:
    """Add up each tensor, in place, over each of its groups of processes: one collective for each group.

    Every process of a group must call this with the same items. All get the same bits.
    """
    items = [(tensor, groups) for tensor, groups in items if groups]
    for group in dict.fromkeys(group for _, groups in items for group in groups):
        tensors = [tensor for tensor, groups in items if group in groups]
        message = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(message, group=group)
        parts = torch.split(message, [x.numel() for x in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
