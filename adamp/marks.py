"""Marks: the slices of a weight that are scale-invariant, each on its own.

A slice may be multiplied by a factor of its own without any effect on the outputs. A mark names the slices:

- "rows": one per index of axis 0. Linear layers and convolutions before batch norm, embeddings before layer norm.
- "columns": one per index of axis 1. Transposed convolutions and embeddings before batch norm.
- ("columns", n): one per index of axis 1 in each of the n blocks of axis 0. Transposed convolutions with n groups,
  whose weight is (in, out / n, ...).
- "tensor": the weight as a whole. Any layer before layer norm.

Notation: `N` slices of a weight, `C` entries per slice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Mark = Literal["rows", "columns", "tensor"] | tuple[Literal["columns"], int]
ScaleInvariantMode = bool | Literal["auto"] | Mark  # True is "rows"


def is_mark(value: Any) -> bool:
    """Return whether a value marks a weight as scale-invariant: True or a mark, not "auto" or False."""
    if isinstance(value, (bool, str)):
        return value is True or value in ("rows", "columns", "tensor")
    if not isinstance(value, Sequence) or len(value) != 2:
        return False
    kind, blocks = value
    return kind == "columns" and isinstance(blocks, int) and not isinstance(blocks, bool) and blocks >= 1


def check_mode(options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the option `scale_invariant` is "auto", a bool or a mark."""
    mode = options["scale_invariant"]
    if not (isinstance(mode, bool) or mode == "auto" or is_mark(mode)):
        raise ValueError(
            f"scale_invariant={mode!r} is not valid: it must be 'auto', True, False, 'rows', 'columns', "
            "('columns', blocks) or 'tensor'"
        )


def check_marked(param: Tensor, mode: ScaleInvariantMode) -> None:
    """Raise ValueError if a mark does not fit the shape of a parameter."""
    shape = tuple(param.shape)
    if is_mark(mode) and param.ndim < 2:
        raise ValueError(
            f"scale_invariant={mode!r} marks a parameter of shape {shape}: only parameters of two or more dimensions "
            "are projected; put it in a group with 'auto' or False"
        )
    blocks = num_blocks(mode)
    if blocks and shape[0] % blocks:
        raise ValueError(
            f"scale_invariant={mode!r} marks a parameter of shape {shape}: the blocks must divide its first dimension"
        )


def num_blocks(mode: ScaleInvariantMode) -> int:
    """Return the blocks of axis 0 of a mark of columns, else 0."""
    if isinstance(mode, (bool, str)):
        return 1 if mode == "columns" else 0
    return mode[1]


def num_slices(shape: Sequence[int], mode: ScaleInvariantMode) -> int:
    """Return N for a weight of two or more dimensions."""
    if mode == "tensor":
        return 1
    blocks = num_blocks(mode)
    return blocks * shape[1] if blocks else shape[0]


def slices_first(x: Tensor, mode: ScaleInvariantMode) -> Tensor:
    """Return `x` with its slices along the first dimension, (N, ...): a view where strides allow one.

    Rows are along it already; they are also what "auto" tests first.

    Example:
        >>> x = torch.zeros(6, 4, 3, 3)
        >>> [tuple(slices_first(x, mark).shape) for mark in ("rows", ("columns", 2), "tensor")]
        [(6, 4, 3, 3), (8, 3, 3, 3), (1, 216)]
    """
    if mode == "tensor":
        return x.reshape(1, x.numel())
    blocks = num_blocks(mode)
    if not blocks:
        return x
    in_blocks: Tensor = torch.unflatten(x, 0, (blocks, x.shape[0] // blocks))
    return in_blocks.transpose(1, 2).flatten(0, 1)


def spread(values: Tensor, shape: Sequence[int], mode: ScaleInvariantMode) -> Tensor:
    """Return one value per slice, (N,), in a shape that broadcasts over a weight of the given shape.

    Example:
        >>> spread(torch.arange(4), (2, 2, 3), ("columns", 2)).squeeze()  # block 0 is the first row, block 1 the second
        tensor([[0, 1],
                [2, 3]])
    """
    blocks, ones = num_blocks(mode), [1] * (len(shape) - 1)
    if not blocks:
        return values.view(-1, *ones)  # rows, or the only slice
    per_block = values.view(blocks, 1, shape[1]).expand(blocks, shape[0] // blocks, shape[1])
    return per_block.reshape(shape[0], *shape[1:2], *ones[1:])
