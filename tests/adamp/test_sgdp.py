"""SGDP against a hand-written step, torch's SGD, timm's SGDP and checkpoints of the authors' package."""

import copy
import inspect
import math

import pytest
import timm.optim
import torch
from torch import nn

from adamp import SGDP
from tests.adamp import reference
from tests.adamp.problems import make_param
from tests.adamp.trajectories import assert_equal, parameters, run_together, set_grads


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("project_buffer", [False, True])
@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.0, 0.5), (0.9, 0.0), (0.9, 0.5)])
def test_steps_agree_with_the_rule_written_by_hand(nesterov, project_buffer, momentum, dampening, path):
    options = {
        "lr": 0.05, "momentum": momentum, "dampening": dampening, "weight_decay": 0.01, "eps": 1e-6, "delta": 0.1,
        "wd_ratio": 0.2, "nesterov": nesterov, "project_buffer": project_buffer,
    }  # fmt: skip
    params = parameters()
    optimizer = SGDP(params, **options, **path)
    states = [{} for _ in params]
    for step in range(8):
        set_grads(params, step)
        expected = [
            reference.sgdp_step(p.detach(), p.grad, state, **options) for p, state in zip(params, states, strict=True)
        ]
        optimizer.step()
        assert_equal(params, expected)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_without_test_and_decay_it_is_sgd(momentum, nesterov, path):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.01, "momentum": momentum, "nesterov": nesterov}
    a = SGDP(ours, **options, delta=0.0, **path)
    b = torch.optim.SGD(theirs, **options, foreach=False)
    run_together([(a, ours), (b, theirs)], 20)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_agree_with_timm(nesterov, path):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": nesterov}
    run_together([(SGDP(ours, **options, **path), ours), (timm.optim.SGDP(theirs, **options), theirs)], 20)
    assert_equal(ours, theirs)


def test_the_buffer_is_projected_only_on_demand(path):
    w = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    buffers = {}
    for project_buffer in (False, True):
        param = nn.Parameter(w.clone())
        optimizer = SGDP([param], 0.1, momentum=0.9, project_buffer=project_buffer, **path)
        for _ in range(2):  # the second gradient is orthogonal to the turned weight, the buffer is not
            param.grad = torch.stack([-param.detach()[0, 1], param.detach()[0, 0]])[None]
            optimizer.step()
        turned = torch.tensor([[1.0, -0.1]], dtype=torch.float64)  # the weight before the second step
        buffers[project_buffer] = abs(float((optimizer.state[param]["momentum_buffer"] * turned).sum()))
    assert buffers[False] > 0.05
    assert buffers[True] < 1e-7


def test_with_nesterov_the_buffer_option_makes_no_difference():
    first, second = parameters(), parameters()
    options = {"lr": 0.01, "momentum": 0.9, "nesterov": True}
    run_together([(SGDP(first, **options), first), (SGDP(second, **options, project_buffer=True), second)], 5)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_decay_is_divided_by_one_minus_momentum(path):
    param = nn.Parameter(torch.ones(3, dtype=torch.float64))
    param.grad = torch.zeros(3, dtype=torch.float64)
    SGDP([param], 0.1, momentum=0.75, weight_decay=0.01, **path).step()
    torch.testing.assert_close(param.detach(), torch.full((3,), 1 - 0.1 * 0.01 / 0.25, dtype=torch.float64))


def test_projected_weights_decay_by_wd_ratio(path):
    param = nn.Parameter(torch.ones(1, 3, dtype=torch.float64))
    param.grad = torch.zeros(1, 3, dtype=torch.float64)  # counts as orthogonal
    SGDP([param], 0.1, weight_decay=0.01, wd_ratio=0.3, **path).step()
    torch.testing.assert_close(param.detach(), torch.full((1, 3), 1 - 0.1 * 0.01 * 0.3, dtype=torch.float64))


def test_the_first_step_with_dampening_takes_the_dampened_gradient(path):
    param = nn.Parameter(torch.zeros(3))
    param.grad = torch.ones(3)
    SGDP([param], 1.0, momentum=0.9, dampening=0.25, **path).step()
    assert torch.equal(param.detach(), torch.full((3,), -0.75))


def test_without_momentum_there_is_no_buffer_to_poison(path):
    param = nn.Parameter(torch.zeros(3))
    optimizer = SGDP([param], 0.0, **path)
    param.grad = torch.full((3,), math.inf)
    optimizer.step()
    assert "momentum_buffer" not in optimizer.state[param]
    param.data.zero_()
    param.grad = torch.ones(3)
    optimizer.step()
    assert torch.isfinite(param).all()


def test_a_checkpoint_of_the_published_package_continues(path):
    theirs = parameters()
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    published = timm.optim.SGDP(theirs, **options)
    run_together([(published, theirs)], 3)
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = SGDP(ours, lr=1.0, scale_invariant="auto", project_buffer=True, **path)
    state = copy.deepcopy(published.state_dict())
    del state["param_groups"][0]["caution"]
    assert set(state["state"][0]) == {"momentum"}
    optimizer.load_state_dict(state)
    assert set(optimizer.state[ours[0]]) == {"momentum_buffer"}
    assert optimizer.param_groups[0]["project_buffer"] is True
    run_together([(published, theirs), (optimizer, ours)], 5, start=3)
    assert_equal(ours, theirs)


def test_a_checkpoint_without_a_buffer_yet_starts_one(path):
    ours, fresh = make_param((3, 4)), make_param((3, 4))
    optimizer, source = SGDP([ours], 0.1, momentum=0.9, **path), torch.optim.SGD([fresh], 0.1, momentum=0.9)
    saved = source.state_dict()
    saved["state"][0] = {"momentum_buffer": None}  # as torch's SGD saves it
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert torch.equal(optimizer.state[ours]["momentum_buffer"], ours.grad)


def test_the_options_of_the_published_package_are_taken_by_keyword():
    published = ["params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "eps", "delta", "wd_ratio"]
    signature = inspect.signature(SGDP).parameters
    assert set(published) <= set(signature)
    defaults = [signature[name].default for name in published[2:]]
    assert defaults == [0, 0, 0, False, 1e-8, 0.1, 0.1]
    with pytest.raises(TypeError, match="lr"):
        SGDP(parameters())
