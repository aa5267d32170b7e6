"""Autograd through a step: gradients with respect to the weight, the gradient, the state and the learning rate."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from adamp import SGDP, AdamP
from tests.adamp import reference

CASES = {
    "sgdp": (SGDP, {"momentum": 0.9, "weight_decay": 0.1}, ("momentum_buffer",)),
    "sgdp-nesterov": (SGDP, {"momentum": 0.9, "nesterov": True}, ("momentum_buffer",)),
    "sgdp-published": (SGDP, {"momentum": 0.9, "weight_decay": 0.1, "project_buffer": True}, ("momentum_buffer",)),
    "adamp": (AdamP, {"weight_decay": 0.1}, ("exp_avg", "exp_avg_sq")),
    "adamp-nesterov": (AdamP, {"nesterov": True}, ("exp_avg", "exp_avg_sq")),
}


@pytest.mark.parametrize("kind", ["channel", "layer", "none"])
@pytest.mark.parametrize(("cls", "options", "names"), CASES.values(), ids=CASES.keys())
def test_the_derivative_of_a_step_is_that_of_finite_differences(cls, options, names, kind):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    grad = reference.gradient(w, kind, generator)
    states = [torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1 for _ in names]

    def two_steps(w, grad, lr, *states):
        # A step needs a tensor that is no leaf.
        param = w.clone()
        optimizer = cls([param], lr, **options, differentiable=True)
        optimizer.state[param] = {name: x.clone() for name, x in zip(names, states, strict=True)}
        if cls is AdamP:
            optimizer.state[param]["step"] = torch.tensor(2.0)
        for _ in range(2):
            param.grad = grad
            optimizer.step()
        return (param, *(optimizer.state[param][name] for name in names))

    inputs = [x.requires_grad_() for x in (w, grad, torch.tensor(0.01, dtype=torch.float64), *states)]
    assert gradcheck(two_steps, inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize(("cls", "options", "names"), CASES.values(), ids=CASES.keys())
def test_the_values_are_those_of_the_ordinary_step(cls, options, names):
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plain = nn.Parameter(start.clone())
    other = start.clone().requires_grad_().clone()
    optimizers = [cls([plain], 0.1, **options), cls([other], 0.1, **options, differentiable=True)]
    for seed in range(3):
        grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        plain.grad, other.grad = grad, grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other.detach(), plain.detach())
    assert other.requires_grad


def test_a_learning_rate_can_be_learned_through_steps():
    """The hypergradient of two steps on a quadratic, whose weight is a vector: (1 - lr)^2 w."""
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = torch.ones(3, dtype=torch.float64).requires_grad_().clone()
    optimizer = SGDP([w], lr, differentiable=True)
    for _ in range(2):
        loss = 0.5 * w.clone().square().sum()  # of a copy: autograd keeps it, and the step writes to the weight
        (w.grad,) = torch.autograd.grad(loss, w, create_graph=True)
        optimizer.step()
    (slope,) = torch.autograd.grad(w.sum(), lr)
    assert float(slope) == pytest.approx(3 * -2 * (1 - 0.1))
