"""Kahan's summation of steps: small steps of bfloat16 weights arrive, with every implementation."""

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP
from tests.adamp.trajectories import OPTIMIZERS, parameters, train

# At a constant gradient of 1 each step is 1e-4; these moments are exact in bfloat16.
STEADY = {"sgdp": (SGDP, {"lr": 1e-4}), "adamp": (AdamP, {"lr": 1e-4, "betas": (0.0, 0.5)})}


def step_from_one(cls, options, dtype, num_steps=100, **path):
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((4, 6), (5,), ())]
    optimizer = cls(params, **options, **path, delta=0.0)
    for _ in range(num_steps):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", STEADY)
def test_a_hundred_steps_of_1e_4_arrive(name, dtype, path):
    params, optimizer = step_from_one(*STEADY[name], dtype, kahan_sum=True, **path)
    for p in params:
        value = p.double() + optimizer.state[p]["compensation"].double()
        torch.testing.assert_close(value, torch.full_like(value, 0.99), rtol=0, atol=2e-4)
        assert (p.detach().double() - 0.99).abs().max() <= torch.finfo(dtype).eps / 4 + 2e-4


@pytest.mark.parametrize("name", STEADY)
def test_without_it_bfloat16_weights_stay(name, path):
    params, _ = step_from_one(*STEADY[name], torch.bfloat16, **path)
    assert all((p == 1).all() for p in params)


@pytest.mark.parametrize(("cls", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_implementations_agree(cls, options, path):
    ours, plain = parameters(torch.bfloat16), parameters(torch.bfloat16)
    for params, chosen in ((ours, path), (plain, {"foreach": False})):
        optimizer = cls(params, **options, **chosen, kahan_sum=True)
        train(optimizer, params, 3)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("name", "size"), [("sgdp", 4), ("adamp", 8)])
def test_it_costs_the_size_of_the_weight(name, size):
    """bfloat16 weights and states: half of what float32 ones take without it."""
    params, optimizer = step_from_one(*STEADY[name], torch.bfloat16, num_steps=1, kahan_sum=True)
    states = optimizer.state[params[0]]
    assert states["compensation"].dtype is torch.bfloat16
    held = sum(x.nbytes for x in (params[0], *states.values()) if x.ndim)
    assert held == size * params[0].numel()


def test_a_saved_compensation_goes_on():
    whole, _ = step_from_one(*STEADY["adamp"], torch.bfloat16, kahan_sum=True)
    params, optimizer = step_from_one(*STEADY["adamp"], torch.bfloat16, num_steps=50, kahan_sum=True)
    other = AdamP([nn.Parameter(p.detach().clone()) for p in params], kahan_sum=True)
    other.load_state_dict(optimizer.state_dict())
    for _ in range(50):
        for p in other.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, other.param_groups[0]["params"], strict=True))


def test_it_excludes_differentiable_steps():
    with pytest.raises(RuntimeError, match="`kahan_sum` does not support `differentiable`"):
        AdamP(parameters(), lr=0.1, kahan_sum=True, differentiable=True)
