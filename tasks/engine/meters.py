"""Running means that stay on the device until they are read, and the first step whose loss was not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tasks.engine.distributed import World

NEVER = 2**62  # "no step yet" for the watch below; an int64


class Meter:
    """Means of named scalars since they were last read. Adding costs no transfer from the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one scalar, 0-d."""
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, world: World) -> dict[str, float]:
        """Return the means over additions and processes, and start anew. Collective."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] / self.counts[name] for name in names]).cpu()
        self.__init__()  # type: ignore[misc]
        return dict(zip(names, world.mean(means).tolist(), strict=True))

    def state(self) -> dict[str, Any]:
        """Return sums and counts, on the CPU."""
        return {"sums": {k: v.cpu() for k, v in self.sums.items()}, "counts": dict(self.counts)}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Put back what `state` returned."""
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])


class FiniteWatch:
    """Remembers the first step whose loss was not finite, without a transfer a step."""

    def __init__(self, device: torch.device) -> None:
        self.first = torch.tensor(NEVER, device=device)

    def see(self, loss: Tensor, step: int) -> None:
        """Look at one loss."""
        self.first = torch.where(torch.isfinite(loss.detach()), self.first, self.first.clamp(max=step))

    def bad_step(self, world: World) -> int | None:
        """Return the first bad step of any process, or None. Collective; reads from the device."""
        first = world.lowest(int(self.first))
        return None if first == NEVER else first


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


def placed(batch: Any, device: torch.device, *, channels_last: bool) -> Any:
    """Return a batch on the device, images (4-d tensors) channels last if asked."""

    def place(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        if channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return map_tensors(place, batch)
