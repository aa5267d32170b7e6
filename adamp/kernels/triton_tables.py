"""Address and work tables of the Triton kernels, cached between steps.

They are sent again only when a tensor has moved, from pinned memory, without synchronisation. Tables of a captured
step are kept until the process ends, since the end of its graph cannot be observed: some kilobytes of tables and sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

MAX_WIDTH = 8192  # columns of a row in one item; longer rows are split
TILE_ROWS = (64, 8, 1)  # rows of an item, by tile
Examined = Literal["rows", "tensors", "none"]  # what is projected of the matrices: each row, or each as one row
CAPTURES = 8  # captures with moved gradients between two eager steps


@dataclass
class Tables:
    """Shapes, work items, scratch memory and addresses of one list of tensors.

    Attributes:
        shapes: Shapes of the tensors, for which all else was built.
        layout: (T, 7) int64, items: (I, 2) int32, see `adamp.kernels.triton_tiles`; examined tensors come first.
        num_examined: Items of examined tensors.
        shared: Whether a row of an examined tensor is split.
        sums: (3, slots), scalars: (T, 5): scratch.
        addresses: The contents of `pointers` (T, 6).
        spare: Pinned and device memory for tables of a capture, which can allocate neither.
        captured: Addresses and tables of captures since the last eager step.
    """

    shapes: tuple[torch.Size, ...]
    layout: Tensor
    items: Tensor
    num_examined: int
    num_items: int
    shared: bool
    sums: Tensor
    scalars: Tensor
    addresses: tuple[int, ...] = ()
    pointers: Tensor | None = None
    spare: tuple[Tensor, Tensor] | None = None
    captured: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)


_cache: Any = WeakTensorKeyDictionary()  # first parameter -> what is examined -> tables
_kept_for_graphs: list[Any] = []  # what captured graphs use


def _upload(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Send a table asynchronously; the allocator of pinned memory keeps the source until it has been copied."""
    if device.type == "cpu":
        return torch.tensor(values, dtype=dtype)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def _build_tables(
    shapes: tuple[torch.Size, ...], *, examined: Examined, real: torch.dtype, device: torch.device
) -> Tables:
    """Divide the tensors into items."""
    layout: list[list[int]] = []
    examined_items: list[tuple[int, int]] = []
    other_items: list[tuple[int, int]] = []
    num_slots, shared = 0, False
    for tensor, shape in enumerate(shapes):
        numel, is_examined = shape.numel(), examined != "none" and len(shape) > 1
        rows = _num_rows(shape, examined)
        length = numel // max(rows, 1)
        tile = 0 if length <= 16 else 1 if length <= 512 else 2
        parts = max(1, -(-length // MAX_WIDTH))
        width = -(-length // (16 * parts)) * 16 if parts > 1 else length
        layout.append([rows, length, tile, parts, width, num_slots, int(is_examined)])
        num_items = -(-rows // TILE_ROWS[tile]) * parts if numel else 0
        (examined_items if is_examined else other_items).extend((tensor, index) for index in range(num_items))
        if is_examined:
            num_slots += rows * parts
            shared |= parts > 1
    return Tables(
        shapes,
        layout=_upload(layout, torch.int64, device),
        items=_upload(examined_items + other_items or [(0, 0)], torch.int32, device),
        num_examined=len(examined_items),
        num_items=len(examined_items) + len(other_items),
        shared=shared,
        sums=torch.empty(3, max(num_slots, 1), dtype=real, device=device),
        scalars=torch.empty(len(shapes), 5, dtype=torch.float64, device=device),
    )


def _num_rows(shape: torch.Size, examined: Examined) -> int:
    return shape[0] if examined == "rows" and len(shape) > 1 else 1


def _pointer_rows(params: Sequence[Tensor], addresses: tuple[int, ...], *, examined: Examined) -> list[list[int]]:
    count, table = len(params), []
    for i, param in enumerate(params):
        row = list(addresses[i::count])
        length = param.numel() // max(_num_rows(param.shape, examined), 1)
        # Aligned for loads of 16 bytes: all tensors begin at a multiple of 16, and so does each row.
        aligned = length % 16 == 0 and all(address % 16 == 0 for address in row[:4])
        table.append([*row, int(aligned)])
    return table


def locate(
    params: Sequence[Tensor], columns: Sequence[Sequence[Tensor] | None], *, examined: Examined
) -> tuple[Tables, Tensor]:
    """Return the tables of a list of tensors and its pointers, those of the last step if nothing has moved."""
    device, count = params[0].device, len(params)
    shapes = tuple(param.shape for param in params)
    addresses = tuple(
        address for column in columns for address in ([x.data_ptr() for x in column] if column else [0] * count)
    )
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    tables = _cache.setdefault(params[0], {}).get(examined)
    if tables is None or tables.shapes != shapes:
        if capturing:
            raise RuntimeError("capturing a step in a CUDA graph needs one step with the same parameters before it")
        real = torch.promote_types(params[0].dtype, torch.float32)
        tables = _build_tables(shapes, examined=examined, real=real, device=device)
        _cache[params[0]][examined] = tables
    if capturing:
        return tables, _pointers_for_capture(tables, params, addresses, examined=examined)
    if tables.pointers is None or tables.addresses != addresses:
        rows = _pointer_rows(params, addresses, examined=examined)
        tables.pointers, tables.addresses = _upload(rows, torch.int64, device), addresses
    if device.type == "cuda" and (tables.spare is None or tables.captured):
        spare = torch.empty(CAPTURES, count, 6, dtype=torch.int64, pin_memory=True)
        tables.spare, tables.captured = (spare, torch.empty_like(spare, device=device)), []
    return tables, tables.pointers


def _pointers_for_capture(
    tables: Tables, params: Sequence[Tensor], addresses: tuple[int, ...], *, examined: Examined
) -> Tensor:
    """Return pointers that live as long as the graph, which a later eager step does not replace."""
    for captured_addresses, pointers in [*tables.captured, (tables.addresses, tables.pointers)]:
        if captured_addresses == addresses and pointers is not None:
            _kept_for_graphs.append((tables, pointers))
            return pointers
    number = len(tables.captured)
    if tables.spare is None or number == CAPTURES:
        raise RuntimeError(f"after {CAPTURES} captures with moved gradients a step outside of a capture is needed")
    source, target = (x[number] for x in tables.spare)
    source.copy_(torch.tensor(_pointer_rows(params, addresses, examined=examined)))
    target.copy_(source, non_blocking=True)  # part of the graph: replayed with it
    tables.captured.append((addresses, target))
    _kept_for_graphs.append((tables, tables.spare))
    return target
