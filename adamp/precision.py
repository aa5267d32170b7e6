"""Arithmetic in at least float32 on tensors of any floating or complex dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def as_real(x: Tensor) -> Tensor:
    """Return `x` itself, or for a complex `x` its view `(..., 2)` of real and imaginary parts."""
    return torch.view_as_real(x) if x.is_complex() else x


def working(x: Tensor) -> Tensor:
    """Return `x` as real numbers of at least 32 bits: a view of `x` where possible, a copy of bf16 and fp16.

    What was computed in place on a copy has to go back with `store`.
    """
    x = as_real(x)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def store(target: Tensor, value: Tensor) -> None:
    """Write `value`, got from `working(target)` and changed in place, back unless it is a view of `target`."""
    target = as_real(target)
    if target.dtype != value.dtype:
        target.copy_(value)
