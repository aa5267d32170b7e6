# mypy: ignore-errors
"""Tables, tiles and the arithmetic of one tile, shared by the Triton kernels.

Notation: `R` rows of a tensor, `C` entries per row, `T` tensors of one launch, `I` items. A tensor is read in memory
order, R dense rows of C entries. Tensors that are never projected (vectors, scalars, `scale_invariant=False`) are one
row of all their entries. One program processes one item: a block of whole rows or one part of a long row.

    pointers (T, 7) int64     addresses of weight, gradient, first state, second state, compensation, step; 1 if all
                              are aligned
    layout   (T, 9) int64     R, C, tile, parts of a row, columns per part, first slot, 1 if examined, rows of an item,
                              rows of the whole tensor
    items    (I, 2) int32     tensor, index of the item within it
    scalars  (T, 5) float64   decision, step size, decay, sqrt of the second bias correction, layer coefficient
    sums     (4, slots)       w·g, w·w, g·g, rows not below the threshold; later w·u, w·w; last the rows' coefficients
    totals   (T, 4)           the same of whole tensors; only where their rows are divided among processes

The columns are named by the constants below. A tile is 512 entries, 4 a thread, or 128 of tensors that are not aligned
and need an address per entry: with twice as many some registers spill, or half as many programs run side by side.

A slot belongs to one item, or of split rows to one part of one row: nothing is added atomically, partial sums are added
in the order of the table, and a step gives the same bits each time. Loops are `while` loops, since numpy 2.4 and later
break a `range` whose bound is known at run time in Triton's interpreter.

No `from __future__ import annotations` in the files of kernels: Triton reads the annotations.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

SKIP = tl.constexpr(-1)  # the decision where GradScaler found an infinite gradient
NONE = tl.constexpr(0)
CHANNEL = tl.constexpr(1)
LAYER = tl.constexpr(2)

# Columns of `pointers`
WEIGHT = tl.constexpr(0)
GRAD = tl.constexpr(1)
FIRST_STATE = tl.constexpr(2)
SECOND_STATE = tl.constexpr(3)
COMPENSATION = tl.constexpr(4)
STEP_COUNT = tl.constexpr(5)
IS_ALIGNED = tl.constexpr(6)
POINTER_COLUMNS = tl.constexpr(7)
# Columns of `layout`
NUM_ROWS = tl.constexpr(0)
ROW_LENGTH = tl.constexpr(1)
TILE = tl.constexpr(2)
PARTS = tl.constexpr(3)
PART_WIDTH = tl.constexpr(4)
FIRST_SLOT = tl.constexpr(5)
IS_EXAMINED = tl.constexpr(6)
ITEM_ROWS = tl.constexpr(7)
ALL_ROWS = tl.constexpr(8)
LAYOUT_COLUMNS = tl.constexpr(9)
# Columns of `scalars`
DECISION = tl.constexpr(0)
STEP_SIZE = tl.constexpr(1)
DECAY = tl.constexpr(2)
BIAS_CORRECTION = tl.constexpr(3)
LAYER_COEFFICIENT = tl.constexpr(4)
SCALAR_COLUMNS = tl.constexpr(5)
TOTAL_COLUMNS = tl.constexpr(4)


class Rule(NamedTuple):
    """The compile-time options of a kernel.

    Attributes:
        stored: Triton's dtype of weights, gradients and states.
        real: Triton's dtype of the arithmetic, float32 or float64.
        adam: AdamP, else SGDP.
        auto: The gradient decides on the projection, else all examined tensors are projected row by row.
        nesterov: Nesterov's update.
        buffer: There is a first state; SGDP has none at momentum 0.
        maximize: The gradient's sign is flipped.
        decay: There is weight decay.
        project_buffer: SGDP keeps the projected update as its buffer.
        kahan: What rounding takes from a weight is kept and added to its next step.
    """

    stored: tl.dtype
    real: tl.dtype
    adam: bool
    auto: bool
    nesterov: bool
    buffer: bool
    maximize: bool
    decay: bool
    project_buffer: bool
    kahan: bool


def dtypes(dtype: torch.dtype) -> tuple[tl.dtype, tl.dtype]:
    """Return Triton's dtypes of what is stored as `dtype` and of the arithmetic on it, which has at least 32 bits."""
    stored = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float64: tl.float64}.get(dtype, tl.float32)
    return stored, tl.float64 if stored == tl.float64 else tl.float32


