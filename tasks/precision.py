"""Precision of losses and scores: what half precision would spoil is computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return values in float32 at least: half precision is raised, float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
