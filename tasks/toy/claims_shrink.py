"""Claims of the AWS paper, 2: where norms settle under weight decay and under adaptive weight shrink, and how fast.

Notation: `n` norm of a filter, `η` learning rate, `λ` weight decay, `α` strength of AWS, `β` momentum, `N` entries of a
filter; gradients are independent, tangential and of length `G / n`, as those of a scale-invariant loss are.

The equilibria and times are derived in docs/theory.md; the paper argues them in words.

Reference:
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", 2020, section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.optim import SGD

from adamp.hooks.weight_shrink import shrink_weights
from adamp.layers import normalise
from tasks.toy.claims import Claim, Control

LR, G, LENGTH, ROWS = 0.1, 1.0, 200, 16
STRENGTH = {"wd": 0.01, "wn": 0.01, "ws": 0.1}  # λ, or α; WS divides its norm by sqrt(200)
MOMENTA = (0.0, 0.9)
SETTLE, AVERAGE = 1500, 500  # steps run from 5 % above the equilibrium; steps averaged at the end
NEAR = 1.1  # times are to within 10 % of the equilibrium
START, SCALES = 1.5, (20.0, 100.0)
SMALLEST_SQUARE = 2.0**-150  # in float32 smaller numbers round to zero


def _optimizer(weight: nn.Parameter, kind: str, *, momentum: float = 0.0, strength: float | None = None) -> SGD:
    """Return SGD whose weight decay is `kind`: "wd", or AWS for "wn" or "ws"; "none" has neither."""
    strength = STRENGTH.get(kind, 0.0) if strength is None else strength
    decay = strength if kind == "wd" else 0.0
    optimizer = SGD([weight], lr=LR, momentum=momentum, weight_decay=decay, foreach=False)
    if kind in ("wn", "ws"):
        # No clamp: the claims are about the rule as printed.
        shrink_weights(optimizer, alpha=strength, params=[weight], kind="wn" if kind == "wn" else "ws", clamp=None)
    return optimizer


def _tangent(w: Tensor, generator: torch.Generator, *, size: float = G) -> Tensor:
    """Return a random gradient of length G / n for each row, orthogonal to it and to the constant vector."""
    direction = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    direction = direction - direction.mean(dim=1, keepdim=True)
    squares = w.square().sum(dim=1, keepdim=True)
    direction = direction - w * ((w * direction).sum(dim=1, keepdim=True) / squares)
    return direction * (size / squares.sqrt() / direction.norm(dim=1, keepdim=True))


def _rows(norms: Tensor, generator: torch.Generator) -> nn.Parameter:
    """Return rows of mean zero with these norms, (R, 200)."""
    w = torch.randn(len(norms), LENGTH, generator=generator, dtype=torch.float64)
    w = w - w.mean(dim=1, keepdim=True)
    return nn.Parameter(w * (norms / w.norm(dim=1))[:, None])


def _settled(kind: str, momentum: float) -> float:
    """Return the norm at equilibrium in closed form."""
    strength = STRENGTH[kind] / (math.sqrt(LENGTH) if kind == "ws" else 1)
    power = 4 if kind == "wd" else 5
    return float((LR * G**2 / (2 * strength * (1 - momentum))) ** (1 / power))


@cache
def _equilibrium(kind: str, momentum: float) -> tuple[float, float]:
    """Return the mean norm and the root mean square angular step at equilibrium."""
    generator = torch.Generator().manual_seed(5)
    weight = _rows(torch.full((ROWS,), 1.05 * _settled(kind, momentum), dtype=torch.float64), generator)
    optimizer = _optimizer(weight, kind, momentum=momentum)
    norms, turns = [], []
    for step in range(SETTLE):
        before = weight.detach().clone()
        weight.grad = _tangent(before, generator)
        optimizer.step()
        if step >= SETTLE - AVERAGE:
            after = weight.detach()
            n0, n1 = before.norm(dim=1, keepdim=True), after.norm(dim=1, keepdim=True)
            norms.append(n1.mean())
            turns.append((after / n1 - before / n0).square().sum(dim=1).mean())
    return float(torch.stack(norms).mean()), math.sqrt(torch.stack(turns).mean())


def _norm_off(kinds: tuple[str, ...], *, as_decay: bool = False, as_plain: bool = False) -> float:
    """Return by how much the norms at equilibrium differ from the formula, relative."""
    worst = 0.0
    for kind in kinds:
        for momentum in MOMENTA:
            expected = _settled("wd" if as_decay else kind, 0.0 if as_plain else momentum)
            worst = max(worst, abs(_equilibrium(kind, momentum)[0] / expected - 1))
    return worst


def _turn_off(*, with_momentum: bool = True) -> float:
    """Return by how much the angular steps at equilibrium differ from the formula, relative."""
    worst = 0.0
    for kind in STRENGTH:
        for momentum in MOMENTA:
            norm, angle = _equilibrium(kind, momentum)
            rate = STRENGTH[kind] * {"wd": 1.0, "wn": norm, "ws": norm / math.sqrt(LENGTH)}[kind]
            expected = math.sqrt(2 * LR * rate / (1 + momentum if with_momentum else 1))
            worst = max(worst, abs(angle / expected - 1))
    return worst


@cache
def _times(kind: str) -> tuple[int, ...]:
    """Return after how many steps rows started at 30 and 150 are within 10 % of the equilibrium."""
    generator = torch.Generator().manual_seed(6)
    weight = _rows(START * torch.tensor(SCALES, dtype=torch.float64), generator)
    optimizer = _optimizer(weight, kind)
    limit, steps = NEAR * _settled(kind, 0.0), [0] * len(SCALES)
    for step in range(1, 10_000):
        weight.grad = _tangent(weight.detach(), generator)
        optimizer.step()
        for row, norm in enumerate(weight.detach().norm(dim=1).tolist()):
            if not steps[row] and norm <= limit:
                steps[row] = step
        if all(steps):
            return tuple(steps)
    raise RuntimeError(f"{kind}: no row came within 10 % of {limit / NEAR:.3f} in 10000 steps")


def _decay_times(*, gradient: bool = True) -> float:
    """Return by how much the times under decay differ from ln((s^4 - 1) / (1.1^4 - 1)) / (4 λ η), relative."""
    worst = 0.0
    for scale, time in zip(SCALES, _times("wd"), strict=True):
        s = START * scale / _settled("wd", 0.0)
        part = math.log((s**4 - 1) / (NEAR**4 - 1)) / 4 if gradient else math.log(s / NEAR)
        worst = max(worst, abs(time * LR * STRENGTH["wd"] / part - 1))
    return worst


def _longest() -> float:
    """Return the integral of x^3 / (x^5 - 1) from 1.1 to infinity: AWS's time from any start, times η α n."""
    x = torch.linspace(0, 1 / NEAR, 200_001, dtype=torch.float64)  # t = 1/x turns it into 1 / (1 - t^5)
    return float(torch.trapezoid(1 / (1 - x**5), x))


