"""Running means of metrics that stay on the device until they are read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasks.engine.distributed import World


class Meter:
    """Means of named scalars since the last read. Adding needs no device-to-host transfer."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one scalar, 0-d."""
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def read(self, world: World) -> dict[str, float]:
        """Return the means over additions and processes, and reset. Collective."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[name] / self.counts[name] for name in names]).cpu()
        self.sums, self.counts = {}, {}
        return dict(zip(names, world.all_reduce_mean(means).tolist(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts, on the CPU."""
        return {"sums": {k: v.cpu() for k, v in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned."""
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}
        self.counts = dict(state["counts"])
