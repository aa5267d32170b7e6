"""Address and work tables of the Triton kernels, cached between steps.

There are tables for each of the `MAX_SETS` last lists that begin with the same tensor, as parameters without a gradient
come and go. Addresses are sent again only when a tensor has moved, from pinned memory, without synchronisation. The end
of a CUDA graph cannot be observed: tables of captured steps live as long as the first of their parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from adamp.kernels.options import Unmoved

MAX_WIDTH = 8192  # columns of a row in one item; longer rows are split
TILE_ROWS = (8, 4, 1, 1)  # rows of a tile, see `adamp.kernels.triton_tiles.by_tile`
TILE_COLUMNS = (16, 128, 512)  # longest rows of the tiles that take whole rows; the last one takes longer rows in parts
ITEM_ENTRIES = 4096  # entries of an item at least: a program first reads tables, which takes as long as some tiles
MAX_ITEMS = 1024  # items of a tensor of many short rows; their sums are added up by one program
MAX_SETS = 8  # lists of tensors whose tables are kept
GRAD = 1  # column of the gradients' addresses, as in `adamp.kernels.triton_tiles`
MAX_CAPTURES = 8  # captures between two eager steps
Examined = Literal["rows", "tensors", "none"]  # what is projected of the matrices: each row, or each as one row


@dataclass
class Tables:
    """Shapes, work items, scratch memory and addresses of one list of tensors.

    Attributes:
        shapes: Shapes of the tensors, for which all else was built; examined: what is projected of them; all_rows: rows
            of the whole tensors, where processes divide them.
        row_lengths: (T,) int64 on the CPU.
        layout: (T, 9) int64, items: (I, 2) int32, see `adamp.kernels.triton_tiles`; examined tensors come first.
        num_examined: Items of examined tensors.
        shared: Whether a row of an examined tensor is split.
        sums: (4, slots), scalars: (T, 5): scratch.
        stream: The CUDA stream on which these were allocated.
        addresses: The contents of `pointers` (T, 7), allocated on `pointers_stream`; of these `table` is the source,
            and `aligned` (T,) says whether all but the gradients are.
        spare: Pinned and device memory for tables of captures, which can allocate neither, and how many are used.
    """

    shapes: list[torch.Size]
    examined: Examined
    all_rows: Sequence[int] | None
    row_lengths: Tensor
    layout: Tensor
    items: Tensor
    num_examined: int
    num_items: int
    shared: bool
    sums: Tensor
    scalars: Tensor
    stream: Any
    addresses: list[int] = field(default_factory=list)
    table: Tensor | None = None
    aligned: Tensor | None = None
    pointers: Tensor | None = None
    pointers_stream: Any = None
    spare: tuple[Tensor, Tensor] | None = None
    num_captured: int = 0
    kept_for_graphs: list[Any] = field(default_factory=list)


Sets = OrderedDict[tuple[Any, ...], Tables]
_cache: Any = WeakTensorKeyDictionary()  # first parameter -> (what is examined, identities of the list) -> tables


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _current_stream(device: torch.device) -> Any:
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def _upload(values: Tensor, device: torch.device) -> Tensor:
    """Send a table asynchronously; the allocator of pinned memory keeps the source until it has been copied."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def _allocate_spare(count: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    source = torch.empty(MAX_CAPTURES, count, columns, dtype=torch.int64, pin_memory=device.type == "cuda")
    return source, torch.empty_like(source, device=device)


