"""Schedules: pure functions (epoch so far, epochs) -> multiplier of a parameter group's own value.

Multipliers keep ratios between groups, such as a proxy group at 100 times the network's learning rate. The engine
calls them before every optimizer step with a fractional epoch: "cosine" is cosine per step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tasks.base import InputError

Schedule = Callable[[float, float], float]


def constant(epoch: float, epochs: float, *, scale: float = 1.0) -> float:
    """Return 1, or a factor on the rate such as `batch_scale`."""
    return scale


def cosine(
    epoch: float,
    epochs: float,
    *,
    final: float = 0.0,
    warmup_epochs: float = 0.0,
    whole_epochs: bool = False,
    scale: float = 1.0,
) -> float:
    """Half a cosine from 1 to `final`, after a linear warm-up from 0.

    Args:
        epoch: Epochs done, fractional.
        epochs: Epochs in all.
        final: Multiplier reached at the end.
        warmup_epochs: Epochs of linear rise before the cosine starts; the AdamP paper uses none.
        whole_epochs: One value per epoch, like a scheduler stepped once per epoch.
        scale: Factor on all of it, e.g. `batch_scale`.
    """
    epoch = math.floor(epoch) if whole_epochs else epoch
    if epoch < warmup_epochs:
        return scale * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    return scale * (final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0))))


def step(
    epoch: float,
    epochs: float,
    *,
    milestones: Sequence[float] = (0.3, 0.6, 0.9),
    factor: float = 0.1,
    warmup_epochs: float = 0.0,
    scale: float = 1.0,
) -> float:
    """Step decay by `factor` at each milestone, a fraction of the run (x0.1 at 30, 60, 90 of 100 epochs).

    Fractions rather than epochs, so that a short run has the shape of the long one. A linear warm-up of `warmup_epochs`
    precedes; `scale` multiplies all of it.
    """
    if epoch < warmup_epochs:
        return scale * epoch / warmup_epochs
    # The tolerance counts 29.999999999 / 100 as 0.3
    return float(scale * factor ** sum(epoch / epochs >= share - 1e-9 for share in milestones))


def epochs_begun(epoch: float, epochs: float) -> float:
    """Return 1 in the first epoch, 2 in the second and so on: AdaRem's `lam_power`, the exponent of its λ."""
    return math.floor(epoch) + 1.0


def decay(
    epoch: float,
    epochs: float,
    *,
    every: float = 2.4 / 450,
    factor: float = 0.97,
    warmup_epochs: float = 0.0,
    scale: float = 1.0,
) -> float:
    """Exponential decay in steps after a linear warm-up: timm's schedule for EfficientNets.

    Args:
        epoch: Epochs done, fractional.
        epochs: Epochs in all.
        every: Interval between two drops as a fraction of the run; 2.4 of 450 epochs in timm's recipe.
        factor: Factor of each drop.
        warmup_epochs: Epochs of linear rise; they count for the drops too.
        scale: Factor on all of it.
    """
    if epoch < warmup_epochs:
        return scale * epoch / warmup_epochs
    return float(scale * factor ** math.floor(epoch / (every * epochs) + 1e-9))


SCALINGS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


def batch_scale(batch_size: int, base: int = 256, *, rule: str = "none") -> float:
    """Return the learning-rate factor (batch_size / base)^p, p = 0, 1/2, 1 for rule "none", "sqrt", "linear".

    Raises:
        InputError: The rule is not known.
    """
    if rule not in SCALINGS:
        raise InputError(f"lr_scaling is {rule!r}; choose one of {', '.join(SCALINGS)}")
    return float((batch_size / base) ** SCALINGS[rule])
