"""AdamP and SGDP for CUDA: at most five kernels a step for any number of tensors, nothing read back to the host.

A step is: inner products of the rows of weight and gradient; one decision a tensor; w·u where several programs share
what is projected as one; its sum; the update. Per float32 weight AdamP moves 36 bytes, SGDP 28; a tensor projected as
one vector 16 (12) more. Addresses, shapes and the list of work lie in tables on the device, which are sent anew only
when a tensor has moved. Learning rate, step count, `grad_scale` and `found_inf` are read on the device.

CUDA graphs: make a step before the capture, as for torch's own optimizers.

Under Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton) the same kernels run on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from adamp.kernels.triton_tables import locate
from adamp.projection import Mark

PLAIN = (Tensor, Parameter)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OLDEST = (3, 6)  # the Triton of torch 2.11, the oldest that they were tried with
BLOCK = 1024  # rows that one program adds up at a time


@functools.cache
def _kernels() -> ModuleType | None:
    # At the first use and not at import: triton takes long to import and reads TRITON_INTERPRET then.
    try:
        from adamp.kernels import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def _interpreting() -> bool:
    kernels = _kernels()
    return kernels is not None and type(kernels.descend).__name__ == "InterpretedFunction"


@functools.cache
def _device_type() -> str:
    return "cpu" if _interpreting() else "cuda"


def refusal() -> str | None:
    """Return why these kernels cannot be used here, or None if they can."""
    kernels = _kernels()
    if kernels is None:
        return "triton is not installed"
    version = kernels.triton.__version__
    if tuple(int(x) for x in version.split(".")[:2]) < OLDEST:
        return f"triton {version} is installed, the kernels need {'.'.join(map(str, OLDEST))} or newer"
    if not (_interpreting() or torch.cuda.is_available()):
        return "there is no CUDA device"
    return None


def built() -> bool:
    """Whether a step may be made without asking for it: Triton compiles at the first step, in seconds."""
    return refusal() is None


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


def _rows_are_dense(x: Tensor) -> bool:
    """Whether memory holds one row after the other without a gap; their entries may lie in any order."""
    if x.ndim > 1 and x.shape[0] > 1 and x.stride(0) != x.numel() // x.shape[0]:
        return False
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def takes(param: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Whether the kernels can step a parameter: where it lies, its dtype, its memory format.

    All tensors must be plain tensors of one device, dtype, shape and memory format, each row (index of the first
    dimension) dense in memory, as contiguous and channels-last weights are.
    """
    # Asked of each parameter at each step: the common case, all contiguous, has to be quick.
    if param.device.type != _device_type() or param.dtype not in DTYPES:
        return False
    device, dtype, shape = param.device, param.dtype, param.shape
    for x in (param, grad, *states):
        if x.dtype != dtype or x.shape != shape or x.device != device or x.layout is not torch.strided:
            return False
        if type(x) not in PLAIN and is_traceable_wrapper_subclass(x):
            return False
    if all(x.is_contiguous() for x in (param, grad, *states)):
        return True
    strides = _strides(param)
    return _rows_are_dense(param) and all(_strides(x) == strides for x in (grad, *states))


@dataclass(frozen=True)
class _Hyper:
    """The numbers of a step; `adamp.kernels.triton_tiles.propose` has the formulas of the last four."""

    lr: float | Tensor
    weight_decay: float  # per unit of lr, all factors but `wd_ratio` in it
    delta: float
    wd_ratio: float
    eps: float
    keep: tuple[float, float]
    gain: tuple[float, float]
    betas: tuple[float, float] = (0.0, 0.0)


