"""AdamP and SGDP for CUDA: at most five kernels per step for any number of tensors, without a host read.

Of weights whose rows are divided among processes (FSDP2) each steps its own rows; the sums on which a tensor's decision
rests, and those of a tensor projected as one vector, are one small all-reduce each.

A step computes the inner products of the rows of weight and gradient, one decision per tensor, w·u of rows or tensors
that several programs share, its sum, and the update. Per float32 weight AdamP moves 36 bytes, SGDP 28; a tensor
projected as one vector 16 (12) more. Addresses, shapes and work items are tables on the device, which are sent again
only when a tensor has moved. Learning rate, step count, `grad_scale` and `found_inf` are read on the device.

CUDA graphs: make a step before the capture, as for torch's optimizers.

Under Triton's interpreter (TRITON_INTERPRET=1 before the first import of triton) the same kernels run on the CPU.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from adamp.kernels.options import AdamPOptions, SGDPOptions, Shards, StepOptions, Unmoved
from adamp.kernels.triton_tables import Examined, locate

KEEPS_COMPENSATION = True
TAKES_SHARDS = True
PLAIN = (Tensor, Parameter)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OLDEST_VERSION = (3, 6)  # the Triton of torch 2.11, the oldest one tested
# Without a limit ptxas chooses one by itself, and then spills a few registers. With 72 of them 7 programs run on an SM.
RESOURCES = {"num_warps": 4, "maxnreg": 72}
# float64 has half as many entries a thread; with every option its update needs some registers more
WIDE_RESOURCES = {"num_warps": 8, "maxnreg": 80}
WIDE_UPDATE_RESOURCES = {"num_warps": 8, "maxnreg": 88}
BLOCK = 256  # sums that one program adds up at a time


@functools.cache
def _kernels() -> ModuleType | None:
    # At the first use, not at import: triton is slow to import and reads TRITON_INTERPRET then.
    try:
        from adamp.kernels import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def _is_interpreted() -> bool:
    kernels = _kernels()
    return kernels is not None and type(kernels.apply_update).__name__ == "InterpretedFunction"


@functools.cache
def _device_type() -> str:
    return "cpu" if _is_interpreted() else "cuda"


def unavailable_reason() -> str | None:
    """Return why these kernels cannot be used here, or None if they can."""
    kernels = _kernels()
    if kernels is None:
        return "triton is not installed"
    version = kernels.triton.__version__
    if tuple(int(x) for x in version.split(".")[:2]) < OLDEST_VERSION:
        return f"triton {version} is installed, the kernels need {'.'.join(map(str, OLDEST_VERSION))} or newer"
    if not (_is_interpreted() or torch.cuda.is_available()):
        return "there is no CUDA device"
    return None


def is_compiled() -> bool:
    """Return whether the kernels can be used; Triton compiles them at the first step, in seconds."""
    return unavailable_reason() is None


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1)


def _has_dense_rows(x: Tensor) -> bool:
    """Return whether rows follow each other in memory without a gap, with their entries in any order."""
    if x.ndim > 1 and x.shape[0] > 1 and x.stride(0) != x.numel() // x.shape[0]:
        return False
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


def supports(param: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Return whether the kernels support a parameter: its device, dtype and memory format.

    All tensors must be plain tensors of one device, dtype, shape and memory format, each row (index of the first
    dimension) dense in memory, as contiguous and channels-last weights are.
    """
    # Called for each parameter at each step: the common case, all contiguous, has to be quick.
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
    return _has_dense_rows(param) and all(_strides(x) == strides for x in (grad, *states))


@dataclass(frozen=True)
class _Hyper:
    """The numbers of a step; see `adamp.kernels.triton_tiles.propose` for `keep`, `gain` and `betas`."""

    weight_decay: float  # per unit of lr, without `wd_ratio`
    keep: tuple[float, float]
    gain: tuple[float, float]
    betas: tuple[float, float] = (0.0, 0.0)


def _to_device(device: torch.device, value: Tensor | None) -> Tensor | None:
    return None if value is None else value.to(device, non_blocking=True)


def _launch(kernel: Any, grid: int, *args: Any, **resources: int) -> None:
    if grid > 0:
        kernel[(grid,)](*args, **resources)


