"""AdaRem against the rule written by hand and SGD at its limits; the battery is in test_optimizers.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adamp import AdaRem, AdaRemS
from tests.adamp import reference
from tests.adamp.optimizer_cases import resilient
from tests.adamp.problems import make_param, set_random_grads, vectors


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_steps_agree_with_the_rule_written_by_hand(weight_decay):
    params, states = vectors(7, 5), [{}, {}]
    optimizer = AdaRem(params, 0.3, beta=0.8, lam=0.9, weight_decay=weight_decay)
    for step in range(9):
        optimizer.set_epoch(step // 3)
        set_random_grads(params, step)
        params[0].grad[2] = 0.0
        options = {"lr": 0.3, "beta": 0.8, "lam": 0.9, "power": step // 3 + 1, "weight_decay": weight_decay}
        expected = [
            reference.adarem_step(p.detach(), p.grad, s, **options) for p, s in zip(params, states, strict=True)
        ]
        optimizer.step()
        for p, e in zip(params, expected, strict=True):
            torch.testing.assert_close(p.detach(), e, rtol=0, atol=1e-14)


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_the_first_step_is_one_of_sgd(weight_decay, scope):
    ours, theirs = vectors((3, 4), 5), vectors((3, 4), 5)
    set_random_grads(ours, 1)
    set_random_grads(theirs, 1)
    AdaRem(ours, 0.3, weight_decay=weight_decay, scope=scope).step()
    torch.optim.SGD(theirs, 0.3, weight_decay=weight_decay).step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


def test_with_lambda_0_every_step_is_one_of_sgd():
    ours, theirs = vectors((3, 4)), vectors((3, 4))
    a, b = AdaRem(ours, 0.3, lam=0.0, weight_decay=0.01), torch.optim.SGD(theirs, 0.3, weight_decay=0.01)
    for step in range(5):
        set_random_grads(ours, step)
        set_random_grads(theirs, step)
        a.step()
        b.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-14)


def test_the_scale_of_the_gradients_does_not_change_the_factor():
    steps = []
    for scale in (1.0, 1e-6, 1e-12):
        (p,) = vectors(6)
        start = p.detach().clone()
        optimizer = AdaRem([p], 1.0)
        for step in range(2):
            set_random_grads([p], step)
            p.grad *= scale
            optimizer.step()
        steps.append((p.detach() - start) / scale)
    torch.testing.assert_close(steps[1], steps[0], rtol=1e-8, atol=1e-8)
    # At 1e-12 the rounding of the weight itself, 1e-16, is 1e-4 of the step.
    torch.testing.assert_close(steps[2], steps[0], rtol=0, atol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4),
        min_size=2,
        max_size=5,
    ),
    st.floats(0, 0.999),
    st.floats(0, 0.99),
)
def test_no_entry_moves_up_its_gradient_and_the_factor_stays_within_lambda_of_one(grads, lam, beta):
    p = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = AdaRem([p], 1.0, lam=lam, beta=beta)
    for g in grads:
        p.data.zero_()
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        moved = -p.detach()
        assert (moved * p.grad >= 0).all()
        slack = 1e-12 * p.grad.abs()
        assert (moved.abs() >= (1 - lam) * p.grad.abs() - slack).all()
        assert (moved.abs() <= (1 + lam) * p.grad.abs() + slack).all()


def test_the_exponent_starts_at_one_and_follows_the_epochs():
    (p,) = vectors(2)
    optimizer = AdaRem([p], 1.0, beta=0.0, lam=0.5)
    assert optimizer.param_groups[0]["lam_power"] == 1
    lengths = []
    for epoch in (0, 0, 1, 2):
        optimizer.set_epoch(epoch)
        before = p.detach().clone()
        p.grad = torch.ones(2, dtype=torch.float64)
        optimizer.step()
        lengths.append(float((before - p.detach())[0]))
    assert lengths == pytest.approx([1.0, 1.5, 1.25, 1.125])
    for bad in (-1, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="epoch="):
            optimizer.set_epoch(bad)


def test_the_exponent_is_in_the_state_dict():
    (p,) = vectors(2)
    optimizer = AdaRem([p], 1.0)
    optimizer.set_epoch(6)
    other = AdaRem([p], 1.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lam_power"] == 7


def test_decay_is_not_scaled_by_the_factor_and_not_part_of_the_momentum():
    p = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = AdaRem([p], 0.5, weight_decay=0.1)
    for _ in range(2):
        p.grad = torch.zeros(2, dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.95**2, dtype=torch.float64))
    assert torch.equal(optimizer.state[p]["exp_avg"], torch.zeros(2, dtype=torch.float64))


def test_global_scope_divides_by_the_largest_momentum_of_all_groups_in_it():
    params = vectors(1, 1, 1)
    groups = [{"params": [params[0]]}, {"params": [params[1]]}, {"params": [params[2]], "scope": "tensor"}]
    optimizer = AdaRem(groups, 1.0, beta=0.0, lam=0.5, scope="global")
    moved = []
    for _ in range(2):
        before = [float(p.detach()) for p in params]
        for p, slope in zip(params, (4.0, 1.0, 1.0), strict=True):
            p.grad = torch.tensor([slope], dtype=torch.float64)
        optimizer.step()
        moved = [b - float(p.detach()) for p, b in zip(params, before, strict=True)]
    # m is 4, 1, 1: factors 1 + 0.5 * (1, 1/4, 1)
    assert moved == pytest.approx([6.0, 1.125, 1.5])


@pytest.mark.parametrize("name", ["adarem-global", "one-sphere"])
def test_what_is_taken_over_all_tensors_may_have_several_precisions(name):
    params = [make_param((3, 4), dtype=dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)]
    optimizer = resilient[name](params)
    optimizer.step()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in params)


BAD = [
    {"lr": -1.0}, {"lr": math.nan}, {"lr": "0.1"}, {"weight_decay": -1e-4}, {"beta": 1.0}, {"beta": math.nan},
    {"lam": 1.0}, {"lam": -0.1}, {"lam": math.nan}, {"scope": "layer"}, {"scope": None}, {"maximize": 1},
]  # fmt: skip
BAD_ON_SPHERES = [
    {"sphere": "row"}, {"radius": 0.0}, {"radius": -1.0}, {"radius": math.nan}, {"slr": 1},
    {"scale_invariant": "auto"}, {"scale_invariant": None},
]  # fmt: skip


@pytest.mark.parametrize(
    ("cls", "bad"), [(cls, bad) for cls in (AdaRem, AdaRemS) for bad in BAD] + [(AdaRemS, b) for b in BAD_ON_SPHERES]
)
def test_a_bad_option_is_named(cls, bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name}="):
        cls([make_param((3, 4))], **{"lr": 0.1, **bad})
    with pytest.raises(ValueError, match=f"^{name}="):
        cls([{"params": [make_param((3, 4))], **bad}], lr=0.1)


def test_an_exponent_below_one_is_refused():
    with pytest.raises(ValueError, match="lam_power=0 "):
        AdaRem([{"params": [make_param((3, 4))], "lam_power": 0}], lr=0.1)


def test_a_checkpoint_of_adarem_leaves_the_marks_of_adarem_s():
    p = make_param((3, 4))
    saved = AdaRem([p], 0.1).state_dict()
    optimizer = AdaRemS([p], 0.1, scale_invariant=True, radius=2.0)
    optimizer.load_state_dict(saved)
    assert (optimizer.param_groups[0]["scale_invariant"], optimizer.param_groups[0]["radius"]) == (True, 2.0)