def _on(device: torch.device, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.to(device, non_blocking=True)


def _launch(kernel: Any, grid: int, *args: Any) -> None:
    if grid > 0:
        kernel[(grid,)](*args)


def _step(
    params: Sequence[Tensor],
    columns: Sequence[Sequence[Tensor] | None],
    hyper: _Hyper,
    *,
    mark: Mark,
    flags: dict[str, bool],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Step parameters of one device and dtype."""
    kernels, device, dtype = _kernels(), params[0].device, params[0].dtype
    assert kernels is not None
    stored, real = kernels.dtypes(dtype)
    rule = kernels.Rule(stored, real, auto=mark == "auto", decay=hyper.weight_decay > 0, **flags)
    lr, lr_tensor = (0.0, hyper.lr) if isinstance(hyper.lr, Tensor) else (hyper.lr, None)
    if lr_tensor is not None and lr_tensor.device.type == "cpu" and device.type != "cpu":
        lr, lr_tensor = lr_tensor.item(), None  # on the host already: nothing waits
    lr_tensor, scale, infinite = (_on(device, x) for x in (lr_tensor, grad_scale, found_inf))
    numbers = (hyper.eps, hyper.keep[0], hyper.gain[0], hyper.keep[1], hyper.gain[1])
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in hyper.betas)

    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        tables, pointers = locate(params, columns, examine=mark is not False)
        layout, items, sums, scalars = tables.layout, tables.items, tables.sums, tables.scalars
        slots, examined = sums.shape[1], tables.num_examined
        if rule.auto:
            _launch(kernels.row_sums, examined, pointers, layout, items, sums, scale, slots, rule)
        _launch(
            kernels.decide, len(params), pointers, layout, sums, scalars, lr_tensor, infinite, slots,
            lr, hyper.weight_decay, hyper.wd_ratio, hyper.delta, hyper.eps, *logs, rule, BLOCK,
        )  # fmt: skip
        if examined and (rule.auto or tables.shared):
            _launch(
                kernels.radial_sums, examined, pointers, layout, items, sums, scalars, scale, slots, *numbers, rule
            )  # fmt: skip
            _launch(kernels.coefficients, len(params), layout, sums, scalars, slots, hyper.eps, rule, BLOCK)
        _launch(kernels.descend, tables.num_items, pointers, layout, items, sums, scalars, scale, *numbers, rule)


def _by_device_and_dtype(
    params: Sequence[Tensor], columns: Sequence[Sequence[Tensor] | None]
) -> list[tuple[list[Tensor], list[list[Tensor] | None]]]:
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, param in enumerate(params):
        groups.setdefault((param.device, param.dtype), []).append(i)
    return [
        ([params[i] for i in group], [None if column is None else [column[i] for i in group] for column in columns])
        for group in groups.values()
    ]


def adamp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    delta: float,
    wd_ratio: float,
    nesterov: bool,
    maximize: bool,
    scale_invariant: Mark,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Make one step of `adamp.AdamP`, whose options these are, in place; gradients are left as they are.

    Args:
        params: The weights, each with its gradient and states such that `takes` accepts them.
        grads: The gradients as backward left them, times `grad_scale`.
        exp_avgs: The first moments.
        exp_avg_sqs: The second moments.
        steps: Float32 0-d tensors on the weights' device, steps made so far; counted up here.
        lr: A float, or a 0-d tensor, which is read on its device.
        betas: See `AdamP`, as for what follows.
        eps: See above.
        weight_decay: See above.
        delta: See above.
        wd_ratio: See above.
        nesterov: See above.
        maximize: See above.
        scale_invariant: See above.
        grad_scale: The factor of the gradients, one float32.
        found_inf: One float32; unless it is 0 nothing changes, the step counts neither.
    """
    hyper = _Hyper(lr, weight_decay, delta, wd_ratio, eps, keep=betas, gain=(1 - betas[0], 1 - betas[1]), betas=betas)
    flags = {"adam": True, "nesterov": nesterov, "buffer": True, "maximize": maximize, "project_buffer": False}
    for group, columns in _by_device_and_dtype(params, (params, grads, exp_avgs, exp_avg_sqs, steps)):
        _step(group, columns, hyper, mark=scale_invariant, flags=flags, grad_scale=grad_scale, found_inf=found_inf)


def sgdp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    *,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    eps: float,
    delta: float,
    wd_ratio: float,
    maximize: bool,
    scale_invariant: Mark,
    project_buffer: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Make one step of `adamp.SGDP`, whose options these are, in place; gradients are left as they are.

    Args:
        params: The weights, each with its gradient and buffer such that `takes` accepts them.
        grads: The gradients as backward left them, times `grad_scale`.
        momentum_buffers: The momentum buffers; None at momentum 0.
        lr: A float, or a 0-d tensor, which is read on its device.
        momentum: See `SGDP`, as for what follows.
        dampening: See above.
        weight_decay: See above.
        nesterov: See above.
        eps: See above.
        delta: See above.
        wd_ratio: See above.
        maximize: See above.
        scale_invariant: See above.
        project_buffer: See above.
        grad_scale: The factor of the gradients, one float32.
        found_inf: One float32; unless it is 0 nothing changes.
    """
    decay = weight_decay / (1 - momentum) if weight_decay > 0 else 0.0
    hyper = _Hyper(lr, decay, delta, wd_ratio, eps, keep=(momentum, 0.0), gain=(1 - dampening, 0.0))
    buffers = momentum_buffers if momentum != 0 else None
    flags = {
        "adam": False, "nesterov": nesterov, "buffer": buffers is not None, "maximize": maximize,
        "project_buffer": project_buffer and not nesterov,
    }  # fmt: skip
    for group, columns in _by_device_and_dtype(params, (params, grads, buffers, None, None)):
        _step(group, columns, hyper, mark=scale_invariant, flags=flags, grad_scale=grad_scale, found_inf=found_inf)