@triton.jit
def root(x):
    """Square root, rounded to nearest: the approximate one flushes what is below 2^-126 to zero."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def divide(x, y):
    """Quotient, rounded to nearest."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def scalar(value, dtype: tl.constexpr):
    """Cast a kernel's float64 argument, which is a Python float under the interpreter."""
    return tl.full((), value, dtype)


@triton.jit
def hyperparameters(eps, keep1, gain1, keep2, gain2, rule: tl.constexpr):
    """Cast the numbers of the update's formula to the dtype of the arithmetic."""
    real: tl.constexpr = rule.real
    return (
        scalar(eps, real), scalar(keep1, real), scalar(gain1, real), scalar(keep2, real), scalar(gain2, real)
    )  # fmt: skip


@triton.jit
def by_tile(BODY: tl.constexpr, pointers, layout, items, arguments, rule: tl.constexpr):
    """Run `BODY` on this program's item, with the tile of ROWS x COLS entries that its tensor asks for.

    Tiles with `FITS` take whole rows.
    """
    tensor = tl.load(items + 2 * tl.program_id(0)).to(tl.int64)
    index = tl.load(items + 2 * tl.program_id(0) + 1)
    tile = tl.load(layout + tensor * LAYOUT_COLUMNS + TILE)
    aligned = tl.load(pointers + tensor * POINTER_COLUMNS + IS_ALIGNED)
    if tile == 0:
        BODY(pointers, layout, tensor, index, arguments, rule, 8, 16, True, False)
    elif tile == 1:
        if aligned != 0:
            BODY(pointers, layout, tensor, index, arguments, rule, 4, 128, True, True)
        else:
            BODY(pointers, layout, tensor, index, arguments, rule, 1, 128, True, False)
    elif aligned != 0:
        if tile == 2:
            BODY(pointers, layout, tensor, index, arguments, rule, 1, 512, True, True)
        else:
            BODY(pointers, layout, tensor, index, arguments, rule, 1, 512, False, True)
    else:
        BODY(pointers, layout, tensor, index, arguments, rule, 1, 128, False, False)


@triton.jit
def span(layout, tensor, index, ALIGNED: tl.constexpr):
    """Return an item's first row and entry, its rows, C, its columns, its slot and the parts of a row.

    Within an item 32 bits are enough for an offset: C counts only where an item has several rows.
    """
    entry = layout + tensor * LAYOUT_COLUMNS
    num_rows = tl.load(entry + NUM_ROWS)
    length = tl.load(entry + ROW_LENGTH)
    parts = tl.load(entry + PARTS).to(tl.int32)  # a division of 64-bit numbers is a call
    part_width = tl.load(entry + PART_WIDTH)
    item_rows = tl.load(entry + ITEM_ROWS)
    if ALIGNED:
        length = tl.multiple_of(length, 16)
        part_width = tl.multiple_of(part_width, 16)
    part = index % parts
    first_row = (index // parts).to(tl.int64) * item_rows
    column = part.to(tl.int64) * part_width
    # Of split rows an item is one row, and the parts of all rows lie side by side
    slot = tl.load(entry + FIRST_SLOT) + tl.where(parts > 1, part * num_rows + first_row, index)
    rows = tl.minimum(item_rows, num_rows - first_row).to(tl.int32)
    width = tl.minimum(part_width, length - column).to(tl.int32)
    pitch = length.to(tl.int32)
    if ALIGNED:
        width = tl.multiple_of(width, 16)
        pitch = tl.multiple_of(pitch, 16)
    return first_row, first_row * length + column, rows, pitch, width, slot, parts


@triton.jit
def window(
    row, rows, pitch, column, width, ROWS: tl.constexpr, COLS: tl.constexpr, ALIGNED: tl.constexpr
):  # fmt: skip
    """Return the offsets of a tile's entries from the item's first and its mask."""
    start = row * pitch + column
    limit = width - column
    if ALIGNED:
        start = tl.multiple_of(start, 16)
        limit = tl.multiple_of(limit, 16)
    own_rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLS)[None, :]
    offsets = start + (columns if ROWS == 1 else own_rows * pitch + columns)
    return offsets, (own_rows < rows - row) & (columns < limit)


