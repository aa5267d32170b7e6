"""Figure 3 of the AdamP paper: Rosenbrock's valley on a hemisphere, with the radius as a redundant third dimension.

Clipping, the number of steps, the schedule and the weight decay are not printed; they and the learning rates are
recovered from the points of the project page's vector figures (docs/theory.md). After about 60 steps the dynamics is
chaotic: a change of the learning rate in its seventh digit moves the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from adamp import SGDP
from tasks.toy.descent import Build, Path, descend
from tasks.toy.objectives import distance_to_optimum, sphere_coordinates, spherical_rosenbrock, start_3d

STEPS = 200
MOMENTUM = 0.9
WEIGHT_DECAY = 0.05
CLIP = 1.0
FIRST = 30  # iterations compared with the published points; later ones are increasingly chaotic
PEAK_DECIMALS = 3


@dataclass(frozen=True)
class Run3D:
    """One optimizer of the figure.

    Attributes:
        method: "momentum", "decay", "projected" (Algorithm 1) or "in place" (the authors' package).
        lr: Learning rate, fitted to the published points; at "projected" that of "in place".
        published: Norm at the end, as the figure's path has it.
        low: Least norm at the end when the learning rate changes by 1e-7 of itself.
        high: Greatest such norm.
    """

    method: str
    lr: float
    published: float | None = None
    low: float | None = None
    high: float | None = None


RUNS = (
    Run3D("momentum", 0.0548812, 3.162, 3.15, 3.29),
    Run3D("decay", 0.0703927, 0.836, 0.87, 1.00),
    Run3D("in place", 0.0438465, 1.121, 1.10, 1.13),
)
ALGORITHM_1 = Run3D("projected", 0.0438465)
PEAK = (43, 2.527)  # iteration and norm of the published path with weight decay
TITLES = {
    "momentum": "momentum GD", "decay": "momentum GD + weight decay", "in place": "projection, buffer in place",
    "projected": "projection, Algorithm 1",
}  # fmt: skip


def fade(step: int, *, steps: int = STEPS) -> float:
    """Return the learning rate's factor, from 1 down to 0 at the last step."""
    return 1 - step / (steps - 1)


def _build(method: str, *, lr: float, weight_decay: float) -> Build:
    if method in ("momentum", "decay"):
        return partial(SGD, lr=lr, momentum=MOMENTUM, weight_decay=weight_decay, foreach=False)
    return partial(SGDP, lr=lr, momentum=MOMENTUM, project_buffer=method == "in place")


def _decay(method: str) -> float:
    return WEIGHT_DECAY if method == "decay" else 0.0


def _descend(rows: int, **options: Any) -> Path:
    start = start_3d().expand(rows, 3)
    return descend(spherical_rosenbrock, start, steps=STEPS, clip=CLIP, schedule=fade, **options)


def trace(runs: Sequence[Run3D]) -> list[Path]:
    """Return the path of each run of the figure, points (201, 3)."""
    optimizers = [_build(run.method, lr=run.lr, weight_decay=_decay(run.method)) for run in runs]
    path = _descend(len(runs), optimizers=optimizers)
    return [path.row(index) for index in range(len(runs))]


def sweep(method: str, rates: Tensor) -> Path:
    """Return the paths of one method at many learning rates (R,) at once, points (201, R, 3)."""
    optimizer = _build(method, lr=1.0, weight_decay=0.0)
    return _descend(len(rates), optimizers=[optimizer], row_lr=rates, row_decay=_decay(method))


def neighbours(run: Run3D, *, count: int = 20, change: float = 1e-7) -> Path:
    """Return `2 count` paths whose learning rates differ from the run's by up to `change` of it."""
    steps = torch.arange(-count, count + 1, dtype=torch.float64)
    return sweep(run.method, run.lr * (1 + change * steps[steps != 0] / count))


def end_distances(path: Path) -> Tensor:
    """Return each row's distance from the optimum in (a, b) at the end, (R,)."""
    return distance_to_optimum(*sphere_coordinates(path.points[-1]))


def coordinates(path: Path) -> Tensor:
    """Return a and b of a one-row path, (T + 1, 2)."""
    return torch.stack(sphere_coordinates(path.points), dim=1)
