"""AdamP against a hand-written step, torch's AdamW, timm's AdamP and checkpoints of the authors' package."""

import copy
import inspect

import pytest
import timm.optim
import torch
from torch import nn

from adamp import AdamP
from tests.adamp import reference
from tests.adamp.problems import make_param
from tests.adamp.trajectories import assert_equal, parameters, run_together, set_grads


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_agree_with_the_rule_written_by_hand(nesterov, weight_decay, path):
    options = {
        "lr": 0.05, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": weight_decay,
        "delta": 0.1, "wd_ratio": 0.2, "nesterov": nesterov,
    }  # fmt: skip
    params = parameters()
    optimizer = AdamP(params, **options, **path)
    states = [{} for _ in params]
    for step in range(8):
        set_grads(params, step)
        expected = [
            reference.adamp_step(p.detach(), p.grad, state, **options) for p, state in zip(params, states, strict=True)
        ]
        optimizer.step()
        assert_equal(params, expected, atol=1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_without_test_and_projection_it_is_adamw(weight_decay, path):
    ours, theirs = parameters(), parameters()
    a = AdamP(ours, lr=0.01, weight_decay=weight_decay, delta=0.0, **path)
    b = torch.optim.AdamW(theirs, lr=0.01, weight_decay=weight_decay, foreach=False)
    run_together([(a, ours), (b, theirs)], 20)
    assert_equal(ours, theirs)


def test_a_false_mark_is_adamw_too(path):
    ours, theirs = parameters(), parameters()
    a = AdamP(ours, lr=0.01, weight_decay=0.1, scale_invariant=False, **path)
    b = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, foreach=False)
    run_together([(a, ours), (b, theirs)], 5)
    assert_equal(ours, theirs)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_agree_with_timm(nesterov, weight_decay, path):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.01, "weight_decay": weight_decay, "nesterov": nesterov}
    run_together([(AdamP(ours, **options, **path), ours), (timm.optim.AdamP(theirs, **options), theirs)], 20)
    assert_equal(ours, theirs)


def published_state_dict(optimizer):
    """What the authors' package saves: only its eight options, a Python integer for the step."""
    state = copy.deepcopy(optimizer.state_dict())  # torch's loading shares tensors with a live one
    for group in state["param_groups"]:
        del group["caution"]
    assert {type(s["step"]) for s in state["state"].values()} == {int}
    return state


def test_a_checkpoint_of_the_published_package_continues(path):
    theirs = parameters()
    published = timm.optim.AdamP(theirs, lr=0.01, weight_decay=0.1, nesterov=True)
    run_together([(published, theirs)], 3)
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = AdamP(ours, lr=1.0, **path)
    optimizer.load_state_dict(published_state_dict(published))
    run_together([(published, theirs), (optimizer, ours)], 5, start=3)
    assert_equal(ours, theirs)
    step = optimizer.state[ours[0]]["step"]
    assert (step.item(), step.dtype, step.device.type) == (8, torch.float32, "cpu")


def test_a_checkpoint_of_adamw_continues():
    theirs = parameters()
    adamw = torch.optim.AdamW(theirs, lr=0.01, foreach=False)
    run_together([(adamw, theirs)], 3)
    ours = [nn.Parameter(p.detach().clone()) for p in theirs]
    optimizer = AdamP(ours, delta=0.0)
    optimizer.load_state_dict(copy.deepcopy(adamw.state_dict()))
    assert optimizer.param_groups[0]["delta"] == 0.0
    run_together([(adamw, theirs), (optimizer, ours)], 3, start=3)
    assert_equal(ours, theirs)


def test_a_count_of_steps_of_one_dimension_is_loaded(path):
    ours, other = make_param((3, 4)), make_param((3, 4))
    optimizer, source = AdamP([ours], **path), AdamP([other], **path)
    source.step()
    saved = copy.deepcopy(source.state_dict())
    saved["state"][0]["step"] = saved["state"][0]["step"].reshape(1)
    ours.data.copy_(other.detach())
    optimizer.load_state_dict(saved)
    optimizer.step()
    source.step()
    assert optimizer.state[ours]["step"].shape == ()
    assert torch.equal(ours, other)


def test_options_unknown_to_a_checkpoint_stay_as_built():
    params = parameters()
    groups = [{"params": params[:1], "scale_invariant": True}, {"params": params[1:]}]
    optimizer = AdamP(groups, maximize=True)
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["scale_invariant"], group["maximize"]
    optimizer.load_state_dict(state)
    assert [g["scale_invariant"] for g in optimizer.param_groups] == [True, "auto"]
    assert all(g["maximize"] for g in optimizer.param_groups)


def test_each_parameter_counts_its_own_steps(path):
    params = parameters()
    optimizer = AdamP(params, lr=0.01, **path)
    for step in range(4):
        set_grads(params, step)
        if step % 2:
            params[0].grad = None
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [2, 4, 4, 4, 4]


def test_a_tiny_decay_survives_float32(path):
    w = nn.Parameter(torch.full((4, 256), 0.05))
    optimizer = AdamP([w], lr=1e-3, weight_decay=1e-4, **path)
    generator = torch.Generator().manual_seed(0)
    plain = nn.Parameter(w.detach().clone())
    other = AdamP([plain], lr=1e-3, weight_decay=0.0, **path)
    for _ in range(400):
        for p in (w, plain):
            p.grad = None
        w.grad = reference.gradient(w.detach(), "channel", generator)
        plain.grad = w.grad.clone()
        optimizer.step()
        other.step()
    # The decay of a projected weight is 1e-8 a step: `w * (1 - 1e-8)` would be w in float32.
    lost = 1 - float((w.detach().double() * plain.detach().double()).sum() / plain.detach().double().square().sum())
    assert lost == pytest.approx(400 * 1e-8, rel=0.25)


def test_the_options_of_the_published_package_are_taken_by_keyword():
    published = ["params", "lr", "betas", "eps", "weight_decay", "delta", "wd_ratio", "nesterov"]
    signature = inspect.signature(AdamP).parameters
    assert set(published) <= set(signature)
    defaults = {name: signature[name].default for name in published[1:]}
    assert defaults == {
        "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0, "delta": 0.1, "wd_ratio": 0.1,
        "nesterov": False,
    }  # fmt: skip


def test_states_are_named_as_in_torch():
    params = parameters()
    optimizer = AdamP(params)
    set_grads(params, 0)
    optimizer.step()
    assert set(optimizer.state[params[0]]) == {"step", "exp_avg", "exp_avg_sq"}