@triton.jit
def addresses(pointers, tensor, entry, rule: tl.constexpr, ALIGNED: tl.constexpr):
    """Return the addresses of an entry of weight, gradient, states and compensation, as far as the tensor has them."""
    weight = _address(pointers, tensor, WEIGHT, entry, rule, ALIGNED)
    grad = _address(pointers, tensor, GRAD, entry, rule, ALIGNED)
    first = weight
    second = weight
    compensation = weight
    if rule.buffer:
        first = _address(pointers, tensor, FIRST_STATE, entry, rule, ALIGNED)
    if rule.adam:
        second = _address(pointers, tensor, SECOND_STATE, entry, rule, ALIGNED)
    if rule.kahan:
        compensation = _address(pointers, tensor, COMPENSATION, entry, rule, ALIGNED)
    return weight, grad, first, second, compensation


@triton.jit
def _address(pointers, tensor, column: tl.constexpr, entry, rule: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(pointers + tensor * POINTER_COLUMNS + column).to(tl.pointer_type(rule.stored)) + entry
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def load(pointer, offsets, mask, rule: tl.constexpr):
    """Read a tile of one tensor in the dtype of the arithmetic, 0 beside the mask."""
    return tl.load(pointer + offsets, mask=mask, other=0).to(rule.real)


@triton.jit
def gradient(pointer, offsets, mask, grad_scale, rule: tl.constexpr):
    """Read a tile of the gradient, without GradScaler's factor and in the direction of descent."""
    grad = load(pointer, offsets, mask, rule)
    if grad_scale is not None:
        grad = divide(grad, tl.load(grad_scale).to(rule.real))
    if rule.maximize:
        grad = -grad
    return grad


@triton.jit
def propose(g, first, second, bias, hyper, rule: tl.constexpr):
    """Return both states after this step and the update that they propose."""
    eps, keep1, gain1, keep2, gain2 = hyper
    update = g
    if rule.adam:
        first = first * keep1 + g * gain1
        second = second * keep2 + g * g * gain2
        update = first * keep1 + g * gain1 if rule.nesterov else first
        update = divide(update, divide(root(second), bias) + eps)
    elif rule.buffer:
        first = first * keep1 + g * gain1
        update = g + first * keep1 if rule.nesterov else first
    elif not rule.nesterov:
        update = g * gain1
    return first, second, update


@triton.jit
def proposal(tensors, offsets, mask, grad_scale, bias, hyper, rule: tl.constexpr):
    """Return a tile's weights, new states and proposed update, which may be NaN beside the mask (eps 0)."""
    weight, grad, first_state, second_state, _ = tensors
    w = load(weight, offsets, mask, rule)
    g = gradient(grad, offsets, mask, grad_scale, rule)
    first = g
    second = g
    if rule.buffer:
        first = load(first_state, offsets, mask, rule)
    if rule.adam:
        second = load(second_state, offsets, mask, rule)
    first, second, update = propose(g, first, second, bias, hyper, rule)
    return w, first, second, update


@triton.jit
def threshold(delta, length, rule: tl.constexpr):
    """Return the bound on the cosine of a row, delta / sqrt(length)."""
    bound = scalar(delta, tl.float64) / tl.sqrt(tl.maximum(length, 1).to(tl.float64))
    return bound.to(rule.real)


@triton.jit
def is_below(wg, ww, gg, limit, eps):
    """Compare |cos(w, g)| with the limit, each norm clamped on its own; False for NaN."""
    cosine = divide(divide(tl.abs(wg), tl.maximum(root(ww), eps)), tl.maximum(root(gg), eps))
    return cosine < limit


@triton.jit
def radial_coefficient(wu, ww, eps):
    """Return c with p (p·u) = c w, where p = w / (‖w‖ + eps); 0 for a zero row, with eps 0 as well."""
    norm = root(ww) + eps
    return tl.where(ww == 0, 0.0, divide(wu, norm * norm))
