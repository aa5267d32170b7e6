"""Claims of the AWS paper, 1: weight decay on a normalised weight is a learning rate that changes (eqs. 14 to 17).

Notation: `W` normalised weight, its rows the filters; `λ` weight decay, `η_q` learning rate of step q, `p_q` and `d_q`
the paper's factors.

Reference:
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", 2020, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from adamp.layers import WNLinear, WSLinear
from tasks.toy.claims import Claim, Control

# λ, steps, p_0. At λ = 0.1 the effective rate η / n² soon outgrows the loss's curvature, the path turns chaotic and
# rounding grows to 1e-3 in 300 steps (measured); what is claimed holds all the same, but no run can show it.
DECAY, STEPS, START_RATIO = 0.01, 200, 1.7
LAYERS = {"wn": WNLinear, "ws": WSLinear}
FLOAT32_DECAY, FLOAT32_LR = 0.1, 0.1


def _lr(step: int) -> float:
    """Return a learning rate that rises and falls between 0.05 and 0.45."""
    return 0.25 + 0.2 * math.sin(step / 7)


@dataclass
class _Net:
    """A normalised layer without gain and a linear one behind it, on fixed data, float64, eps 0."""

    kind: str
    normalise: bool = True
    layers: nn.Sequential = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        first = LAYERS[self.kind](6, 5, eps=0.0) if self.normalise else nn.Linear(6, 5)
        self.layers = nn.Sequential(first, nn.Tanh(), nn.Linear(5, 2)).double()
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.copy_(0.7 * draw(*parameter.shape))
        self.inputs, self.targets = draw(32, 6), draw(32, 2)

    @property
    def weight(self) -> nn.Parameter:
        """The normalised weight, (5, 6)."""
        weight = self.layers[0].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def loss(self) -> Tensor:
        """Return the mean squared error, 0-d."""
        return nn.functional.mse_loss(self.layers(self.inputs), self.targets)

    def optimizer(self, *, momentum: float, decay: float = 0.0) -> SGD:
        """Return SGD with the normalised weight in a group of its own."""
        others = [p for p in self.layers.parameters() if p is not self.weight]
        groups: list[dict[str, Any]] = [{"params": [self.weight], "weight_decay": decay}, {"params": others}]
        return SGD(groups, lr=0.1, momentum=momentum, foreach=False)

    def step(self, optimizer: SGD, *, lr: float, own_lr: float) -> None:
        """Make one step at learning rate `own_lr` for the normalised weight and `lr` for the others."""
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = own_lr, lr
        optimizer.zero_grad()
        self.loss().backward()
        optimizer.step()


def _direction(weight: Tensor, kind: str) -> Tensor:
    w = weight.detach()
    w = w - w.mean(dim=1, keepdim=True) if kind == "ws" else w
    return w / w.norm(dim=1, keepdim=True)


def _equivalence(
    kind: str,
    *,
    momentum: float = 0.0,
    d: Callable[[float, float], float] = lambda p, s: 1 / (p**2 * s),
    head: bool = False,
    length: bool = False,
) -> float:
    """Return the largest difference between a run with decay and one with modulated learning rate.

    Args:
        kind: "wn" or "ws".
        momentum: Of both runs.
        d: Factor of the learning rate, of p_q and s = 1 - λ η_q.
        head: Give the modulated learning rate to the other parameters too.
        length: Compare `W_A` with `p W_B`, relative, not the normalised weights.
    """
    net_a, net_b = _Net(kind), _Net(kind)
    with torch.no_grad():
        net_a.weight.mul_(START_RATIO)
    opt_a, opt_b = net_a.optimizer(momentum=momentum, decay=DECAY), net_b.optimizer(momentum=momentum)
    p, worst = START_RATIO, 0.0
    for step in range(STEPS):
        lr, s = _lr(step), 1 - DECAY * _lr(step)
        own_rate = lr * d(p, s)
        net_a.step(opt_a, lr=lr, own_lr=lr)
        net_b.step(opt_b, lr=own_rate if head else lr, own_lr=own_rate)
        p *= s
        a, b = net_a.weight.detach(), net_b.weight.detach()
        off = (a - p * b).norm() / a.norm() if length else (_direction(a, kind) - _direction(b, kind)).abs().max()
        worst = max(worst, float(off))
        if not math.isfinite(worst):
            return math.inf
    return worst


def _closed_form(*, shift: int = 1) -> float:
    """Return by how much η d_q differs from η (1 - λη)^-(2q + 1) for p_0 = 1, relative."""
    lr, p, worst = 0.3, 1.0, 0.0
    s = 1 - DECAY * lr
    for q in range(STEPS):
        worst = max(worst, abs((lr / (p**2 * s)) / (lr * s ** (-2 * q - shift)) - 1))
        p *= s
    return worst


def _no_minimum(*, normalise: bool = True) -> float:
    """Return how far L(a W) is from data loss + a² decay term, relative; 1 if it does not fall with a."""
    net, worst = _Net("wn", normalise=normalise), 0.0
    values = net.weight.detach().clone()
    data, decay = float(net.loss().detach()), float(0.5 * DECAY * values.square().sum())
    for a in (0.5, 0.1, 0.001):
        with torch.no_grad():
            net.weight.copy_(a * values)
            total = float(net.loss() + 0.5 * DECAY * net.weight.square().sum())
        worst = max(worst, abs(total / (data + a**2 * decay) - 1), float(total >= data + decay))
    return worst


def _rate_overflow(*, exponent: float = 2.0) -> float:
    """Return by how much the step at which d_q overflows float32 differs from 44.36 / (λ η), relative."""
    s = torch.tensor(1 - FLOAT32_DECAY * FLOAT32_LR, dtype=torch.float32)
    d, step = 1 / s, 0
    while torch.isfinite(d):
        d, step = d / s / s, step + 1
    largest = torch.finfo(torch.float32).max
    return abs(step * exponent * FLOAT32_DECAY * FLOAT32_LR / math.log(largest) - 1)


CLAIMS = (
    *(
        Claim(
            f"eqs-14-17-{kind}", "AWS", f"Eqs. 14 to 17, {kind.upper()}",
            "decay λ ≡ learning rate η_q d_q, d_q = 1/(p_q² (1-λη_q)), p_{q+1} = (1-λη_q) p_q",
            "largest difference of normalised weights, 200 steps, η from 0.05 to 0.45, p_0 = 1.7", 1e-11,
            partial(_equivalence, kind),
            (
                Control("momentum 0.9", partial(_equivalence, kind, momentum=0.9)),
                Control("d_q without 1/(1-λη_q)", partial(_equivalence, kind, d=lambda p, s: 1 / p**2)),
                Control("p_q in the place of p_q²", partial(_equivalence, kind, d=lambda p, s: 1 / (p * s))),
                Control("the other parameters modulated too", partial(_equivalence, kind, head=True)),
            ),
        )
        for kind in LAYERS
    ),
    Claim(
        "eq-15", "AWS", "Eqs. 14 to 17, lengths", "W^A_q = p_q W^B_q (WN)", "relative", 1e-11,
        partial(_equivalence, "wn", length=True),
        (Control("momentum 0.9", partial(_equivalence, "wn", momentum=0.9, length=True)),),
    ),
    Claim(
        "closed-form", "AWS", "d_q in closed form", "d_q = (1-λη)^-(2q+1) for p_0 = 1, constant η", "relative", 1e-12,
        _closed_form, (Control("exponent -2q", partial(_closed_form, shift=0)),),
    ),
    Claim(
        "rate-overflow", "AWS", "d_q in float32", "d_q overflows after ln(3.4e38) / (2λη) = 44.4 / (λη) steps",
        "relative, λη = 0.01", 0.01, _rate_overflow,
        (Control("rate 1/(λη) in the place of 2/(λη)", partial(_rate_overflow, exponent=1.0)),),
    ),
    Claim(
        "no-minimum", "AWS", "No global minimum", "L(aW) = data loss + a² decay term < L(W) for 0 < a < 1",
        "relative; 1 if L(aW) ≥ L(W)", 1e-13, _no_minimum,
        (Control("the same net without normalisation", partial(_no_minimum, normalise=False)),),
    ),
)  # fmt: skip
