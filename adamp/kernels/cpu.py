"""AdamP and SGDP for all tensors in one call on the CPU: passes their addresses to `cpu.cpp`.

The kernel is plain C++ without torch's headers, so it needs a compiler only: a few seconds at the first use on a
machine, or beforehand with `python -m adamp.kernels.cpu`, for an image that runs elsewhere with `--package`.
`adamp.kernels.cpu_build` says where the library is stored.

The specification is the single-tensor implementation in `adamp.adamp` and `adamp.sgdp`; the results differ from it
in rounding alone and do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from adamp.kernels.cpu_build import BuildError, build, compile_packaged, is_compiled, load, unavailable_reason
from adamp.kernels.options import AdamPOptions, SGDPOptions, StepOptions, Unmoved
from adamp.marks import ScaleInvariantMode

__all__ = ["BuildError", "adamp", "build", "is_compiled", "sgdp", "supports", "unavailable_reason"]

KEEPS_COMPENSATION = False
TAKES_SHARDS = False
_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_TENSOR_TYPES = (Tensor, torch.nn.Parameter)  # not their subclasses: a DTensor's memory is not its entries


class _Options(ctypes.Structure):
    """`Options` of step.h."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "decay", "beta1", "beta2", "eps", "delta", "wd_ratio")),
        ("grad_factor", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("nesterov", "project_buffer", "moments", "threads")),
        ("parallel", ctypes.c_void_p),
    )


@functools.cache
def _parallel() -> int | None:
    """Return the address of the fork in the OpenMP runtime that torch has loaded, or None.

    Threads of a second runtime would spin against the first's. Without it the kernel starts plain threads.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError):
        return None


def _strides(x: Tensor) -> list[tuple[int, int]]:
    # The stride of a dimension of size 1 means nothing.
    return [(size, stride) for size, stride in zip(x.shape, x.stride(), strict=True) if size != 1]


def _has_dense_rows(x: Tensor) -> bool:
    """Return whether row k is the k-th run of `C` entries in memory, in any order within the row."""
    if x.ndim < 2:
        return False  # a vector that is not contiguous
    rows, expected = x.shape[0], 1
    for size, stride in sorted(_strides(x[:1]), key=lambda pair: pair[1]):
        if stride != expected:
            return False
        expected *= size
    return rows == 1 or x.stride(0) == expected


def supports(param: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Return whether the kernel can step this parameter.

    All must be plain CPU tensors of one of float32, float64, bfloat16 and float16, of one shape and with the same
    strides, and each row `param[k]` dense in memory: contiguous and channels_last tensors, not transposed ones.

    Args:
        param: The parameter.
        grad: Its gradient.
        states: Its moments or its momentum buffer.
    """
    dtype, size, contiguous = param.dtype, param.numel(), param.is_contiguous()
    if dtype not in _DTYPES:
        return False
    for x in (param, grad, *states):
        if type(x) not in _TENSOR_TYPES or not x.is_cpu or x.dtype is not dtype or x.is_neg():
            return False
        if x.numel() != size or x.is_contiguous() is not contiguous:
            return False
    if contiguous or size == 0:
        return True
    strides = _strides(param)
    return _has_dense_rows(param) and all(_strides(x) == strides for x in (grad, *states))


def adamp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    *,
    unmoved: Unmoved | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Unpack[AdamPOptions],
) -> None:
    """Make one step of AdamP in place, in parameters, moments and counts; see `adamp.AdamP` for the update.

    Args:
        params: Parameters, each of which `supports` accepts with its gradient and moments.
        grads: Their gradients, read only.
        exp_avgs: First moments.
        exp_avg_sqs: Second moments.
        steps: 0-d float32 CPU tensors, numbers of steps before this one.
        unmoved: Not used here: addresses are handed over at each step.
        grad_scale: The factor by which `torch.amp.GradScaler` has multiplied the gradients.
        found_inf: If not 0, nothing changes and no step is counted.
        **options: The optimizer's options.

    Raises:
        BuildError: There is no kernel on this machine, see `unavailable_reason`.
    """
    if _is_skipped(found_inf):
        return
    passed = _common_options(options, grad_scale)
    passed.beta1, passed.beta2 = options["betas"]
    passed.moments = 2
    passed.decay = passed.lr * options["weight_decay"]
    _run("adamp_step", passed, options["scale_invariant"], params, grads, exp_avgs, exp_avg_sqs, steps)


