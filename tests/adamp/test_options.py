"""Options of SGDP and AdamP that are out of range are named."""

import math
from collections import UserList  # a sequence that is neither list nor tuple, like omegaconf.ListConfig

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP, AdaRem
from tests.adamp.problems import make_param, net

BAD = [
    ({"lr": -1.0}, "lr"),
    ({"lr": math.nan}, "lr"),
    ({"lr": math.inf}, "lr"),
    ({"lr": "0.1"}, "lr"),
    ({"lr": torch.ones(2)}, "lr"),
    ({"lr": torch.ones(1)}, "lr"),
    ({"eps": -1e-8}, "eps"),
    ({"weight_decay": -1e-4}, "weight_decay"),
    ({"weight_decay": math.nan}, "weight_decay"),
    ({"delta": -0.1}, "delta"),
    ({"delta": math.nan}, "delta"),
    ({"wd_ratio": -0.1}, "wd_ratio"),
    ({"nesterov": 1}, "nesterov"),
    ({"maximize": None}, "maximize"),
    ({"scale_invariant": "yes"}, "scale_invariant"),
    ({"scale_invariant": None}, "scale_invariant"),
]


@pytest.mark.parametrize("cls", [SGDP, AdamP])
@pytest.mark.parametrize(("bad", "name"), BAD)
def test_a_bad_option_is_named(cls, bad, name):
    param = make_param((3, 4))
    with pytest.raises(ValueError, match=f"^{name}="):
        cls([param], **{"lr": 0.1, **bad})
    with pytest.raises(ValueError, match=f"^{name}="):
        cls([{"params": [param], **bad}], lr=0.1)


@pytest.mark.parametrize(
    ("cls", "bad", "message"),
    [
        (SGDP, {"momentum": -0.1}, "momentum=-0.1"),
        (SGDP, {"momentum": math.nan}, "momentum=nan"),
        (SGDP, {"dampening": math.nan}, "dampening=nan"),
        (SGDP, {"momentum": 1.0, "weight_decay": 1e-4}, "momentum must be below 1"),
        (SGDP, {"project_buffer": 0}, "project_buffer=0"),
        (AdamP, {"betas": (0.9, 1.0)}, "betas"),
        (AdamP, {"betas": (-0.1, 0.9)}, "betas"),
        (AdamP, {"betas": (0.9, math.nan)}, "betas"),
        (AdamP, {"betas": 0.9}, "betas"),
        (AdamP, {"betas": ("0.9", "0.999")}, "betas"),
        (AdamP, {"betas": [0.9, "0.99"]}, "betas"),
        (AdamP, {"betas": UserList(["0.9", "0.999"])}, "betas"),
        (AdamP, {"betas": "ab"}, "betas"),
    ],
)
def test_a_bad_option_of_one_optimizer_is_named(cls, bad, message):
    with pytest.raises(ValueError, match=message):
        cls([make_param((3, 4))], **{"lr": 0.1, **bad})
    with pytest.raises(ValueError, match=message):
        cls([{"params": [make_param((3, 4))], **bad}], lr=0.1)


def test_betas_of_a_configuration_become_a_tuple():
    betas = UserList([0.8, 0.9])
    optimizer = AdamP([{"params": [make_param((3, 4))]}, {"params": [make_param((3, 4))], "betas": betas}], betas=betas)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.8, 0.9), (0.8, 0.9)]
    assert all(type(group["betas"]) is tuple for group in (*optimizer.param_groups, optimizer.defaults))


def test_nesterov_at_momentum_zero_is_the_plain_gradient():
    ours, plain = make_param((3, 4)), make_param((3, 4))
    SGDP([ours], 0.1, nesterov=True).step()
    SGDP([plain], 0.1).step()
    assert torch.equal(ours, plain)


@pytest.mark.parametrize("cls", [SGDP, AdamP, AdaRem, torch.optim.SGD])
def test_lazy_layers_may_be_given_before_their_first_forward(cls):
    model = nn.LazyLinear(3)
    optimizer = cls(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.weight, before)


def test_momentum_one_is_allowed_without_decay():
    SGDP([make_param((3, 4))], 0.1, momentum=1.0).step()


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_marking_a_vector_as_scale_invariant_is_refused(cls):
    optimizer = cls([make_param((3, 4))], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "scale_invariant": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_unknown_options_are_refused(cls):
    with pytest.raises(TypeError, match="caution"):
        cls([make_param((3, 4))], lr=0.1, caution=True)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_named_parameters_are_accepted(cls):
    model = net()
    cls(model.named_parameters(), lr=0.1)
