# mypy: ignore-errors
"""The five Triton kernels of a fused AdamP or SGDP step, in their order; `adamp.kernels.triton_tiles` has the tables.

No `from __future__ import annotations` here: Triton reads the annotations, and `tl.float64` keeps a Python float whole.
"""

import triton
import triton.language as tl

from adamp.kernels.triton_tiles import (
    BIAS_CORRECTION,
    CHANNEL,
    DECAY,
    DECISION,
    FIRST_SLOT,
    FIRST_STATE,
    IS_EXAMINED,
    LAYER,
    LAYER_COEFFICIENT,
    LAYOUT_COLUMNS,
    NONE,
    NUM_ROWS,
    PARTS,
    POINTER_COLUMNS,
    ROW_LENGTH,
    SCALAR_COLUMNS,
    SECOND_STATE,
    SKIP,
    STEP_COUNT,
    STEP_SIZE,
    WEIGHT,
    Rule,
    address,
    by_tile,
    dtypes,
    gradient,
    hyperparameters,
    is_below,
    load,
    proposal,
    radial_coefficient,
    scalar,
    span,
    window,
)

__all__ = ["Rule", "apply_update", "coefficients", "decide", "dtypes", "radial_sums", "row_sums"]


@triton.jit
def _row_sums(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, grad_scale, num_slots = arguments
    rows, exists, length, column, stop, slots, _ = span(layout, tensor, index, ROWS, ALIGNED)
    wg = tl.zeros([ROWS, COLS], rule.real)
    ww = tl.zeros([ROWS, COLS], rule.real)
    gg = tl.zeros([ROWS, COLS], rule.real)
    while column < stop:
        offsets, mask = window(rows, exists, length, column, stop, COLS, ALIGNED)
        w = load(pointers, tensor, WEIGHT, offsets, mask, rule, ALIGNED)
        g = gradient(pointers, tensor, offsets, mask, grad_scale, rule, ALIGNED)
        wg += w * g
        ww += w * w
        gg += g * g
        column += COLS
    tl.store(sums + slots, tl.sum(wg, 1)[:, None], mask=exists)
    tl.store(sums + num_slots + slots, tl.sum(ww, 1)[:, None], mask=exists)
    tl.store(sums + 2 * num_slots + slots, tl.sum(gg, 1)[:, None], mask=exists)


@triton.jit(do_not_specialize=["num_slots"])
def row_sums(pointers, layout, items, sums, grad_scale, num_slots, rule: tl.constexpr):
    """Write w·g, w·w and g·g of each part of each row: 8 bytes of traffic per float32 weight. One program per item."""
    by_tile(_row_sums, pointers, layout, items, (sums, grad_scale, num_slots), rule)


@triton.jit
def _test(layout, sums, num_slots, tensor, delta, eps, rule: tl.constexpr, BLOCK: tl.constexpr):
    """Return the decision of one tensor: by its rows, else as one vector."""
    entry = layout + tensor * LAYOUT_COLUMNS
    num_rows = tl.load(entry + NUM_ROWS)
    length = tl.load(entry + ROW_LENGTH)
    parts = tl.load(entry + PARTS)
    slot = tl.load(entry + FIRST_SLOT)
    all_wg = tl.zeros([BLOCK], rule.real)
    all_ww = tl.zeros([BLOCK], rule.real)
    all_gg = tl.zeros([BLOCK], rule.real)
    # Rows that are not below are counted: a maximum over rows would drop NaN.
    not_below = tl.zeros([BLOCK], tl.int32)
    row = num_rows * 0
    while row < num_rows:
        rows = row + tl.arange(0, BLOCK)
        exists = rows < num_rows
        wg = tl.zeros([BLOCK], rule.real)
        ww = tl.zeros([BLOCK], rule.real)
        gg = tl.zeros([BLOCK], rule.real)
        part = parts * 0
        while part < parts:
            at = sums + slot + part * num_rows + rows
            wg += tl.load(at, mask=exists, other=0)
            ww += tl.load(at + num_slots, mask=exists, other=0)
            gg += tl.load(at + 2 * num_slots, mask=exists, other=0)
            part += 1
        below = is_below(wg, ww, gg, delta, length, eps, rule)
        not_below += tl.where(exists, tl.where(below, 0, 1), 0)
        all_wg += wg
        all_ww += ww
        all_gg += gg
        row += BLOCK
    layer = is_below(tl.sum(all_wg), tl.sum(all_ww), tl.sum(all_gg), delta, num_rows * length, eps, rule)
    return tl.where(tl.sum(not_below) == 0, CHANNEL, tl.where(layer, LAYER, NONE))


@triton.jit(do_not_specialize=["num_slots"])
def decide(
    pointers, layout, sums, scalars, lr_tensor, found_inf, num_slots,
    lr: tl.float64, weight_decay: tl.float64, wd_ratio: tl.float64, delta: tl.float64, eps: tl.float64,
    log_beta1: tl.float64, log_beta2: tl.float64, rule: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide on the projection, count the step and write the step's scalars. One program per tensor."""
    tensor = tl.program_id(0).to(tl.int64)
    decision = tl.full((), NONE, tl.int32)
    if tl.load(layout + tensor * LAYOUT_COLUMNS + IS_EXAMINED) != 0:
        if rule.auto:
            decision = _test(layout, sums, num_slots, tensor, delta, scalar(eps, rule.real), rule, BLOCK).to(tl.int32)
        else:
            decision = tl.full((), CHANNEL, tl.int32)
    ratio = tl.where(decision > NONE, scalar(wd_ratio, tl.float64), scalar(1.0, tl.float64))
    if found_inf is not None:
        decision = tl.where(tl.load(found_inf) != 0, SKIP, decision)

    rate = scalar(lr, tl.float64)
    if lr_tensor is not None:
        rate = tl.load(lr_tensor).to(tl.float64)
    entry = scalars + tensor * SCALAR_COLUMNS
    tl.store(entry + DECISION, decision.to(tl.float64))
    tl.store(entry + DECAY, rate * scalar(weight_decay, tl.float64) * ratio)
    if rule.adam:
        # In float64: in float32 1 - 0.999^t would be off by 6e-5 at t = 1.
        counter = tl.load(pointers + tensor * POINTER_COLUMNS + STEP_COUNT).to(tl.pointer_type(tl.float32))
        step = tl.load(counter) + 1
        if decision != SKIP:
            tl.store(counter, step)
        t = step.to(tl.float64)
        tl.store(entry + STEP_SIZE, rate / (1 - tl.exp(t * scalar(log_beta1, tl.float64))))
        tl.store(entry + BIAS_CORRECTION, tl.sqrt(1 - tl.exp(t * scalar(log_beta2, tl.float64))))
    else:
        tl.store(entry + STEP_SIZE, rate)


@triton.jit
def _dot_update(
    pointers, tensor, rows, exists, length, column, stop, grad_scale, bias, hyper, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return w·u and w·w of the given columns of each row, (ROWS, 1) each."""
    wu = tl.zeros([ROWS, COLS], rule.real)
    ww = tl.zeros([ROWS, COLS], rule.real)
    while column < stop:
        offsets, mask = window(rows, exists, length, column, stop, COLS, ALIGNED)
        w, _, _, update = proposal(pointers, tensor, offsets, mask, grad_scale, bias, hyper, rule, ALIGNED)
        wu += tl.where(mask, w * update, 0)
        ww += w * w
        column += COLS
    return tl.sum(wu, 1)[:, None], tl.sum(ww, 1)[:, None]


@triton.jit
def _radial_sums(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, scalars, grad_scale, num_slots, hyper = arguments
    rows, exists, length, column, stop, slots, parts = span(layout, tensor, index, ROWS, ALIGNED)
    decision = tl.load(scalars + tensor * SCALAR_COLUMNS + DECISION)
    if (decision == LAYER) | ((decision == CHANNEL) & (parts > 1)):
        bias = tl.load(scalars + tensor * SCALAR_COLUMNS + BIAS_CORRECTION).to(rule.real)
        wu, ww = _dot_update(
            pointers, tensor, rows, exists, length, column, stop, grad_scale, bias, hyper, rule, ROWS, COLS, ALIGNED
        )  # fmt: skip
        tl.store(sums + slots, wu, mask=exists)
        tl.store(sums + num_slots + slots, ww, mask=exists)


@triton.jit(do_not_specialize=["num_slots"])
def radial_sums(
    pointers, layout, items, sums, scalars, grad_scale, num_slots,
    eps: tl.float64, keep1: tl.float64, gain1: tl.float64, keep2: tl.float64, gain2: tl.float64, rule: tl.constexpr,
):  # fmt: skip
    """Write w·u and w·w of rows and tensors that several programs share. One program per item.

    These are tensors projected as one vector and long rows that several programs share, at 16 bytes of traffic per
    float32 weight; all other programs return at once.
    """
    hyper = hyperparameters(eps, keep1, gain1, keep2, gain2, rule)
    by_tile(_radial_sums, pointers, layout, items, (sums, scalars, grad_scale, num_slots, hyper), rule)


@triton.jit(do_not_specialize=["num_slots"])
def coefficients(layout, sums, scalars, num_slots, eps: tl.float64, rule: tl.constexpr, BLOCK: tl.constexpr):
    """Add up what `radial_sums` wrote: a coefficient per row (instead of its first w·u) or one of the tensor.

    One program per tensor.
    """
    tensor = tl.program_id(0).to(tl.int64)
    entry = layout + tensor * LAYOUT_COLUMNS
    num_rows = tl.load(entry + NUM_ROWS)
    parts = tl.load(entry + PARTS)
    slot = tl.load(entry + FIRST_SLOT)
    decision = tl.load(scalars + tensor * SCALAR_COLUMNS + DECISION)
    if (decision == LAYER) | ((decision == CHANNEL) & (parts > 1)):
        clamp = scalar(eps, rule.real)
        all_wu = tl.zeros([BLOCK], rule.real)
        all_ww = tl.zeros([BLOCK], rule.real)
        row = num_rows * 0
        while row < num_rows:
            rows = row + tl.arange(0, BLOCK)
            exists = rows < num_rows
            wu = tl.zeros([BLOCK], rule.real)
            ww = tl.zeros([BLOCK], rule.real)
            part = parts * 0
            while part < parts:
                at = sums + slot + part * num_rows + rows
                wu += tl.load(at, mask=exists, other=0)
                ww += tl.load(at + num_slots, mask=exists, other=0)
                part += 1
            if decision == CHANNEL:
                tl.store(sums + slot + rows, radial_coefficient(wu, ww, clamp), mask=exists)
            all_wu += wu
            all_ww += ww
            row += BLOCK
        total = radial_coefficient(tl.sum(all_wu), tl.sum(all_ww), clamp)
        tl.store(scalars + tensor * SCALAR_COLUMNS + LAYER_COEFFICIENT, total.to(tl.float64))


@triton.jit
def _apply_update(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, scalars, grad_scale, hyper = arguments
    entry = scalars + tensor * SCALAR_COLUMNS
    decision = tl.load(entry + DECISION)
    if decision != SKIP:
        step_size = tl.load(entry + STEP_SIZE).to(rule.real)
        decay = tl.load(entry + DECAY).to(rule.real)
        bias = tl.load(entry + BIAS_CORRECTION).to(rule.real)
        rows, exists, length, column, stop, _, parts = span(layout, tensor, index, ROWS, ALIGNED)
        coefficient = tl.zeros([ROWS, 1], rule.real)
        if decision == LAYER:
            coefficient += tl.load(entry + LAYER_COEFFICIENT).to(rule.real)
        elif decision == CHANNEL:
            if parts > 1:
                slot = tl.load(layout + tensor * LAYOUT_COLUMNS + FIRST_SLOT)
                coefficient = tl.load(sums + slot + rows, mask=exists, other=0)
            else:
                # A whole row at once: its data is still in the cache when the loop below reads it again.
                wu, ww = _dot_update(
                    pointers, tensor, rows, exists, length, column, stop, grad_scale, bias, hyper, rule,
                    ROWS, COLS, ALIGNED,
                )  # fmt: skip
                coefficient = radial_coefficient(wu, ww, hyper[0])
        while column < stop:
            offsets, mask = window(rows, exists, length, column, stop, COLS, ALIGNED)
            w, first, second, update = proposal(
                pointers, tensor, offsets, mask, grad_scale, bias, hyper, rule, ALIGNED
            )  # fmt: skip
            if decision != NONE:
                update = update - coefficient * w
            step = update * step_size
            if rule.decay:
                step += w * decay  # rounded once with the step: alone, a small decay would leave w as it is
            tl.store(address(pointers, tensor, WEIGHT, rule, ALIGNED) + offsets, w - step, mask=mask)
            if rule.buffer:
                if rule.project_buffer:
                    first = update
                tl.store(address(pointers, tensor, FIRST_STATE, rule, ALIGNED) + offsets, first, mask=mask)
            if rule.adam:
                tl.store(address(pointers, tensor, SECOND_STATE, rule, ALIGNED) + offsets, second, mask=mask)
            column += COLS


@triton.jit
def apply_update(
    pointers, layout, items, sums, scalars, grad_scale,
    eps: tl.float64, keep1: tl.float64, gain1: tl.float64, keep2: tl.float64, gain2: tl.float64, rule: tl.constexpr,
):  # fmt: skip
    """Update weights, states: 28 bytes of traffic per float32 weight for AdamP, 20 for SGDP; one program per item."""
    arguments = (sums, scalars, grad_scale, hyperparameters(eps, keep1, gain1, keep2, gain2, rule))
    by_tile(_apply_update, pointers, layout, items, arguments, rule)