def sgdp(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    *,
    unmoved: Unmoved | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    **options: Unpack[SGDPOptions],
) -> None:
    """Make one step of SGDP in place, in parameters and buffers; see `adamp.SGDP` for the update.

    Args:
        params: Parameters, each of which `supports` accepts with its gradient and buffer.
        grads: Their gradients, read only.
        momentum_buffers: Momentum buffers, zeros before the first step; None at momentum 0.
        unmoved: Not used here: addresses are handed over at each step.
        grad_scale: The factor by which `torch.amp.GradScaler` has multiplied the gradients.
        found_inf: If not 0, nothing changes.
        **options: The optimizer's options.

    Raises:
        BuildError: There is no kernel on this machine, see `unavailable_reason`.
    """
    if _is_skipped(found_inf):
        return
    passed, momentum, weight_decay = _common_options(options, grad_scale), options["momentum"], options["weight_decay"]
    passed.beta1, passed.beta2 = momentum, 1 - options["dampening"]
    passed.decay = passed.lr * weight_decay / (1 - momentum) if weight_decay > 0 else 0.0
    passed.project_buffer = options["project_buffer"] and not options["nesterov"]
    buffers = () if momentum_buffers is None else (momentum_buffers,)
    passed.moments = len(buffers)
    _run("sgdp_step", passed, options["scale_invariant"], params, grads, *buffers)


def _is_skipped(found_inf: Tensor | None) -> bool:
    return found_inf is not None and float(found_inf) != 0


def _common_options(options: StepOptions, grad_scale: Tensor | None) -> _Options:
    passed = _Options(nesterov=options["nesterov"])
    passed.lr, passed.eps = float(options["lr"]), float(options["eps"])
    passed.delta, passed.wd_ratio = float(options["delta"]), float(options["wd_ratio"])
    passed.grad_factor = (-1.0 if options["maximize"] else 1.0) / (1.0 if grad_scale is None else float(grad_scale))
    passed.threads = torch.get_num_threads()
    passed.parallel = _parallel()
    return passed


def _run(name: str, options: _Options, mode: ScaleInvariantMode, *tensors: Sequence[Tensor]) -> None:
    step = getattr(load(), name)
    params = tensors[0]
    # One `Tensor` of step.h per parameter: five addresses, rows, columns, dtype and mode
    kernel_mode = 1 if mode == "auto" else 2 if mode else 0  # `Mode` of step.h
    table: list[int] = []
    unused_addresses = [0] * (5 - len(tensors))
    for param, *others in zip(*tensors, strict=True):
        size = param.numel()
        is_matrix = param.ndim > 1
        rows = param.shape[0] if is_matrix and mode != "tensor" else 1
        table += [param.data_ptr(), *(x.data_ptr() for x in others)]
        table += unused_addresses
        table += (rows, size // rows if rows else 0, _DTYPES[param.dtype], kernel_mode if is_matrix else 0)
    memory = array("q", table)
    step(ctypes.c_int64(len(params)), ctypes.c_void_p(memory.buffer_info()[0]), ctypes.byref(options))
    torch.autograd.graph.increment_version(params)  # so that autograd notices the change of weights it has saved


def main() -> int:
    """Compile the kernel and print its path; with --package into this installation, for other processors too."""
    try:
        if "--package" in sys.argv[1:]:
            compile_packaged()
        was_compiled = is_compiled()
        path = build()
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(f"{'already built' if was_compiled else 'built'}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
