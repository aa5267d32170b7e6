"""AdamP and SGDP for all tensors in one call on the CPU: hands their addresses to `cpu.cpp`.

The kernel is plain C++ without torch's headers, so a compiler is all it takes: a few seconds at the first use on a
machine, or beforehand with `python -m adamp.kernels.cpu`. Where the library lies: `adamp.kernels.cpu_build`.

The specification is the single-tensor path of `adamp.adamp` and `adamp.sgdp`; the results differ from it in rounding
alone and do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from adamp.kernels.cpu_build import BuildError, build, built, load, refusal
from adamp.projection import Mark

__all__ = ["BuildError", "adamp", "build", "built", "refusal", "sgdp", "takes"]

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_MARKS: dict[Mark, int] = {False: 0, "auto": 1, True: 2}
_TENSOR_TYPES = (Tensor, torch.nn.Parameter)  # not their subclasses: a DTensor's memory is not its entries


class _Options(ctypes.Structure):
    """`Options` of cpu.cpp."""

    _fields_ = (
        *((name, ctypes.c_double) for name in ("lr", "decay", "beta1", "beta2", "eps", "delta", "wd_ratio", "gain")),
        *((name, ctypes.c_int64) for name in ("nesterov", "project_buffer", "moments", "threads")),
        ("parallel", ctypes.c_void_p),
    )


@functools.cache
def _parallel() -> int | None:
    """Return the address of the fork in the OpenMP runtime that torch has loaded, None where it has none.

    Threads of a second runtime would spin against the first's. Without one the kernel starts plain threads.
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


def takes(param: Tensor, grad: Tensor, *states: Tensor) -> bool:
    """Return whether the kernel can step this parameter.

    It can where all are plain CPU tensors of one of float32, float64, bfloat16 and float16, of one shape and with the
    same strides, and each row `param[k]` is one run of memory: contiguous and channels_last tensors, not transposed
    ones.

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
    """Make one step of AdamP in place, in parameters, moments and counts; see `adamp.AdamP` for the update.

    Args:
        params: Parameters, each of which `takes` accepts with its gradient and moments.
        grads: Their gradients, which are not written to.
        exp_avgs: First moments.
        exp_avg_sqs: Second moments.
        steps: 0-d float32 CPU tensors, numbers of steps before this one.
        lr: Learning rate, and so on as in `adamp.AdamP`.
        betas: Decay rates of the moments.
        eps: Added to the denominator; guards the norms.
        weight_decay: Decoupled weight decay.
        delta: Threshold of the test.
        wd_ratio: Factor of the decay of projected tensors.
        nesterov: Use Nesterov's update.
        maximize: Ascend.
        scale_invariant: The mark of all these parameters.
        grad_scale: What the gradients have been multiplied by, as `torch.amp.GradScaler` gives it.
        found_inf: Nothing is done, and no step counted, where it is not 0.

    Raises:
        BuildError: There is no kernel on this machine, see `refusal`.
    """
    if _skip(found_inf):
        return
    options = _options(lr, eps, delta, wd_ratio, nesterov, maximize, grad_scale)
    options.beta1, options.beta2 = betas
    options.moments = 2
    options.decay = options.lr * weight_decay
    _run("adamp_step", options, scale_invariant, params, grads, exp_avgs, exp_avg_sqs, steps)


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
    """Make one step of SGDP in place, in parameters and buffers; see `adamp.SGDP` for the update.

    Args:
        params: Parameters, each of which `takes` accepts with its gradient and buffer.
        grads: Their gradients, which are not written to.
        momentum_buffers: Momentum buffers, zeros before the first step; None at momentum 0.
        lr: Learning rate, and so on as in `adamp.SGDP`.
        momentum: Momentum.
        dampening: Taken off the gradient's weight in the buffer.
        weight_decay: Decoupled weight decay.
        nesterov: Use Nesterov's update.
        eps: Guards the norms.
        delta: Threshold of the test.
        wd_ratio: Factor of the decay of projected tensors.
        maximize: Ascend.
        scale_invariant: The mark of all these parameters.
        project_buffer: Keep the projected update as the buffer, without Nesterov.
        grad_scale: What the gradients have been multiplied by, as `torch.amp.GradScaler` gives it.
        found_inf: Nothing is done where it is not 0.

    Raises:
        BuildError: There is no kernel on this machine, see `refusal`.
    """
    if _skip(found_inf):
        return
    options = _options(lr, eps, delta, wd_ratio, nesterov, maximize, grad_scale)
    options.beta1, options.beta2 = momentum, 1 - dampening
    options.decay = options.lr * weight_decay / (1 - momentum) if weight_decay > 0 else 0.0
    options.project_buffer = project_buffer and not nesterov
    buffers = () if momentum_buffers is None else (momentum_buffers,)
    options.moments = len(buffers)
    _run("sgdp_step", options, scale_invariant, params, grads, *buffers)


def _skip(found_inf: Tensor | None) -> bool:
    return found_inf is not None and float(found_inf) != 0


def _options(
    lr: float | Tensor,
    eps: float,
    delta: float,
    wd_ratio: float,
    nesterov: bool,
    maximize: bool,
    grad_scale: Tensor | None,
) -> _Options:
    options = _Options(lr=float(lr), eps=float(eps), delta=float(delta), wd_ratio=float(wd_ratio), nesterov=nesterov)
    options.gain = (-1.0 if maximize else 1.0) / (1.0 if grad_scale is None else float(grad_scale))
    options.threads = torch.get_num_threads()
    options.parallel = _parallel()
    return options


def _run(name: str, options: _Options, mark: Mark, *tensors: Sequence[Tensor]) -> None:
    step = getattr(load(), name)
    params = tensors[0]
    table: list[int] = []
    nothing = [0] * (5 - len(tensors))
    for row in zip(*tensors, strict=True):
        param = row[0]
        size = param.numel()
        matrix = param.ndim > 1
        rows = param.shape[0] if matrix else 1
        table += [x.data_ptr() for x in row]
        table += nothing
        table += (rows, size // rows if rows else 0, _DTYPES[param.dtype], _MARKS[mark] if matrix else 0)
    memory = array("q", table)
    step(ctypes.c_int64(len(params)), ctypes.c_void_p(memory.buffer_info()[0]), ctypes.byref(options))
    torch.autograd.graph.increment_version(params)  # autograd must notice that weights it has saved are not the same


def main() -> int:
    """Compile the kernel and say where it lies."""
    try:
        existed = built()
        path = build()
    except BuildError as error:
        print(f"not built: {error}", file=sys.stderr)
        return 1
    print(f"{'already built' if existed else 'built'}: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
