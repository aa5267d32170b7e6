"""Schedules: pure functions (epoch so far, epochs) -> multiplier of a parameter group's own value.

Multiplying keeps ratios between groups, such as a proxy group at 100 times the rate of the network. The engine
calls them before every optimizer step with a fractional epoch, so "cosine" means cosine per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[float, float], float]


def constant(epoch: float, epochs: float) -> float:
    """Return 1."""
    return 1.0


def cosine(
    epoch: float, epochs: float, *, final: float = 0.0, warmup_epochs: float = 0.0, whole_epochs: bool = False
) -> float:
    """Half a cosine from 1 to `final`, after a linear warm-up from 0.

    Args:
        epoch: Epochs done, fractional.
        epochs: Epochs in all.
        final: Multiplier reached at the end.
        warmup_epochs: Epochs of linear rise before the cosine starts; the AdamP paper uses none.
        whole_epochs: Keep each epoch's first value to its end, as a scheduler stepped once an epoch does.
    """
    epoch = math.floor(epoch) if whole_epochs else epoch
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def step(epoch: float, epochs: float, *, milestones: Sequence[float] = (0.3, 0.6, 0.9), factor: float = 0.1) -> float:
    """Multiply by `factor` at each milestone, a share of the whole run (x0.1 at 30, 60, 90 of 100 epochs).

    Shares rather than epochs, so that a short run keeps the shape of the long one.
    """
    # The small slack keeps 29.999999999 / 100 on the later side of 0.3.
    return float(factor ** sum(epoch / epochs >= share - 1e-9 for share in milestones))


def epochs_begun(epoch: float, epochs: float) -> float:
    """Return 1 in the first epoch, 2 in the second and so on: AdaRem's `lam_power`, the exponent of its λ."""
    return math.floor(epoch) + 1.0
