"""Claims of the AdamP paper: what a step does to the norm of a scale-invariant weight.

Notation: `w` weight, `n` its norm, `u = w / n`, `g` gradient, `p` update before the learning rate, `q` its projection,
`R` rows (filters).

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", ICLR 2021,
    sections 2 and 3. https://arxiv.org/abs/2006.08217
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from adamp import SGDP, AdamP
from tasks.toy.claims import Claim, Control

LR, BETA, STEPS = 0.05, 0.9, 60
ROWS, LENGTH = 3, 8
COROLLARY = {0.5: 3.0, 0.9: 19.0, 0.99: 199.0}  # as printed after Corollary 2.3
FADING, HORIZON = 0.99, 2000  # ||p_t||^2 = 0.99^t; after 2000 steps less than 1e-7 of the growth is left

Step = tuple[Tensor, Tensor, Tensor]
Make = Callable[..., Optimizer]


def _problem(seed: int = 0) -> tuple[nn.Parameter, Callable[[Tensor], Tensor]]:
    """Return a weight (R, 8) and a loss that depends on its rows' directions alone."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64))
    target = torch.randn(ROWS, LENGTH, generator=generator, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        unit = w / w.norm(dim=1, keepdim=True)
        return ((unit - target) ** 2).sum() + (unit**3).sum()

    return weight, loss


def _steps(make: Make, *, lr: Callable[[int], float] = lambda step: LR, **options: Any) -> Iterator[Step]:
    """Yield the weight before each step, its gradient and the weight after it."""
    weight, loss = _problem()
    optimizer = make([weight], lr=LR, **options)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(weight).backward()
        before = weight.detach().clone()
        optimizer.param_groups[0]["lr"] = lr(step)
        optimizer.step()
        assert weight.grad is not None
        yield before, weight.grad.clone(), weight.detach().clone()


def _square(x: Tensor) -> Tensor:
    return x.square().sum(dim=1)


def _off(measured: Tensor, expected: Tensor) -> float:
    return float(((measured - expected).abs() / expected.abs()).max())


def _lemma_2_1(momentum: float) -> float:
    """Return by how much n'^2 differs from n^2 + lr^2 |p|^2, relative."""
    return max(
        _off(_square(after), _square(before) + _square(after - before))
        for before, _, after in _steps(SGD, momentum=momentum)
    )


def _lemma_2_2(lr: Callable[[int], float] = lambda step: LR, **options: Any) -> float:
    """Return by how much n'^2 differs from n^2 + lr^2 |p|^2 + 2 lr^2 sum_k beta^(t-k) |p_k|^2, relative."""
    worst, history = 0.0, torch.zeros(ROWS, dtype=torch.float64)
    for step, (before, _, after) in enumerate(_steps(SGD, lr=lr, momentum=BETA, **options)):
        size = _square((before - after) / lr(step))
        expected = _square(before) + lr(step) ** 2 * (size + 2 * history)
        worst = max(worst, _off(_square(after), expected))
        history = BETA * (history + size)
    return worst


def _without_radial(p: Tensor, w: Tensor) -> Tensor:
    return p - w * ((w * p).sum(dim=1) / _square(w))[:, None]


def _equation_12(make: Make, *, in_place: bool = False, nesterov: bool = False, **options: Any) -> float:
    """Return by how much n'^2 differs from n^2 + lr^2 |q|^2, relative, with q computed here from the gradients."""
    worst, buffer = 0.0, torch.zeros(ROWS, LENGTH, dtype=torch.float64)
    for before, grad, after in _steps(make, momentum=BETA, nesterov=nesterov, **options):
        buffer = BETA * buffer + grad
        q = _without_radial(grad + BETA * buffer if nesterov else buffer, before)
        if in_place:
            buffer = q
        worst = max(worst, _off(_square(after), _square(before) + LR**2 * _square(q)))
    return worst


def _equation_12_sgdp() -> float:
    variants: tuple[dict[str, bool], ...] = ({}, {"nesterov": True}, {"in_place": True, "project_buffer": True})
    return max(_equation_12(SGDP, **variant) for variant in variants)


def _adam_growth(make: Make) -> float:
    """Return by how much n'^2 differs from n^2 + |w' - w|^2, relative."""
    return max(_off(_square(after), _square(before) + _square(after - before)) for before, _, after in _steps(make))


def _proposition_3_1(*, along: str = "buffer", maximize: bool = False) -> float:
    """Return how far u' leaves span(w, p); 1 if it is on the other side of w than the unprojected step."""
    worst, buffer = 0.0, torch.zeros(ROWS, LENGTH, dtype=torch.float64)
    for before, grad, after in _steps(SGDP, momentum=BETA, maximize=maximize):
        buffer = BETA * buffer + grad
        unprojected = before - LR * buffer
        second = buffer if along == "buffer" else grad
        for row in range(ROWS):
            plane = torch.linalg.qr(torch.stack([before[row], second[row]], dim=1)).Q
            unit = after[row] / after[row].norm()
            worst = max(worst, float((unit - plane @ (plane.T @ unit)).norm()))
            if float(plane[:, 1] @ after[row]) * float(plane[:, 1] @ unprojected[row]) < 0:
                worst = max(worst, 1.0)
    return worst


@cache
def _growth(beta: float, *, equal: bool = True) -> float:
    """Return n_T^2 - n_0^2 of torch's SGD over random tangent gradients.

    With `equal`, each gradient's length is chosen so that |p_t|^2 = rho^t, whatever the momentum: Corollary 2.3
    compares runs with equal updates. Otherwise it is the gradient whose length is so.
    """
    generator = torch.Generator().manual_seed(1)
    weight = nn.Parameter(torch.randn(1, 16, generator=generator, dtype=torch.float64))
    optimizer = SGD([weight], lr=LR, momentum=beta, foreach=False)
    start, p = float(weight.detach().square().sum()), torch.zeros_like(weight.detach())
    for step in range(HORIZON):
        w, size = weight.detach(), FADING**step
        direction = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        direction = direction - w * ((w * direction).sum() / w.square().sum())
        direction = direction / direction.norm()
        dot, rest = beta * float((p * direction).sum()), beta**2 * float(p.square().sum()) - size
        length = -dot + math.sqrt(dot**2 - rest) if equal else math.sqrt(size)
        weight.grad = length * direction
        p = beta * p + weight.grad
        optimizer.step()
    return float(weight.detach().square().sum()) - start


def _corollary_2_3(*, equal: bool = True) -> float:
    """Return by how much the ratio of growths with and without momentum differs from 3, 19, 199, relative."""
    plain = _growth(0.0)
    return max(abs(_growth(beta, equal=equal) / plain / limit - 1) for beta, limit in COROLLARY.items())


def _batch_norm_cosine(eps: float) -> float:
    """Return the largest |cos(w, g)| of a convolution's filters before batch norm, also after scaling the weight."""
    torch_state = torch.Generator().manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False).double(), nn.BatchNorm2d(4, eps=eps).double()
    images = torch.randn(8, 3, 6, 6, generator=torch_state, dtype=torch.float64)
    values = torch.randn(conv.weight.shape, generator=torch_state, dtype=torch.float64)
    grads = []
    for scale in (1.0, 0.25):
        weight = nn.Parameter(scale * values)
        output = norm(torch.nn.functional.conv2d(images, weight))
        (grad,) = torch.autograd.grad((output**3).mean() + output.relu().mean(), weight)
        grads.append((scale * grad).flatten(1))
    cosine = (values.flatten(1) * grads[0]).sum(1) / values.flatten(1).norm(dim=1) / grads[0].norm(dim=1)
    return max(float(cosine.abs().max()), float((grads[1] - grads[0]).norm() / grads[0].norm()))


