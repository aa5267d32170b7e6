"""Fused kernels of AdamP and SGDP: one call per step instead of many operations per tensor."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

_MODULES = {"cpu": "adamp.kernels.cpu", "cuda": "adamp.kernels.triton_launch"}


def kernel_for(device: torch.device) -> ModuleType | None:
    """Return the module of the kernels for a device, or None; see its `unavailable_reason` before using it."""
    return _load(device.type)


@functools.cache
def _load(device_type: str) -> ModuleType | None:
    name = _MODULES.get(device_type)
    return None if name is None else importlib.import_module(name)
