"""AdaRem-S: the sphere learning rate is SGD with weight decay, and what stays on the spheres."""

import math

import pytest
import torch
from torch import nn

from adamp import AdaRem, AdaRemS
from tests.adamp import reference
from tests.adamp.problems import set_random_grads, vectors

DIM = 12


def start(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(3 * torch.randn(DIM, generator=generator, dtype=dtype)) for _ in range(2)]


def loss(weights):
    """Scale-invariant in each weight."""
    generator = torch.Generator().manual_seed(5)
    total = 0.0
    for w in weights:
        aim = torch.randn(DIM, generator=generator, dtype=torch.float64).to(w.dtype)
        total = total + ((w / w.norm() - aim).square() * torch.linspace(1, 4, DIM, dtype=w.dtype)).sum()
    return total


def rate(step, num_steps, cosine):
    return 0.05 * (0.5 * (1 + math.cos(math.pi * step / num_steps)) if cosine else 1.0)


def step_with(optimizer, weights, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    loss(weights).backward()
    optimizer.step()


def spheres(weights, **options):
    return AdaRemS([{"params": weights, "scale_invariant": True}], 0.05, **options)


@pytest.mark.parametrize("cosine", [False, True], ids=["constant", "cosine"])
@pytest.mark.parametrize("sphere", ["tensor", "global"])
@pytest.mark.parametrize("radius", [None, 0.3])
def test_with_lambda_0_the_directions_are_those_of_sgd_with_weight_decay(cosine, sphere, radius):
    ours, theirs = start(), start()
    a = spheres(ours, lam=0.0, weight_decay=0.02, sphere=sphere, radius=radius)
    b = torch.optim.SGD(theirs, 0.05, weight_decay=0.02)
    for step in range(400):
        step_with(a, ours, rate(step, 400, cosine))
        step_with(b, theirs, rate(step, 400, cosine))
        with torch.no_grad():
            for w, v in zip(ours, theirs, strict=True):
                assert float((w / w.norm() - v / v.norm()).abs().max()) < 1e-12
                assert float(a.state[w]["alpha"] * w.norm() / v.norm()) == pytest.approx(1, abs=1e-12)


def test_float32_keeps_close_to_float64():
    wide, narrow = start(), start()
    narrow = [nn.Parameter(w.detach().float()) for w in narrow]
    a, b = spheres(wide, weight_decay=0.02), spheres(narrow, weight_decay=0.02)
    for step in range(400):
        step_with(a, wide, rate(step, 400, True))
        step_with(b, narrow, rate(step, 400, True))
    for w, v in zip(wide, narrow, strict=True):
        assert float(b.state[v]["alpha"]) == pytest.approx(float(a.state[w]["alpha"]), rel=1e-5)


@pytest.mark.parametrize("sphere", ["tensor", "global"])
def test_the_radius_does_not_change_the_directions(sphere):
    runs = []
    for radius in (None, 0.01, 40.0):
        weights = start()
        optimizer = spheres(weights, weight_decay=0.02, radius=radius, sphere=sphere)
        for _ in range(50):
            step_with(optimizer, weights, 0.05)
        runs.append(torch.cat([(w / w.norm()).detach() for w in weights]))
    torch.testing.assert_close(runs[1], runs[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(runs[2], runs[0], rtol=0, atol=1e-12)


def test_without_the_sphere_learning_rate_the_radius_matters_and_decay_divides_the_rate():
    # With lr' such that lr' / (1 - lr' wd) = 0.05 the decayed run is the plain one.
    cases = {
        "plain": ({}, 0.05),
        "decayed": ({"weight_decay": 0.2}, 0.05 / (1 + 0.05 * 0.2)),
        "smaller": ({"radius": 3.0}, 0.05),
    }
    ends = {}
    for name, (options, lr) in cases.items():
        weights = start()
        optimizer = spheres(weights, lam=0.5, slr=False, **options)
        for _ in range(20):
            step_with(optimizer, weights, lr)
        assert all(float(optimizer.state[w]["alpha"]) == 1 for w in weights)
        ends[name] = torch.cat([(w / w.norm()).detach() for w in weights])
    torch.testing.assert_close(ends["decayed"], ends["plain"], rtol=0, atol=1e-13)
    assert float((ends["smaller"] - ends["plain"]).abs().max()) > 1e-2


def test_every_weight_stays_on_its_sphere():
    weights = start()
    norms = [float(w.detach().norm()) for w in weights]
    optimizer = spheres(weights, weight_decay=0.1)
    for _ in range(30):
        step_with(optimizer, weights, 0.2)
        assert [float(w.detach().norm()) for w in weights] == pytest.approx(norms, rel=1e-14)


def test_one_sphere_holds_the_joint_norm_and_lets_single_norms_move():
    weights = start()
    optimizer = spheres(weights, sphere="global", radius=2.0)
    norms = []
    for _ in range(30):
        step_with(optimizer, weights, 0.2)
        norms.append([float(w.detach().norm()) for w in weights])
        assert math.hypot(*norms[-1]) == pytest.approx(2.0, rel=1e-14)
    assert abs(norms[-1][0] - norms[0][0]) > 1e-3


def test_two_steps_agree_with_the_recursion_written_by_hand():
    (p,) = vectors(4)
    theta = p.detach().clone()
    eta, gamma, lam, beta, radius = 0.3, 0.1, 0.5, 0.6, 2.0
    optimizer = AdaRemS([p], eta, lam=lam, beta=beta, weight_decay=gamma, scale_invariant=True, radius=radius)
    alpha, state = float(theta.norm()) / radius, {}
    th = radius * theta / theta.norm()
    for step in range(3):
        set_random_grads([p], step)
        g = p.grad * (alpha if step == 0 else 1)  # the first gradient was taken at theta, alpha times too far out
        s = 1 - eta * gamma
        eta_s = eta / (alpha**2 * s)
        v = reference.adarem_step(th, g, state, lr=eta_s, beta=beta, lam=lam, power=1, weight_decay=0.0)
        alpha = alpha * s * float(v.norm()) / radius
        th = radius * v / v.norm()
        optimizer.step()
        torch.testing.assert_close(p.detach(), th, rtol=0, atol=1e-14)
        assert float(optimizer.state[p]["alpha"]) == pytest.approx(alpha, rel=1e-14)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], state["m"], rtol=0, atol=1e-14)


def test_groups_without_the_mark_make_adarems_step():
    ours, theirs = vectors(5, 6), vectors(5, 6)
    a = AdaRemS([{"params": ours[:1], "scale_invariant": True}, {"params": ours[1:]}], 0.1, weight_decay=0.1)
    b = AdaRem(theirs[1:], 0.1, weight_decay=0.1)
    for step in range(4):
        set_random_grads(ours, step)
        theirs[1].grad = ours[1].grad.clone()
        a.step()
        b.step()
    assert torch.equal(ours[1], theirs[1])
    assert "alpha" not in a.state[ours[1]]


def test_without_any_mark_it_says_once_that_it_is_adarem():
    (p,) = vectors(3)
    optimizer = AdaRemS([p], 0.1)
    set_random_grads([p], 0)
    with pytest.warns(UserWarning, match="scale_invariant=True"):
        optimizer.step()
    optimizer.step()


def test_a_weight_of_zeros_does_not_become_nan():
    p = nn.Parameter(torch.zeros(2, 3))
    optimizer = AdaRemS([p], 0.1, scale_invariant=True, weight_decay=0.1)
    for grad in (torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3)):
        p.grad = grad
        optimizer.step()
        assert torch.isfinite(p).all()
    assert float(p.detach().norm()) == pytest.approx(1.0)