def _step(
    params: Sequence[Tensor],
    columns: Sequence[Sequence[Tensor] | None],
    hyper: _Hyper,
    options: StepOptions,
    *,
    flags: dict[str, bool],
    unmoved: Unmoved | None,
    shards: Shards | None,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Step parameters of one device and dtype."""
    kernels, device, dtype = _kernels(), params[0].device, params[0].dtype
    assert kernels is not None
    stored, real = kernels.dtypes(dtype)
    mode, eps = options["scale_invariant"], options["eps"]
    flags = {"nesterov": options["nesterov"], "maximize": options["maximize"], "kahan": columns[4] is not None, **flags}
    rule = kernels.Rule(stored, real, auto=mode == "auto", decay=hyper.weight_decay > 0, **flags)
    lr = options["lr"]
    lr, lr_tensor = (0.0, lr) if isinstance(lr, Tensor) else (lr, None)
    if lr_tensor is not None and lr_tensor.device.type == "cpu" and device.type != "cpu":
        lr, lr_tensor = lr_tensor.item(), None  # on the host already: no synchronisation
    lr_tensor, scale, infinite = (_to_device(device, x) for x in (lr_tensor, grad_scale, found_inf))
    is_wide = dtype == torch.float64
    launch: Callable[..., None] = functools.partial(_launch, **(WIDE_RESOURCES if is_wide else RESOURCES))
    numbers = (eps, hyper.keep[0], hyper.gain[0], hyper.keep[1], hyper.gain[1])
    logs = (math.log(beta) if beta > 0 else -math.inf for beta in hyper.betas)

    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        matrices: Examined = "none" if mode is False else "tensors" if mode == "tensor" else "rows"
        tables, pointers = locate(
            params, columns, examined=matrices, capturable=options["capturable"], unmoved=unmoved,
            all_rows=None if shards is None else shards.num_rows,
        )  # fmt: skip
        layout, items, sums, scalars = tables.layout, tables.items, tables.sums, tables.scalars
        slots, examined = sums.shape[1], tables.num_examined
        # Scale-invariance test (eq. 11)
        if rule.auto:
            launch(
                kernels.row_sums, examined, pointers, layout, items, sums, scale, slots, options["delta"], eps, rule
            )  # fmt: skip
        totals = None
        if rule.auto and shards is not None:
            totals = torch.zeros(len(params), 4, dtype=sums.dtype, device=device)
            launch(kernels.add_up_rows, len(params), layout, sums, totals, slots, options["delta"], eps, rule, BLOCK)
            shards.add_up_(totals)
        launch(
            kernels.decide, len(params), pointers, layout, sums, totals, scalars, lr_tensor, infinite, slots,
            lr, hyper.weight_decay, options["wd_ratio"], options["delta"], eps, *logs, rule, BLOCK,
        )  # fmt: skip
        # Radial part of rows and tensors that several programs share (eq. 10)
        if examined and (rule.auto or tables.shared):
            launch(
                kernels.radial_sums, examined, pointers, layout, items, sums, scalars, scale, slots, *numbers, rule
            )  # fmt: skip
            launch(kernels.coefficients, len(params), layout, sums, totals, scalars, slots, eps, rule, BLOCK)
        if totals is not None:
            assert shards is not None
            shards.add_up_(totals)
        # Projection, decay and step
        launch(
            kernels.apply_update, tables.num_items, pointers, layout, items, sums, totals, scalars, scale, *numbers,
            rule, **(WIDE_UPDATE_RESOURCES if is_wide else RESOURCES),
        )  # fmt: skip


def _by_device_and_dtype(
    params: Sequence[Tensor], columns: Sequence[Sequence[Tensor] | None], unmoved: Unmoved | None
) -> list[tuple[Sequence[Tensor], Sequence[Sequence[Tensor] | None]]]:
    if unmoved is not None:
        return [(params, columns)]
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
    compensations: Sequence[Tensor] | None = None,
    unmoved: Unmoved | None = None,
    shards: Shards | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Unpack[AdamPOptions],
) -> None:
    """Make one step of `adamp.AdamP` in place; gradients are read only.

    Args:
        params: The weights; `supports` accepts each with its gradient and states.
        grads: The gradients as backward left them, times `grad_scale`.
        exp_avgs: The first moments.
        exp_avg_sqs: The second moments.
        steps: Float32 0-d tensors on the weights' device, the numbers of steps so far; incremented in place.
        compensations: What rounding has taken from the weights, like these; None to lose it.
        unmoved: The same at each step as long as nothing but gradients has moved; then all are of one device and dtype.
        shards: Of parameters whose rows the same processes share; then all are of one device and dtype.
        grad_scale: The factor of the gradients, one float32.
        found_inf: One float32; unless it is 0 nothing changes and no step is counted.
        **options: The optimizer's options; `lr` is a float, or a 0-d tensor, which is read on its device.
    """
    betas = options["betas"]
    hyper = _Hyper(options["weight_decay"], keep=betas, gain=(1 - betas[0], 1 - betas[1]), betas=betas)
    flags = {"adam": True, "buffer": True, "project_buffer": False}
    for group, columns in _by_device_and_dtype(
        params, (params, grads, exp_avgs, exp_avg_sqs, compensations, steps), unmoved
    ):
        _step(
            group, columns, hyper, options, flags=flags, unmoved=unmoved, shards=shards, grad_scale=grad_scale,
            found_inf=found_inf,
        )  # fmt: skip


def sgdp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    *,
    compensations: Sequence[Tensor] | None = None,
    unmoved: Unmoved | None = None,
    shards: Shards | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Unpack[SGDPOptions],
) -> None:
    """Make one step of `adamp.SGDP` in place; gradients are read only.

    Args:
        params: The weights; `supports` accepts each with its gradient and buffer.
        grads: The gradients as backward left them, times `grad_scale`.
        momentum_buffers: The momentum buffers; None at momentum 0.
        compensations: What rounding has taken from the weights, like these; None to lose it.
        unmoved: The same at each step as long as nothing but gradients has moved; then all are of one device and dtype.
        shards: Of parameters whose rows the same processes share; then all are of one device and dtype.
        grad_scale: The factor of the gradients, one float32.
        found_inf: One float32; unless it is 0 nothing changes.
        **options: The optimizer's options; `lr` is a float, or a 0-d tensor, which is read on its device.
    """
    momentum, weight_decay = options["momentum"], options["weight_decay"]
    decay = weight_decay / (1 - momentum) if weight_decay > 0 else 0.0
    hyper = _Hyper(decay, keep=(momentum, 0.0), gain=(1 - options["dampening"], 0.0))
    buffers = momentum_buffers if momentum != 0 else None
    project_buffer = options["project_buffer"] and not options["nesterov"]
    flags = {"adam": False, "buffer": buffers is not None, "project_buffer": project_buffer}
    for group, columns in _by_device_and_dtype(params, (params, grads, buffers, None, compensations, None), unmoved):
        _step(
            group, columns, hyper, options, flags=flags, unmoved=unmoved, shards=shards, grad_scale=grad_scale,
            found_inf=found_inf,
        )  # fmt: skip
