"""Arithmetic in at least float32 on tensors of any floating or complex dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """Return `x` itself, or for a complex `x` its view `(..., 2)` of real and imaginary parts."""
    return torch.view_as_real(x) if x.is_complex() else x


def working(x: Tensor, *, copy: bool = False) -> Tensor:
    """Return `x` as real numbers of at least 32 bits: a view of `x` where possible, a copy of bf16 and fp16.

    What was computed in place on a copy has to go back with `store`. With `copy` it always is one, so that what
    autograd keeps of `x` is not written to.
    """
    x = as_real(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.clone() if copy and wide is x else wide


def store(target: Tensor, value: Tensor, *, copied: bool = False) -> None:
    """Write `value`, got from `working(target)` and changed, back unless it is a view of `target`."""
    target = as_real(target)
    if copied or target.dtype != value.dtype:
        target.copy_(value)


def working_all(xs: Sequence[Tensor]) -> list[Tensor]:
    """Return `working` of each of several tensors of one dtype, copies made at once."""
    real = [as_real(x) for x in xs]
    if not real or real[0].dtype == torch.promote_types(real[0].dtype, torch.float32):
        return real
    copies = [torch.empty_like(x, dtype=torch.float32) for x in real]
    torch._foreach_copy_(copies, real)
    return copies


def store_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write back what `working_all(targets)` returned and was changed in place, see `store`."""
    if targets and as_real(targets[0]).dtype != values[0].dtype:
        torch._foreach_copy_([as_real(x) for x in targets], list(values))