def test_on_a_shared_sphere_no_gradient_counts_as_gradient_zero():
    ours, theirs = start(), start()
    a, b = spheres(ours, sphere="global"), spheres(theirs, sphere="global")
    for optimizer, weights in ((a, ours), (b, theirs)):
        step_with(optimizer, weights, 0.1)
        loss(weights).backward()
    ours[1].grad, theirs[1].grad = None, torch.zeros_like(theirs[1])
    a.step()
    b.step()
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
    assert float(ours[1].detach().norm()) != float(start()[1].detach().norm())


def test_a_late_member_of_a_shared_sphere_is_refused():
    weights = start()
    optimizer = spheres(weights, sphere="global")
    loss(weights).backward()
    weights[1].grad = None
    optimizer.step()
    loss(weights).backward()
    with pytest.raises(RuntimeError, match=r"shape \(12,\) has its first gradient after"):
        optimizer.step()


@pytest.mark.parametrize("differing", [{"radius": 2.0}, {"slr": False}])
def test_groups_that_share_a_sphere_must_agree_about_it(differing):
    weights = start()
    loss(weights).backward()
    groups = [{"params": weights[:1]}, {"params": weights[1:], **differing}]
    with pytest.raises(ValueError, match=f"^{next(iter(differing))} differs"):
        AdaRemS(groups, 0.1, scale_invariant=True, sphere="global").step()


def test_alpha_of_a_half_precision_weight_survives_a_checkpoint():
    p = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer = AdaRemS([p], 0.1, scale_invariant=True, radius=0.77, weight_decay=0.1)
    set_random_grads([p], 0)
    optimizer.step()
    other = AdaRemS([p], 0.1, scale_invariant=True)
    other.load_state_dict(optimizer.state_dict())
    for name in ("alpha", "radius"):
        assert other.state[p][name].dtype == torch.float32
        assert torch.equal(other.state[p][name], optimizer.state[p][name])
        assert other.state[p][name] is not optimizer.state[p][name]