def _shrink_times(kind: str) -> float:
    """Return the longest time over AWS's bound, less 1; below 0 it is kept."""
    rate = LR * STRENGTH["wn"] * _settled("wn", 0.0)
    return max(_times(kind)) * rate / _longest() - 1


def _free_fall(kind: str, law: Callable[[float, int], float]) -> float:
    """Return by how much the norm of a weight without gradient differs from a law of (start, step), relative."""
    generator, worst = torch.Generator().manual_seed(7), 0.0
    weight = _rows(torch.tensor([2.0, 40.0], dtype=torch.float64), generator)
    start = weight.detach().norm(dim=1).tolist()
    optimizer = _optimizer(weight, kind)
    for step in range(1, 401):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        norms = weight.detach().norm(dim=1).tolist()
        worst = max(worst, *(abs(n / law(n0, step) - 1) for n, n0 in zip(norms, start, strict=True)))
    return worst


def _geometric(n0: float, step: int) -> float:
    return n0 * (1 - LR * STRENGTH["wd"]) ** step


def _hyperbolic(n0: float, step: int) -> float:
    return 1 / (1 / n0 + LR * STRENGTH["wn"] * step)


def _overflow(momentum: float, strength: float, *, kind: str = "wd", most: int = 5500) -> int | None:
    """Return the first step after which W / ‖W‖ holds a NaN in float32, without gradient; None if there is none."""
    weight = nn.Parameter(torch.full((1, 64), 1.0, dtype=torch.float32))
    optimizer = _optimizer(weight, kind, momentum=momentum, strength=strength)
    weight.grad = torch.zeros_like(weight)
    for step in range(1, most + 1):
        optimizer.step()
        if not torch.isfinite(normalise(weight.detach(), eps=0.0)).all():
            return step
    return None


def _predicted_overflow(momentum: float, strength: float) -> float:
    """Return the step at which the square of an entry that starts at 1 falls below 2^-150."""
    middle = (1 + momentum - LR * strength) / 2  # w'' = (1 + β - ηλ) w' - β w: the larger root decides
    root = 1 - LR * strength if momentum == 0 else middle + math.sqrt(middle**2 - momentum)
    return math.log(SMALLEST_SQUARE) / (2 * math.log(root))


@cache
def _overflow_off(*, kind: str = "wd", known_root: bool = True) -> float:
    """Return by how much steps of overflow differ from the prediction, relative; infinite if there is none."""
    worst = 0.0
    for momentum, strength in ((0.0, 0.1), (0.0, 1.0), (0.9, 0.01)):
        step = _overflow(momentum, strength, kind=kind)
        predicted = _predicted_overflow(momentum if known_root else 0.0, strength)
        worst = max(worst, math.inf if step is None else abs(step / predicted - 1))
    return worst


