"""The compute dtype: float32 for half precision, float64 kept, complex tensors as real and imaginary parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """Return `x` itself, or for a complex `x` its view `(..., 2)` of real and imaginary parts."""
    return torch.view_as_real(x) if x.is_complex() else x


def as_dtype_of(value: Tensor, like: Tensor) -> Tensor:
    """Return a real `value` in the dtype of `like`, as a complex tensor where `like` is one."""
    return (torch.view_as_complex(value) if like.is_complex() else value).to(like.dtype)


def to_compute_dtype(x: Tensor, *, copy: bool = False) -> Tensor:
    """Return `x` as real numbers of at least 32 bits: a view of `x` where possible, a copy of bf16 and fp16.

    A copy that was changed in place has to be returned with `write_back`. `copy=True` always copies, so that tensors
    that autograd has saved are not written to.
    """
    x = as_real(x)
    converted = x.to(torch.promote_types(x.dtype, torch.float32))
    return converted.clone() if copy and converted is x else converted


def write_back(target: Tensor, value: Tensor, *, copied: bool = False) -> None:
    """Write a changed `value = to_compute_dtype(target)` back, unless it is a view of `target`."""
    target = as_real(target)
    if copied or target.dtype != value.dtype:
        target.copy_(value)


def subtract_compensated_(target: Tensor, value: Tensor, step: Tensor, compensation: Tensor) -> None:
    """Set `target <- target - step` by Kahan's summation: `compensation` keeps what rounding has taken, for next time.

    Args:
        target: A weight.
        value: `to_compute_dtype(target)`.
        step: What is subtracted, in the compute dtype.
        compensation: Like the weight; zeros before the first step.
    """
    step = step - to_compute_dtype(compensation)
    rounded = (value - step).to(as_real(target).dtype).to(value.dtype)
    lost = (value - rounded) - step
    as_real(target).copy_(rounded)
    as_real(compensation).copy_(lost)


def to_compute_dtype_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return `to_compute_dtype` of each of several tensors of one dtype, with one foreach copy."""
    real = [as_real(x) for x in xs]
    if not real or real[0].dtype == torch.promote_types(real[0].dtype, torch.float32):
        return real
    copies = [torch.empty_like(x, dtype=torch.float32) for x in real]
    torch._foreach_copy_(copies, real)
    return copies


def write_back_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write changed `values = to_compute_dtype_all(targets)` back, see `write_back`."""
    if targets and as_real(targets[0]).dtype != values[0].dtype:
        torch._foreach_copy_([as_real(x) for x in targets], list(values))
