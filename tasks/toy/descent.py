"""Trajectories of any torch optimizer on rows of independent problems.

Shapes: `T` steps, `R` rows, `D` dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Build = Callable[[list[nn.Parameter]], Optimizer]
_CLIP_EPS = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class Path:
    """Where the rows were: before the first step and after each.

    Attributes:
        points: (T + 1, R, D).
        losses: (T + 1, R).
    """

    points: Tensor
    losses: Tensor

    @property
    def norms(self) -> Tensor:
        """The norm of each point, (T + 1, R)."""
        return self.points.norm(dim=2)

    def row(self, index: int) -> Path:
        """Return one row as a path with points (T + 1, D) and losses (T + 1,)."""
        return Path(self.points[:, index], self.losses[:, index])

    def first_below(self, loss: float) -> int | None:
        """Return the first iteration at which a one-row path's loss is below a value, None if there is none."""
        below = (self.losses.flatten() < loss).nonzero()
        return int(below[0]) if len(below) else None


def descend(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    optimizers: Sequence[Build],
    steps: int,
    clip: float | None = None,
    schedule: Callable[[int], float] = lambda step: 1.0,
    row_lr: Tensor | None = None,
    row_decay: float = 0.0,
) -> Path:
    """Minimise a loss of each row.

    Args:
        loss: Takes (R, D), returns (R,).
        start: (R, D).
        optimizers: Each builds the optimizer of its share of the rows: R of them, one per row, or a single one for all.
        steps: How many.
        clip: Largest gradient norm of a row; applied before weight decay.
        schedule: Step -> factor of the optimizers' learning rates.
        row_lr: Learning rate of each row, (R,), on top of the optimizer's, which is then best 1. Updates of SGD with
            momentum and their projection are linear in the gradient, so it may multiply that.
        row_decay: Coupled weight decay, times each row's learning rate; for optimizers of learning rate 1.

    Returns:
        The rows' paths, in float64.
    """
    weights = [nn.Parameter(rows.clone()) for rows in start.double().chunk(len(optimizers))]
    opts = [build([weight]) for build, weight in zip(optimizers, weights, strict=True)]
    base = [opt.param_groups[0]["lr"] for opt in opts]
    points, losses = [], []
    for step in range(steps):
        w = torch.cat([weight.detach() for weight in weights]).requires_grad_()
        values = loss(w)
        (grad,) = torch.autograd.grad(values.sum(), w)
        points.append(w.detach())
        losses.append(values.detach())
        if clip is not None:
            grad = grad * (clip / (grad.norm(dim=1, keepdim=True) + _CLIP_EPS)).clamp(max=1)
        if row_lr is not None:
            grad = (grad + row_decay * w.detach()) * row_lr[:, None]
        for weight, part, opt, lr in zip(weights, grad.chunk(len(weights)), opts, base, strict=True):
            weight.grad = part
            opt.param_groups[0]["lr"] = lr * schedule(step)
            opt.step()
    with torch.no_grad():
        points.append(torch.cat([weight.detach() for weight in weights]))
        losses.append(loss(points[-1]))
    return Path(torch.stack(points), torch.stack(losses))
