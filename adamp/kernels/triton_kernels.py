# mypy: ignore-errors
"""The Triton kernels of a fused AdamP or SGDP step, in their order; `adamp.kernels.triton_tiles` has the tables.

`add_up_rows` is launched only where the rows of tensors are divided among processes.

No `from __future__ import annotations` here: Triton reads the annotations, and `tl.float64` keeps a Python float whole.
"""

import triton
import triton.language as tl

from adamp.kernels.triton_tiles import (
    ALL_ROWS,
    BIAS_CORRECTION,
    CHANNEL,
    DECAY,
    DECISION,
    FIRST_SLOT,
    IS_EXAMINED,
    ITEM_ROWS,
    LAYER,
    LAYER_COEFFICIENT,
    LAYOUT_COLUMNS,
    NONE,
    NUM_ROWS,
    PARTS,
    POINTER_COLUMNS,
    ROW_LENGTH,
    SCALAR_COLUMNS,
    SKIP,
    STEP_COUNT,
    STEP_SIZE,
    TOTAL_COLUMNS,
    Rule,
    addresses,
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
    threshold,
    window,
)

__all__ = ["Rule", "add_up_rows", "apply_update", "coefficients", "decide", "dtypes", "radial_sums", "row_sums"]


@triton.jit
def _row_sums(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, grad_scale, num_slots, delta, eps = arguments
    _, entry, rows, pitch, width, slot, _ = span(layout, tensor, index, ALIGNED)
    tensors = addresses(pointers, tensor, entry, rule, ALIGNED)
    all_wg = tl.zeros([ROWS], rule.real)
    all_ww = tl.zeros([ROWS], rule.real)
    all_gg = tl.zeros([ROWS], rule.real)
    not_below = tl.zeros([ROWS], tl.int32)
    limit = threshold(delta, tl.load(layout + tensor * LAYOUT_COLUMNS + ROW_LENGTH), rule)
    row = rows * 0
    while row < rows:
        wg = tl.zeros([ROWS, COLS], rule.real)
        ww = tl.zeros([ROWS, COLS], rule.real)
        gg = tl.zeros([ROWS, COLS], rule.real)
        if FITS:
            offsets, mask = window(row, rows, pitch, 0, width, ROWS, COLS, ALIGNED)
            w = load(tensors[0], offsets, mask, rule)
            g = gradient(tensors[1], offsets, mask, grad_scale, rule)
            wg, ww, gg = w * g, w * w, g * g
        else:
            column = width * 0
            while column < width:
                offsets, mask = window(row, rows, pitch, column, width, ROWS, COLS, ALIGNED)
                w = load(tensors[0], offsets, mask, rule)
                g = gradient(tensors[1], offsets, mask, grad_scale, rule)
                wg += w * g
                ww += w * w
                gg += g * g
                column += COLS
        row_wg, row_ww, row_gg = tl.sum(wg, 1), tl.sum(ww, 1), tl.sum(gg, 1)
        # Rows that are not below are counted: a maximum over rows would drop NaN.
        exists = tl.arange(0, ROWS) < rows - row
        below = is_below(row_wg, row_ww, row_gg, limit, eps)
        not_below += tl.where(exists, tl.where(below, 0, 1), 0)
        all_wg += row_wg
        all_ww += row_ww
        all_gg += row_gg
        row += ROWS
    tl.store(sums + slot, tl.sum(all_wg))
    tl.store(sums + num_slots + slot, tl.sum(all_ww))
    tl.store(sums + 2 * num_slots + slot, tl.sum(all_gg))
    tl.store(sums + 3 * num_slots + slot, tl.sum(not_below).to(rule.real))


@triton.jit(do_not_specialize=["num_slots"])
def row_sums(
    pointers, layout, items, sums, grad_scale, num_slots, delta: tl.float64, eps: tl.float64, rule: tl.constexpr
):  # fmt: skip
    """Write w·g, w·w, g·g and the rows that fail the test of each item: 8 bytes of traffic per float32 weight.

    Of a part of a split row the three sums count. One program per item.
    """
    arguments = (sums, grad_scale, num_slots, delta, scalar(eps, rule.real))
    by_tile(_row_sums, pointers, layout, items, arguments, rule)


@triton.jit
def _add_up_rows(layout, sums, num_slots, tensor, delta, eps, rule: tl.constexpr, BLOCK: tl.constexpr):
    """Return w·g, w·w and g·g of one tensor, and how many of its rows are not below the threshold."""
    entry = layout + tensor * LAYOUT_COLUMNS
    num_rows = tl.load(entry + NUM_ROWS)
    length = tl.load(entry + ROW_LENGTH)
    parts = tl.load(entry + PARTS)
    slot = tl.load(entry + FIRST_SLOT)
    # The items' sums, or those of split rows, which are tested here
    num_sums = tl.where(parts > 1, num_rows, tl.cdiv(num_rows, tl.load(entry + ITEM_ROWS)))
    all_wg = tl.zeros([BLOCK], rule.real)
    all_ww = tl.zeros([BLOCK], rule.real)
    all_gg = tl.zeros([BLOCK], rule.real)
    not_below = tl.zeros([BLOCK], rule.real)
    limit = threshold(delta, length, rule)
    first = num_sums * 0
    while first < num_sums:
        indices = first + tl.arange(0, BLOCK)
        exists = indices < num_sums
        wg = tl.zeros([BLOCK], rule.real)
        ww = tl.zeros([BLOCK], rule.real)
        gg = tl.zeros([BLOCK], rule.real)
        part = parts * 0
        while part < parts:
            at = sums + slot + part * num_rows + indices
            wg += tl.load(at, mask=exists, other=0)
            ww += tl.load(at + num_slots, mask=exists, other=0)
            gg += tl.load(at + 2 * num_slots, mask=exists, other=0)
            part += 1
        if parts > 1:
            below = is_below(wg, ww, gg, limit, eps)
            not_below += tl.where(exists, tl.where(below, 0.0, 1.0), 0.0)
        else:
            not_below += tl.load(sums + 3 * num_slots + slot + indices, mask=exists, other=0)
        all_wg += wg
        all_ww += ww
        all_gg += gg
        first += BLOCK
    return tl.sum(all_wg), tl.sum(all_ww), tl.sum(all_gg), tl.sum(not_below)


@triton.jit
def _test(layout, sums, totals, num_slots, tensor, delta, eps, rule: tl.constexpr, BLOCK: tl.constexpr):
    """Return the decision of one tensor: by its rows, else as one vector."""
    entry = layout + tensor * LAYOUT_COLUMNS
    if totals is not None:
        total = totals + tensor * TOTAL_COLUMNS
        wg, ww, gg, not_below = tl.load(total), tl.load(total + 1), tl.load(total + 2), tl.load(total + 3)
    else:
        wg, ww, gg, not_below = _add_up_rows(layout, sums, num_slots, tensor, delta, eps, rule, BLOCK)
    limit = threshold(delta, tl.load(entry + ALL_ROWS) * tl.load(entry + ROW_LENGTH), rule)
    layer = is_below(wg, ww, gg, limit, eps)
    return tl.where(not_below == 0, CHANNEL, tl.where(layer, LAYER, NONE))


@triton.jit(do_not_specialize=["num_slots"])
def add_up_rows(
    layout, sums, totals, num_slots, delta: tl.float64, eps: tl.float64, rule: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the sums over this process's rows of each examined tensor. One program per tensor."""
    tensor = tl.program_id(0).to(tl.int64)
    if tl.load(layout + tensor * LAYOUT_COLUMNS + IS_EXAMINED) != 0:
        wg, ww, gg, not_below = _add_up_rows(
            layout, sums, num_slots, tensor, delta, scalar(eps, rule.real), rule, BLOCK
        )  # fmt: skip
        total = totals + tensor * TOTAL_COLUMNS
        tl.store(total, wg)
        tl.store(total + 1, ww)
        tl.store(total + 2, gg)
        tl.store(total + 3, not_below)


@triton.jit(do_not_specialize=["num_slots"])
def decide(
    pointers, layout, sums, totals, scalars, lr_tensor, found_inf, num_slots,
    lr: tl.float64, weight_decay: tl.float64, wd_ratio: tl.float64, delta: tl.float64, eps: tl.float64,
    log_beta1: tl.float64, log_beta2: tl.float64, rule: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Decide on the projection, count the step and write the step's scalars. One program per tensor."""
    tensor = tl.program_id(0).to(tl.int64)
    decision = tl.full((), NONE, tl.int32)
    if tl.load(layout + tensor * LAYOUT_COLUMNS + IS_EXAMINED) != 0:
        if rule.auto:
            decision = _test(
                layout, sums, totals, num_slots, tensor, delta, scalar(eps, rule.real), rule, BLOCK
            ).to(tl.int32)  # fmt: skip
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
    tensors, row, rows, pitch, width, grad_scale, bias, hyper, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Return w·u and w·w of the given columns of a tile's rows, (ROWS, 1) each."""
    wu = tl.zeros([ROWS, COLS], rule.real)
    ww = tl.zeros([ROWS, COLS], rule.real)
    if FITS:
        offsets, mask = window(row, rows, pitch, 0, width, ROWS, COLS, ALIGNED)
        w, _, _, update = proposal(tensors, offsets, mask, grad_scale, bias, hyper, rule)
        wu = tl.where(mask, w * update, 0)
        ww = w * w
    else:
        column = width * 0
        while column < width:
            offsets, mask = window(row, rows, pitch, column, width, ROWS, COLS, ALIGNED)
            w, _, _, update = proposal(tensors, offsets, mask, grad_scale, bias, hyper, rule)
            wu += tl.where(mask, w * update, 0)
            ww += w * w
            column += COLS
    return tl.sum(wu, 1)[:, None], tl.sum(ww, 1)[:, None]


@triton.jit
def _radial_sums(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, scalars, grad_scale, num_slots, hyper = arguments
    decision = tl.load(scalars + tensor * SCALAR_COLUMNS + DECISION)
    parts = tl.load(layout + tensor * LAYOUT_COLUMNS + PARTS)
    if (decision == LAYER) | ((decision == CHANNEL) & (parts > 1)):
        _, entry, rows, pitch, width, slot, _ = span(layout, tensor, index, ALIGNED)
        tensors = addresses(pointers, tensor, entry, rule, ALIGNED)
        bias = tl.load(scalars + tensor * SCALAR_COLUMNS + BIAS_CORRECTION).to(rule.real)
        all_wu = tl.zeros([ROWS, 1], rule.real)
        all_ww = tl.zeros([ROWS, 1], rule.real)
        row = rows * 0
        while row < rows:
            wu, ww = _dot_update(
                tensors, row, rows, pitch, width, grad_scale, bias, hyper, rule, ROWS, COLS, FITS, ALIGNED
            )  # fmt: skip
            all_wu += wu
            all_ww += ww
            row += ROWS
        tl.store(sums + slot, tl.sum(all_wu))
        tl.store(sums + num_slots + slot, tl.sum(all_ww))


@triton.jit(do_not_specialize=["num_slots"])
def radial_sums(
    pointers, layout, items, sums, scalars, grad_scale, num_slots,
    eps: tl.float64, keep1: tl.float64, gain1: tl.float64, keep2: tl.float64, gain2: tl.float64, rule: tl.constexpr,
):  # fmt: skip
    """Write w·u and w·w of tensors projected as one vector and of split rows: 16 bytes per float32 weight.

    One program per item; those of all other tensors return at once. A loop over items in fewer programs would make them
    spill registers.
    """
    arguments = (sums, scalars, grad_scale, num_slots, hyperparameters(eps, keep1, gain1, keep2, gain2, rule))
    by_tile(_radial_sums, pointers, layout, items, arguments, rule)


@triton.jit(do_not_specialize=["num_slots"])
def coefficients(
    layout, sums, totals, scalars, num_slots, eps: tl.float64, rule: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Add up what `radial_sums` wrote: a coefficient per split row (instead of its first w·u) or one of the tensor.

    Of tensors whose rows are divided among processes the sums, as this process's part. One program per tensor.
    """
    tensor = tl.program_id(0).to(tl.int64)
    entry = layout + tensor * LAYOUT_COLUMNS
    num_rows = tl.load(entry + NUM_ROWS)
    parts = tl.load(entry + PARTS)
    slot = tl.load(entry + FIRST_SLOT)
    decision = tl.load(scalars + tensor * SCALAR_COLUMNS + DECISION)
    if (decision == LAYER) | ((decision == CHANNEL) & (parts > 1)):
        num_sums = tl.where(parts > 1, num_rows, tl.cdiv(num_rows, tl.load(entry + ITEM_ROWS)))
        clamp = scalar(eps, rule.real)
        all_wu = tl.zeros([BLOCK], rule.real)
        all_ww = tl.zeros([BLOCK], rule.real)
        first = num_sums * 0
        while first < num_sums:
            indices = first + tl.arange(0, BLOCK)
            exists = indices < num_sums
            wu = tl.zeros([BLOCK], rule.real)
            ww = tl.zeros([BLOCK], rule.real)
            part = parts * 0
            while part < parts:
                at = sums + slot + part * num_rows + indices
                wu += tl.load(at, mask=exists, other=0)
                ww += tl.load(at + num_slots, mask=exists, other=0)
                part += 1
            if decision == CHANNEL:
                tl.store(sums + slot + indices, radial_coefficient(wu, ww, clamp), mask=exists)
            all_wu += wu
            all_ww += ww
            first += BLOCK
        if totals is not None:
            tl.store(totals + tensor * TOTAL_COLUMNS, tl.sum(all_wu))
            tl.store(totals + tensor * TOTAL_COLUMNS + 1, tl.sum(all_ww))
        else:
            total = radial_coefficient(tl.sum(all_wu), tl.sum(all_ww), clamp)
            tl.store(scalars + tensor * SCALAR_COLUMNS + LAYER_COEFFICIENT, total.to(tl.float64))


@triton.jit
def _write(
    tensors, offsets, mask, w, first, second, update, coefficient, decision, step_size, decay, rule: tl.constexpr
):  # fmt: skip
    """Project a tile's update, step and write weights and states."""
    weight, _, first_state, second_state, compensation = tensors
    if decision != NONE:
        update = update - coefficient * w
    step = update * step_size
    if rule.decay:
        step += w * decay  # rounded once with the step: alone, a small decay would leave w as it is
    if rule.kahan:
        step -= load(compensation, offsets, mask, rule)
        rounded = (w - step).to(rule.stored)
        lost = (w - rounded.to(rule.real)) - step
        tl.store(compensation + offsets, lost.to(rule.stored), mask=mask)
        tl.store(weight + offsets, rounded, mask=mask)
    else:
        tl.store(weight + offsets, w - step, mask=mask)
    if rule.buffer:
        if rule.project_buffer:
            first = update
        tl.store(first_state + offsets, first, mask=mask)
    if rule.adam:
        tl.store(second_state + offsets, second, mask=mask)


@triton.jit
def _apply_update(
    pointers, layout, tensor, index, arguments, rule: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, FITS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    sums, totals, scalars, grad_scale, hyper = arguments
    own_scalars = scalars + tensor * SCALAR_COLUMNS
    decision = tl.load(own_scalars + DECISION)
    if decision != SKIP:
        step_size = tl.load(own_scalars + STEP_SIZE).to(rule.real)
        decay = tl.load(own_scalars + DECAY).to(rule.real)
        bias = tl.load(own_scalars + BIAS_CORRECTION).to(rule.real)
        first_row, entry, rows, pitch, width, _, parts = span(layout, tensor, index, ALIGNED)
        tensors = addresses(pointers, tensor, entry, rule, ALIGNED)
        coefficient = tl.zeros([ROWS, 1], rule.real)
        if decision == LAYER:
            if totals is not None:
                total = totals + tensor * TOTAL_COLUMNS
                coefficient += radial_coefficient(tl.load(total), tl.load(total + 1), hyper[0])
            else:
                coefficient += tl.load(own_scalars + LAYER_COEFFICIENT).to(rule.real)
        elif (decision == CHANNEL) & (parts > 1):
            # A row's coefficient lies in the slot of its first part
            coefficient += tl.load(sums + tl.load(layout + tensor * LAYOUT_COLUMNS + FIRST_SLOT) + first_row)
        row = rows * 0
        while row < rows:
            if FITS:
                # Whole rows: all stays in registers between the row's inner products and its update
                offsets, mask = window(row, rows, pitch, 0, width, ROWS, COLS, ALIGNED)
                w, first, second, update = proposal(tensors, offsets, mask, grad_scale, bias, hyper, rule)
                if decision == CHANNEL:
                    wu = tl.sum(tl.where(mask, w * update, 0), 1)[:, None]
                    coefficient = radial_coefficient(wu, tl.sum(w * w, 1)[:, None], hyper[0])
                _write(
                    tensors, offsets, mask, w, first, second, update, coefficient, decision, step_size, decay,
                    rule,
                )  # fmt: skip
            else:
                if (decision == CHANNEL) & (parts == 1):
                    # A whole row at once: its data is still in the cache when the loop below reads it again.
                    wu, ww = _dot_update(
                        tensors, row, rows, pitch, width, grad_scale, bias, hyper, rule,
                        ROWS, COLS, FITS, ALIGNED,
                    )  # fmt: skip
                    coefficient = radial_coefficient(wu, ww, hyper[0])
                column = width * 0
                while column < width:
                    offsets, mask = window(row, rows, pitch, column, width, ROWS, COLS, ALIGNED)
                    w, first, second, update = proposal(tensors, offsets, mask, grad_scale, bias, hyper, rule)
                    _write(
                        tensors, offsets, mask, w, first, second, update, coefficient, decision, step_size,
                        decay, rule,
                    )  # fmt: skip
                    column += COLS
            row += ROWS


@triton.jit
def apply_update(
    pointers, layout, items, sums, totals, scalars, grad_scale,
    eps: tl.float64, keep1: tl.float64, gain1: tl.float64, keep2: tl.float64, gain2: tl.float64, rule: tl.constexpr,
):  # fmt: skip
    """Update weights, states: 28 bytes of traffic per float32 weight for AdamP, 20 for SGDP; one program per item."""
    arguments = (sums, totals, scalars, grad_scale, hyperparameters(eps, keep1, gain1, keep2, gain2, rule))
    by_tile(_apply_update, pointers, layout, items, arguments, rule)