def _effective_step_order(*, true_norm: bool = True) -> float:
    """Return how far the relative error of eq. 5, lr |g| / n', is from falling as lr^2 for gradient descent."""
    errors = []
    for lr in (0.02, 0.01):
        weight, loss = _problem()
        (grad,) = torch.autograd.grad(loss(weight), weight)
        before = weight.detach()
        after = before - lr * grad
        exact = (after / after.norm(dim=1, keepdim=True) - before / before.norm(dim=1, keepdim=True)).norm(dim=1)
        length = after.norm(dim=1) if true_norm else (1 + lr) * after.norm(dim=1)
        errors.append(lr * grad.norm(dim=1) / length / exact - 1)
    return float((torch.log2((errors[0] / errors[1]).abs()) - 2).abs().max())


CLAIMS = (
    Claim(
        "eq-4", "AdamP", "Eqs. 3 and 4", "w·g = 0 and g(c w) = g(w) / c for weights before batch norm",
        "largest |cos(w, g)| and relative error of g(w/4)/4", 1e-12, partial(_batch_norm_cosine, 1e-20),
        (Control("batch norm with its usual eps, 1e-5", partial(_batch_norm_cosine, 1e-5)),),
    ),
    Claim(
        "eq-5", "AdamP", "Eq. 5", "‖Δû‖ = η ‖g‖ / n' (1 + O(η²)), gradient descent", "order of the error, off 2", 0.02,
        _effective_step_order,
        (Control("norm off by a factor 1 + η", partial(_effective_step_order, true_norm=False)),),
    ),
    Claim(
        "lemma-2.1", "AdamP", "Lemma 2.1", "n'² = n² + η² ‖p‖², gradient descent", "relative", 1e-13,
        partial(_lemma_2_1, 0.0), (Control("the same formula with momentum 0.9", partial(_lemma_2_1, BETA)),),
    ),
    Claim(
        "lemma-2.2", "AdamP", "Lemma 2.2", "n'² = n² + η² ‖p‖² + 2 η² Σ β^(t-k) ‖p_k‖², momentum", "relative", 1e-13,
        _lemma_2_2,
        (
            Control("Nesterov's update", partial(_lemma_2_2, nesterov=True)),
            Control("weight decay 0.01", partial(_lemma_2_2, weight_decay=0.01)),
            Control("a learning rate that falls", partial(_lemma_2_2, lr=lambda step: LR / (1 + 0.1 * step))),
        ),
    ),
    Claim(
        "corollary-2.3", "AdamP", "Corollary 2.3", "growth with / without momentum → 1 + 2β/(1-β): 3, 19, 199",
        "relative, largest of β = 0.5, 0.9, 0.99", 1e-4, _corollary_2_3,
        (Control("equal gradients in the place of equal updates", partial(_corollary_2_3, equal=False)),),
    ),
    Claim(
        "proposition-3.1", "AdamP", "Proposition 3.1", "û' lies in span(w, p), on the side of the unprojected step",
        "distance from the plane; 1 on the wrong side", 1e-12, _proposition_3_1,
        (
            Control("the plane of w and g", partial(_proposition_3_1, along="grad")),
            Control("a step uphill", partial(_proposition_3_1, maximize=True)),
        ),
    ),
    Claim(
        "eq-12", "AdamP", "Eq. 12, SGDP", "n'² = n² + η² ‖q‖²: Algorithm 1, Nesterov, and the buffer in place",
        "relative", 1e-8, _equation_12_sgdp,  # the projection's eps, 1e-8, leaves 2e-8 / n of the radial part
        (
            Control("momentum without projection", partial(_equation_12, SGD)),
            Control("Algorithm 1's q for the buffer in place", partial(_equation_12, SGDP, project_buffer=True)),
        ),
    ),
    Claim(
        "eq-12-adamp", "AdamP", "Eq. 12, AdamP", "n'² = n² + ‖w' - w‖²", "relative", 1e-8, partial(_adam_growth, AdamP),
        (Control("Adam", partial(_adam_growth, Adam)),),
    ),
)  # fmt: skip