def _build_tables(
    shapes: list[torch.Size],
    *,
    examined: Examined,
    real: torch.dtype,
    device: torch.device,
    all_rows: Sequence[int] | None = None,
) -> Tables:
    """Divide the tensors into items."""
    layout: list[list[int]] = []
    counts: list[int] = []
    num_slots, shared = 0, False
    for index, shape in enumerate(shapes):
        numel, is_examined = shape.numel(), examined != "none" and len(shape) > 1
        rows = shape[0] if is_examined and examined == "rows" else 1
        length = numel // max(rows, 1)
        tile = sum(length > columns for columns in TILE_COLUMNS)
        # Long rows are split; of short ones an item has several
        parts = max(1, -(-length // MAX_WIDTH))
        width = -(-length // (16 * parts)) * 16 if parts > 1 else length
        entries = max(ITEM_ENTRIES, -(-numel // MAX_ITEMS))
        step = TILE_ROWS[tile]
        item_rows = 1 if parts > 1 else -(-entries // (max(length, 1) * step)) * step
        num_items = -(-rows // item_rows) * parts if numel else 0
        layout.append([rows, length, tile, parts, width, num_slots, int(is_examined), item_rows, rows])
        if all_rows is not None and is_examined:
            layout[-1][-1] = all_rows[index]
        counts.append(num_items)
        if is_examined:
            num_slots += rows * parts if parts > 1 else num_items
            shared |= parts > 1
    table = torch.tensor(layout, dtype=torch.int64).view(len(shapes), 9)
    # Items of examined tensors first
    order = torch.argsort(table[:, 6], descending=True, stable=True)
    per_tensor = torch.tensor(counts, dtype=torch.int64)[order]
    tensors = torch.repeat_interleave(order, per_tensor)
    first = torch.repeat_interleave(per_tensor.cumsum(0) - per_tensor, per_tensor)
    items = torch.stack([tensors, torch.arange(len(tensors)) - first], dim=1).int()
    return Tables(
        shapes,
        examined,
        all_rows,
        row_lengths=table[:, 1].contiguous(),
        layout=_upload(table, device),
        items=_upload(items if len(items) else torch.zeros(1, 2, dtype=torch.int32), device),
        num_examined=sum(count for count, row in zip(counts, layout, strict=True) if row[6]),
        num_items=sum(counts),
        shared=shared,
        sums=torch.empty(4, max(num_slots, 1), dtype=real, device=device),
        scalars=torch.empty(len(shapes), 5, dtype=torch.float64, device=device),
        stream=_current_stream(device),
    )


def _pointer_table(addresses: list[int], row_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the addresses, one row per tensor, and whether its rows are aligned for loads of 16 bytes.

    Second, whether they would be with any aligned gradient.
    """
    columns = torch.tensor(addresses, dtype=torch.int64).view(-1, len(row_lengths))
    # All tensors begin at a multiple of 16 bytes, and so does each row
    begins = columns[:-1] % 16 == 0
    others = torch.cat([begins[:GRAD], begins[GRAD + 1 :]]).all(0) & (row_lengths % 16 == 0)
    return torch.cat([columns, (others & begins[GRAD])[None].long()]).t().contiguous(), others


def _move_grads_(tables: Tables, grads: list[int], stream: Any) -> None:
    """Replace the addresses of the gradients alone: most steps find theirs elsewhere."""
    assert tables.table is not None and tables.aligned is not None
    count, column = len(grads), torch.tensor(grads, dtype=torch.int64)
    table = tables.table.clone()  # the last one may be in use
    table[:, GRAD] = column
    table[:, -1] = tables.aligned & (column % 16 == 0)
    tables.table, tables.pointers = table, _upload(table, tables.layout.device)
    tables.addresses = [*tables.addresses[: GRAD * count], *grads, *tables.addresses[(GRAD + 1) * count :]]
    tables.pointers_stream = stream


def locate(
    params: Sequence[Tensor],
    columns: Sequence[Sequence[Tensor] | None],
    *,
    examined: Examined,
    capturable: bool = False,
    unmoved: Unmoved | None = None,
    all_rows: Sequence[int] | None = None,
) -> tuple[Tables, Tensor]:
    """Return the tables of a list of tensors and its pointers, those of the last step if nothing has moved.

    Args:
        params: The parameters.
        columns: Lists of tensors whose addresses the kernels need, in their order, or None for zeros.
        examined: What is projected.
        capturable: Whether later steps may be captured.
        unmoved: A token handed to earlier steps with the same tensors at the same addresses.
        all_rows: Rows of the whole tensors, if these are parts of them.
    """
    device, count = params[0].device, len(params)
    capturing, stream = _is_capturing(device), _current_stream(device)
    if unmoved is not None and unmoved.tables is not None and not capturing:
        known, pointers = unmoved.tables
        # Another step with these tables may have changed them since, and a capture needs memory
        is_ready = not capturable or (known.spare is not None and known.num_captured == 0)
        if known.pointers is pointers and known.examined == examined and is_ready:
            if unmoved.moved_grads is not None:
                _move_grads_(known, unmoved.moved_grads, stream)
                unmoved.tables, unmoved.moved_grads = (known, known.pointers), None
            _keep_for(stream, known)
            return known, known.pointers
    shapes = [param.shape for param in params]
    addresses: list[int] = []
    for column in columns:
        addresses += [x.data_ptr() for x in column] if column else [0] * count

    # The tables of this list, and those of the other lists used last
    sets: Sets = _cache.setdefault(params[0], OrderedDict())
    key = (examined, *map(id, params))
    tables = sets.get(key)
    if tables is None or tables.shapes != shapes or tables.all_rows != all_rows:
        if capturing:
            raise RuntimeError("capturing a step in a CUDA graph needs one step with the same parameters before it")
        real = torch.promote_types(params[0].dtype, torch.float32)
        tables = sets[key] = _build_tables(shapes, examined=examined, real=real, device=device, all_rows=all_rows)
        for oldest in [k for k, old in sets.items() if not old.kept_for_graphs][:-MAX_SETS]:
            del sets[oldest]
    sets.move_to_end(key)
    if capturing:
        return tables, _pointers_for_capture(tables, addresses)
    if tables.pointers is None or tables.addresses != addresses:
        tables.table, tables.aligned = _pointer_table(addresses, tables.row_lengths)
        tables.pointers = _upload(tables.table, device)
        tables.addresses, tables.pointers_stream = addresses, stream
    if capturable and (tables.spare is None or tables.num_captured):
        tables.spare, tables.num_captured = _allocate_spare(count, len(columns) + 1, device), 0
    _keep_for(stream, tables)
    if unmoved is not None:
        unmoved.tables, unmoved.moved_grads = (tables, tables.pointers), None
    return tables, tables.pointers


def _keep_for(stream: Any, tables: Tables) -> None:
    """Let no memory of the tables be used for anything else while a step on this stream may still read it."""
    if stream != tables.stream:
        for x in (tables.layout, tables.items, tables.sums, tables.scalars):
            x.record_stream(stream)
    if stream != tables.pointers_stream and tables.pointers is not None:
        tables.pointers.record_stream(stream)


def _pointers_for_capture(tables: Tables, addresses: list[int]) -> Tensor:
    """Return pointers that live as long as the graph, which a later eager step does not replace.

    Each capture fills a table of its own: one that another graph fills would be empty until that has been replayed.
    """
    if tables.pointers is not None and tables.addresses == addresses:
        tables.kept_for_graphs.append(tables.pointers)
        return tables.pointers
    if tables.spare is None or tables.num_captured == MAX_CAPTURES:
        raise RuntimeError(
            f"a step in a CUDA graph needs a step with capturable=True before it, and one after each {MAX_CAPTURES} "
            "captures with moved gradients"
        )
    source, target = (x[tables.num_captured] for x in tables.spare)
    source.copy_(_pointer_table(addresses, tables.row_lengths)[0])
    target.copy_(source, non_blocking=True)  # part of the graph: replayed with it
    tables.num_captured += 1
    tables.kept_for_graphs.append(tables.spare)
    return target