@cache
def _never(kind: str) -> float:
    """Return how many of the strengths 0.01, 0.1 and 1 overflow in 5500 steps at momentum 0.9 or 0."""
    return float(sum(_overflow(m, a, kind=kind) is not None for m, a in ((0.9, 0.01), (0.0, 0.1), (0.0, 1.0))))


def _stability(*, limit: float = 2.0) -> float:
    """Return 0 if norms just below `limit / (η α)` shrink and those just above grow without end, else 1."""
    generator = torch.Generator().manual_seed(8)
    edge = limit / (LR * STRENGTH["wn"])
    weight = _rows(edge * torch.tensor([0.95, 1.05], dtype=torch.float64), generator)
    optimizer = _stable_optimizer(weight)
    for _ in range(60):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    below, above = weight.detach().norm(dim=1).tolist()
    return 0.0 if below < edge / 2 and not above < 10 * edge else 1.0


def _stable_optimizer(weight: nn.Parameter) -> SGD:
    optimizer = SGD([weight], lr=LR, foreach=False)
    tiny = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1e-3)  # attached where it is stable: beyond the edge it warns, which tests of the package cover
        shrink_weights(optimizer, alpha=STRENGTH["wn"], params=[weight], kind="wn", clamp=None)
        weight.copy_(tiny)
    return optimizer


CLAIMS = (
    Claim(
        "fixed-point-wd", "AWS", "Equilibrium, weight decay", "n⁴ = η G² / (2 λ (1-β))", "relative, β = 0 and 0.9",
        3e-3, partial(_norm_off, ("wd",)),
        (Control("without 1/(1-β)", partial(_norm_off, ("wd",), as_plain=True)),),
    ),
    Claim(
        "fixed-point-aws", "AWS", "Equilibrium, AWS", "n⁵ = η G² / (2 α (1-β)); WS: α / √N in the place of α",
        "relative, WN and WS, β = 0 and 0.9", 3e-3, partial(_norm_off, ("wn", "ws")),
        (
            Control("without 1/(1-β)", partial(_norm_off, ("wn", "ws"), as_plain=True)),
            Control("weight decay's law for WN", partial(_norm_off, ("wn",), as_decay=True)),
        ),
    ),
    Claim(
        "angular-step", "AWS", "Angle of a step at equilibrium", "‖Δû‖² = 2 η λ / (1+β), λ → α n for AWS",
        "relative, all six settings", 0.01, _turn_off,
        (Control("without 1/(1+β)", partial(_turn_off, with_momentum=False)),),
    ),
    Claim(
        "fall-wd", "AWS", "Weight decay without gradient", "n_t = n_0 (1-ηλ)^t", "relative", 1e-12,
        partial(_free_fall, "wd", _geometric),
        (Control("the hyperbola of AWS", partial(_free_fall, "wd", _hyperbolic)),),
    ),
    Claim(
        "fall-aws", "AWS", "AWS without gradient", "n_t = 1 / (1/n_0 + ηα t)",
        "relative, to first order in ηα n_0 ≤ 0.04", 0.03, partial(_free_fall, "wn", _hyperbolic),
        (Control("the exponential of weight decay", partial(_free_fall, "wn", _geometric)),),
    ),
    Claim(
        "start-scale-wd", "AWS", "Start scale, weight decay", "time = ln((s⁴-1)/(1.1⁴-1)) / (4ηλ): grows with ln s",
        "relative, starts 30 and 150", 0.01, _decay_times,
        (Control("without the gradient: ln(s/1.1) / (ηλ)", partial(_decay_times, gradient=False)),),
    ),
    Claim(
        "start-scale-aws", "AWS", "Start scale, AWS", "time ≤ 1.06 / (ηα n_eq) from any start",
        "longest time over the bound, less 1", 0.01, partial(_shrink_times, "wn"),
        (Control("weight decay held to that bound", partial(_shrink_times, "wd")),),
    ),
    Claim(
        "overflow-wd", "AWS", "Overflow under weight decay", "W/‖W‖ is NaN once ρ^2t < 2^-150, ρ the root of the decay",
        "relative, float32; λ = 0.1, 1 and 0.01 with β = 0.9", 0.02, _overflow_off,
        (Control("1 - ηλ for the root at momentum 0.9", partial(_overflow_off, known_root=False)),),
    ),
    Claim(
        "overflow-aws", "AWS", "No overflow under AWS", "no NaN in 5500 steps where weight decay overflows",
        "settings that overflow, of 3, float32", 0.0, partial(_never, "wn"),
        (Control("weight decay", partial(_never, "wd")),),
    ),
    Claim(
        "stability", "AWS", "Stability of AWS", "converges for ηα n < 2, diverges above (momentum 0)",
        "0, or 1 where not so (5 % either side)", 0.0, _stability,
        (Control("1 in the place of 2", partial(_stability, limit=1.0)),
         Control("3 in the place of 2", partial(_stability, limit=3.0))),
    ),
)  # fmt: skip
