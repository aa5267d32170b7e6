"""Figure 1 of the AdamP paper and the videos of its project page: the largest cosine in two dimensions.

The settings are printed nowhere. Learning rate 0.01, 499 steps and the squared loss are those under which all of the
numbers that the videos print come out (docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.optim import SGD

from adamp import SGDP
from tasks.toy.descent import Build, Path, descend
from tasks.toy.objectives import START_2D, cosine_loss

LR = 0.01
STEPS = 499  # the videos count iterations 0 to 499
MOMENTA = (0.9, 0.95, 0.99)
LOSS_REACHED = 0.01


@dataclass(frozen=True)
class Run2D:
    """One optimizer of the figure, and the numbers published for it.

    Attributes:
        method: "gd", "momentum", "projected" (Algorithm 1) or "in place" (the authors' package).
        momentum: 0 for gradient descent.
        norm: Published norm at the end, to two decimals.
        loss: Published loss at the end, to four decimals.
    """

    method: str
    momentum: float
    norm: float | None = None
    loss: float | None = None

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.method if self.method == "gd" else f"{self.method} {self.momentum:g}"


RUNS = (
    Run2D("gd", 0.0, 1.02, 0.0086),
    Run2D("momentum", 0.9, 2.93, 0.0018),
    Run2D("momentum", 0.95, 5.67, 0.0043),
    Run2D("momentum", 0.99, 27.87, 0.0153),
    Run2D("projected", 0.9, 1.12, 0.0000),
    Run2D("projected", 0.95, 1.14, 0.0000),
    Run2D("projected", 0.99, 1.15, 0.0000),
)
IN_PLACE = tuple(Run2D("in place", momentum) for momentum in MOMENTA)


def _build(run: Run2D, *, lr: float) -> Build:
    if run.method in ("gd", "momentum"):
        return partial(SGD, lr=lr, momentum=run.momentum, foreach=False)
    return partial(SGDP, lr=lr, momentum=run.momentum, project_buffer=run.method == "in place")


def trace(runs: Sequence[Run2D], *, lr: float = LR, steps: int = STEPS, power: int = 2) -> list[Path]:
    """Return the path of each run, points (T + 1, 2).

    Args:
        runs: Which optimizers.
        lr: Learning rate.
        steps: How many.
        power: Of `1 - cos` in the loss: 2 gives the published numbers.
    """
    # Each weight is one row of two: a vector would never be projected.
    start = torch.tensor(START_2D, dtype=torch.float64).expand(len(runs), 2)
    optimizers = [_build(run, lr=lr) for run in runs]
    path = descend(partial(cosine_loss, power=power), start, optimizers=optimizers, steps=steps)
    return [path.row(index) for index in range(len(runs))]


def agrees(value: float, published: float, *, decimals: int) -> bool:
    """Return whether a value, rounded as the published number is, is that number."""
    return f"{value:.{decimals}f}" == f"{published:.{decimals}f}"
