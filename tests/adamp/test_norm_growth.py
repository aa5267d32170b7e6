"""The lemmas of §2.2 and §3 on how weight norms grow, with exactly scale-invariant objectives in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adamp import SGDP, AdamP

LR = 0.05


def problem(seed=0, shape=(3, 8)):
    """A weight and a loss that depends on the direction of each row only."""
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    target = torch.randn(shape, generator=generator, dtype=torch.float64)

    def loss(w=weight):
        unit = w / w.norm(dim=1, keepdim=True)
        return ((unit - target) ** 2).sum() + (unit**3).sum()

    return weight, loss


def steps(weight, loss, optimizer, num_steps):
    """Yield the squared row norms before, the gradient, the weight before and after each step."""
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        before = weight.detach().clone()
        optimizer.step()
        yield before, weight.grad, weight.detach()


def square(x):
    return x.square().sum(1)


def test_lemma_2_1_gradient_descent():
    weight, loss = problem()
    for before, grad, after in steps(weight, loss, torch.optim.SGD([weight], LR), 60):
        torch.testing.assert_close(square(after), square(before) + LR**2 * square(grad), rtol=1e-13, atol=0)


def test_lemma_2_2_momentum():
    weight, loss = problem()
    beta, update, history = 0.9, torch.zeros(3, 8).double(), torch.zeros(3).double()
    lemma_2_1_error = 0.0
    for before, grad, after in steps(weight, loss, torch.optim.SGD([weight], LR, momentum=beta), 60):
        update = beta * update + grad
        expected = square(before) + LR**2 * square(update) + 2 * LR**2 * history
        torch.testing.assert_close(square(after), expected, rtol=1e-13, atol=0)
        lemma_2_1_error = max(lemma_2_1_error, float((LR**2 * history / square(after)).max()))
        history = beta * (history + square(update))
    assert lemma_2_1_error > 1e-3  # the formula without momentum must fail visibly


def test_equation_12_projected_momentum():
    weight, loss = problem()
    for before, _, after in steps(weight, loss, SGDP([weight], LR, momentum=0.9), 60):
        moved = square(after - before)  # lr² ‖q‖²
        torch.testing.assert_close(square(after), square(before) + moved, rtol=1e-8, atol=0)


@pytest.mark.parametrize("project_buffer", [False, True])
def test_proposition_3_1_the_projected_step_stays_in_the_plane(project_buffer):
    weight, loss = problem()
    optimizer = SGDP([weight], LR, momentum=0.9, project_buffer=project_buffer)
    buffer = torch.zeros(3, 8).double()
    for before, grad, after in steps(weight, loss, optimizer, 20):
        buffer = 0.9 * buffer + grad
        for k in range(3):
            plane = torch.linalg.qr(torch.stack([before[k], buffer[k]], dim=1)).Q
            out = after[k] - plane @ (plane.T @ after[k])
            assert float(out.norm()) < 1e-12
        if project_buffer:
            buffer = optimizer.state[weight]["momentum_buffer"].clone()


def growth(cls, weight, loss, **options):
    start = float(weight.detach().norm() ** 2)
    for _ in steps(weight, loss, cls([weight], **options), 100):
        pass
    return float(weight.detach().norm() ** 2) - start


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [(SGDP, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}), (AdamP, torch.optim.AdamW, {"lr": 0.05})],
)
def test_norms_grow_less_than_without_the_projection(ours, theirs, options):
    projected, plain = growth(ours, *problem(), **options), growth(theirs, *problem(), **options)
    assert 0 < projected < 0.5 * plain


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), lr=st.floats(1e-4, 1.0), momentum=st.floats(0.0, 0.99), nesterov=st.booleans())
def test_without_decay_projected_norms_never_decrease(seed, lr, momentum, nesterov):
    for optimizer_class, options in (
        (SGDP, {"momentum": momentum, "nesterov": nesterov}),
        (AdamP, {"betas": (momentum, 0.99), "nesterov": nesterov}),
    ):
        weight, loss = problem(seed)
        for before, _, after in steps(weight, loss, optimizer_class([weight], lr=lr, **options), 8):
            assert (square(after) >= square(before) * (1 - 1e-6)).all()
