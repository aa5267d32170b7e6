"""Tensors in nested containers: batches, loop states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def map_tensors(call: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply `call` to every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return call(value)
    if isinstance(value, dict):
        return {key: map_tensors(call, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(call, item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(call, item) for item in value)
    return value


def to_device(batch: Any, device: torch.device, *, channels_last: bool) -> Any:
    """Return a batch on the device; with `channels_last` its images (4-d tensors) in that memory format."""

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return map_tensors(move, batch)
