"""Claims of the AdaRem paper: its factor, the regret of Theorem 1, and the sphere learning rate (SLR).

Notation: `θ` weight, `g` gradient, `m` momentum, `a = 1 + λ_t sign(g) m / max|m|`, `η` learning rate, `γ` weight decay.

Reference:
    "Adaptive Gradient Method with Resilience and Momentum", sections 3 and 4, Theorem 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import SGD

from adamp.adarem import AdaRem, AdaRemS
from tasks.toy.claims import Claim, Control

LAM = 0.999
SIZE, ROUNDS, RATE, REGRET_LAM = 5, 2000, 0.3, 0.9  # dimensions d, rounds T, η and λ of the online problem
HALF_WIDTH = 1.0  # of the feasible box
SPHERE_STEPS, SPHERE_DECAY = 300, 0.01


def _drawn(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _first_step(*, second: bool = False) -> float:
    """Return by how much a step differs from plain gradient descent: the first one, or the second."""
    values, grads = _drawn(1, 4, 6), _drawn(2, 2, 4, 6)
    weight = nn.Parameter(values.clone())
    optimizer = AdaRem([weight], lr=0.1, lam=LAM)
    for grad in grads[: 2 if second else 1]:
        before, weight.grad = weight.detach().clone(), grad
        optimizer.step()
    return float((weight.detach() - (before - 0.1 * grad)).abs().max())


def _factors(scale: float) -> Tensor:
    """Return the factors a that AdaRem used in 30 steps on random gradients of a size, (30, 4, 6)."""
    weight = nn.Parameter(torch.zeros(4, 6, dtype=torch.float64))
    optimizer = AdaRem([weight], lr=1.0, lam=LAM)
    factors = []
    for grad in scale * _drawn(3, 30, 4, 6):
        before, weight.grad = weight.detach().clone(), grad
        optimizer.step()
        factors.append((before - weight.detach()) / grad)
    return torch.stack(factors)


def _range(*, lam: float = LAM) -> float:
    """Return by how much factors leave [1 - lam, 1 + lam]."""
    a = _factors(1.0)
    return max(0.0, float((1 - lam - a).max()), float((a - 1 - lam).max()))


def _printed_factors(scale: float) -> Tensor:
    """Return the factors by the formula as printed, with eps 1e-8 in the denominator, (30, 4, 6)."""
    m, factors = torch.zeros(4, 6, dtype=torch.float64), []
    for grad in scale * _drawn(3, 30, 4, 6):
        factors.append(1 + LAM * grad * m / (grad.abs() * m.abs().max() + 1e-8))
        m = 0.9 * m + 0.1 * grad
    return torch.stack(factors)


def _scale_free(factors: Callable[[float], Tensor] = _factors) -> float:
    """Return by how much factors change when all gradients are a million times smaller."""
    return float((factors(1e-6) - factors(1.0)).abs().max())


def _bound(lams: list[float], sizes: Tensor) -> Tensor:
    """Return the bound of the regret after each round, (T,); see docs/theory.md.

    Args:
        lams: λ_t of each round.
        sizes: |g_t|^2 of each round, (T,).
    """
    t = torch.arange(1, len(lams) + 1, dtype=torch.float64)
    lam = torch.tensor(lams, dtype=torch.float64)
    highest, lowest = t.sqrt() / (1 - lam) / RATE, t.sqrt() / (1 + lam) / RATE  # of 1 / (η_t a_t)
    rises = torch.cat([highest[:1], (highest[1:] - lowest[:-1]).clamp(min=0)]).cumsum(0)
    return SIZE * (2 * HALF_WIDTH) ** 2 / 2 * rises + (RATE * (1 + lam) / t.sqrt() * sizes / 2).cumsum(0)


def _regret(*, uphill: bool = False, frozen: bool = False) -> float:
    """Return the largest regret over its bound on an online convex problem: above 1 the bound is broken.

    The losses are squared errors of a linear model on random examples; the feasible set is a box. λ is raised once a
    round, as Algorithm 1 prints it: raised once an epoch of E rounds, the bound's constant grows as E^1.5 and says
    nothing at this length. `uphill` turns the gradients' sign round, `frozen` never leaves a corner.
    """
    inputs, truth = _drawn(4, ROUNDS, SIZE), 0.8 * torch.tanh(_drawn(5, SIZE))
    targets = inputs @ truth + 0.1 * _drawn(6, ROUNDS)
    best = torch.linalg.lstsq(inputs, targets[:, None]).solution[:, 0]
    assert float(best.abs().max()) < HALF_WIDTH
    theta = nn.Parameter(torch.full((SIZE,), HALF_WIDTH, dtype=torch.float64))
    optimizer = AdaRem([theta], lr=RATE, lam=REGRET_LAM, maximize=uphill)
    losses, sizes, lams = [], [], []
    for step in range(ROUNDS):
        error = inputs[step] @ theta.detach() - targets[step]
        theta.grad = error * inputs[step]
        losses.append(error.square() / 2)
        sizes.append(theta.grad.square().sum())
        lams.append(REGRET_LAM ** (step + 1))
        optimizer.set_epoch(step)
        optimizer.param_groups[0]["lr"] = 0.0 if frozen else RATE / math.sqrt(step + 1)
        optimizer.step()
        with torch.no_grad():
            theta.clamp_(-HALF_WIDTH, HALF_WIDTH)
    regret = (torch.stack(losses) - (inputs @ best - targets).square() / 2).cumsum(0)
    return float((regret / _bound(lams, torch.stack(sizes))).max())


def _sphere_lr(step: int) -> float:
    return 0.15 * (1 + math.cos(math.pi * step / SPHERE_STEPS))


def _invariant_loss(w: Tensor) -> Tensor:
    unit = w / w.norm()
    return ((unit - _drawn(8, *w.shape)) ** 2).sum() + (unit**3).sum()


def _slr(radius: float | None = 1.0, *, slr: bool = True, lam: float = 0.0, length: bool = False) -> float:
    """Return how far AdaRem-S with SLR is from SGD with weight decay: directions, or lengths α against ‖θ‖ / R."""
    values = 2 * _drawn(9, 3, 5)
    euclidean, sphere = nn.Parameter(values.clone()), nn.Parameter(values.clone())
    sgd = SGD([euclidean], lr=0.1, weight_decay=SPHERE_DECAY, foreach=False)
    group = {"params": [sphere], "scale_invariant": True}
    ours = AdaRemS([group], lr=0.1, lam=lam, weight_decay=SPHERE_DECAY, radius=radius, slr=slr)
    worst = 0.0
    for step in range(SPHERE_STEPS):
        for weight, optimizer in ((euclidean, sgd), (sphere, ours)):
            (weight.grad,) = torch.autograd.grad(_invariant_loss(weight), weight)
            optimizer.param_groups[0]["lr"] = _sphere_lr(step)
            optimizer.step()
        a, b, state = euclidean.detach(), sphere.detach(), ours.state[sphere]
        if length:
            off = abs(float(state["alpha"] * state["radius"] / a.norm()) - 1)
        else:
            off = float((a / a.norm() - b / b.norm()).norm())
        worst = max(worst, off)
    return worst


def _radii(**options: bool) -> float:
    return max(_slr(radius, **options) for radius in (0.1, 10.0))


CLAIMS = (
    Claim(
        "first-step", "AdaRem", "Algorithm 1, first step", "θ' = θ - η g: the old m is used, and it is 0",
        "largest difference", 0.0, _first_step, (Control("the second step", partial(_first_step, second=True)),),
    ),
    Claim(
        "factor-range", "AdaRem", "Range of the factor", "1 - λ ≤ a ≤ 1 + λ: no entry moves up its gradient",
        "how far outside", 1e-12, _range, (Control("the range of λ = 0.5", partial(_range, lam=0.5)),),
    ),
    Claim(
        "factor-scale", "AdaRem", "Eq. 1 without its eps", "a(c g) = a(g), here c = 1e-6", "largest difference", 1e-10,
        _scale_free, (Control("as printed, eps = 1e-8 beside |g| max|m|", partial(_scale_free, _printed_factors)),),
    ),
    Claim(
        "theorem-1", "AdaRem", "Theorem 1", "regret ≤ d D²/2 Σ [1/(η_t a_t)]⁺ + Σ η_t (1+λ_t) ‖g_t‖²/2 = O(√T)",
        "largest regret over its bound, 2000 rounds, λ_t = 0.9^t", 1.0, _regret,
        (
            Control("a step uphill", partial(_regret, uphill=True)),
            Control("no step at all", partial(_regret, frozen=True)),
        ),
    ),
    Claim(
        "slr-direction", "AdaRem", "Sphere learning rate", "AdaRem-S at λ = 0 ≡ SGD + weight decay, in direction",
        "largest distance of directions, 300 steps, cosine schedule", 1e-11, _slr,
        (
            Control("without SLR", partial(_slr, slr=False)),
            Control("λ = 0.5", partial(_slr, lam=0.5)),
        ),
    ),
    Claim(
        "slr-length", "AdaRem", "Sphere learning rate, length", "α R = ‖θ‖ of SGD + weight decay", "relative", 1e-11,
        partial(_slr, length=True), (Control("λ = 0.5", partial(_slr, lam=0.5, length=True)),),
    ),
    Claim(
        "slr-radius", "AdaRem", "Sphere learning rate, radius", "the same directions for any R",
        "largest distance of directions, R = 0.1 and 10", 1e-11, _radii,
        (Control("without SLR", partial(_radii, slr=False)),),
    ),
)  # fmt: skip
