"""Adaptive weight shrink: equation 21 step by step, its fixed points, and hooks that leave no trace."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from adamp import SGDP, NormProbe, shrink_weights
from adamp.hooks.weight_shrink import shrink_rate
from tests.adamp.problems import make_param


def weights(*shapes, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
    return params


def gamma_by_hand(w, *, alpha, kind, eps=0.0):
    rows = []
    for row in w.reshape(w.shape[0], -1):
        size = row.norm() if kind == "wn" else ((row - row.mean()) ** 2).mean().sqrt()
        rows.append(alpha * (size + eps))
    return torch.stack(rows).reshape(-1, *[1] * (w.ndim - 1))


@pytest.mark.parametrize("kind", ["wn", "ws"])
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_the_rate_is_per_filter_and_without_gradient(kind, eps):
    (w,) = weights((4, 3, 2, 2))
    rate = shrink_rate(w, alpha=0.2, kind=kind, eps=eps)
    assert not rate.requires_grad
    torch.testing.assert_close(rate, gamma_by_hand(w.detach(), alpha=0.2, kind=kind, eps=eps), rtol=1e-14, atol=0)


@pytest.mark.parametrize("kind", ["wn", "ws"])
@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_a_step_of_sgd_is_equation_21(kind, coupling):
    (w,) = weights((4, 3, 2, 2))
    before, grad = w.detach().clone(), w.grad.clone()
    optimizer = torch.optim.SGD([w], 0.3)
    shrink_weights(optimizer, alpha=0.2, params=[w], kind=kind, coupling=coupling, eps=0.01)
    optimizer.step()
    gamma = gamma_by_hand(before, alpha=0.2, kind=kind, eps=0.01)
    torch.testing.assert_close(w.detach(), before - 0.3 * gamma * before - 0.3 * grad, rtol=0, atol=1e-15)


def test_momentum_strengthens_the_gradient_coupling_alone():
    ends = {}
    for coupling in ("gradient", "weights"):
        (w,) = weights((2, 50))
        optimizer = torch.optim.SGD([w], 1e-3, momentum=0.9)
        shrink_weights(optimizer, alpha=1e-3, params=[w], coupling=coupling)
        start = w.detach().clone()
        for _ in range(200):
            w.grad = torch.zeros_like(w)
            optimizer.step()
        ends[coupling] = float(1 - w.detach().norm() / start.norm())
    assert ends["gradient"] / ends["weights"] == pytest.approx(10, rel=0.06)  # the momentum starts at 0


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, SGDP])
def test_weights_coupling_adds_the_shrink_to_the_step_of_any_optimizer(make):
    (w,), (twin,) = weights((4, 5)), weights((4, 5))
    before = w.detach().clone()
    optimizer, other = make([w], lr=0.1), make([twin], lr=0.1)
    shrink_weights(optimizer, alpha=0.2, params=[w], coupling="weights")
    optimizer.step()
    other.step()
    expected = twin.detach() - 0.1 * gamma_by_hand(before, alpha=0.2, kind="wn") * before
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_the_gradient_is_afterwards_the_tensor_that_backward_filled(coupling):
    (w,) = weights((4, 5))
    grad, kept = w.grad, w.grad.clone()
    optimizer = torch.optim.SGD([w], 0.1, momentum=0.9)
    shrink_weights(optimizer, alpha=0.2, params=[w], coupling=coupling)
    for _ in range(2):
        optimizer.step()
        assert w.grad is grad
        assert torch.equal(grad, kept)


# Gradients orthogonal to the weight, of norm 1 / ||W||, in 200 dimensions; lr 0.1, coefficient 0.01 (WS 0.1). Within
# 0.1 % of n^4 = lr / (2 wd (1 - momentum)) for decay, n^5 = lr / (2 alpha (1 - momentum)) for WN; WS has alpha / 200^½.
FIXED_POINTS = [
    ("wd", 0.0, 1.4955), ("wd", 0.9, 2.6568), ("wn", 0.0, 1.3799), ("wn", 0.9, 2.1854), ("ws", 0.0, 1.4789),
    ("ws", 0.9, 2.3421),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "momentum", "expected"), FIXED_POINTS)
def test_norms_settle_at_the_fixed_point(kind, momentum, expected):
    generator = torch.Generator().manual_seed(3)

    def draw():
        x = torch.randn(24, 200, generator=generator, dtype=torch.float64)
        return x - x.mean(dim=1, keepdim=True)  # the mean is free under WS; without one W is what WS standardises

    w = draw()
    w = nn.Parameter(expected * 1.2 * w / w.norm(dim=1, keepdim=True))
    optimizer = torch.optim.SGD([w], 0.1, momentum=momentum, weight_decay=0.01 if kind == "wd" else 0.0)
    if kind != "wd":
        shrink_weights(optimizer, alpha=0.01 if kind == "wn" else 0.1, params=[w], kind=kind)
    num_steps = 400 if momentum else 1500
    total = 0.0
    for step in range(num_steps):
        with torch.no_grad():
            square = w.square().sum(1, keepdim=True)
            g = draw()
            g -= (g * w).sum(1, keepdim=True) / square * w
            w.grad = g / g.norm(dim=1, keepdim=True) / square.sqrt()
        optimizer.step()
        if step >= num_steps - 100:
            total += float(w.detach().norm(dim=1).mean()) / 100
    assert total == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_the_rate_of_the_group_is_read_at_each_step(coupling):
    first, second = weights((2, 3), (2, 3))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": torch.tensor(0.0)}], 0.1)
    shrink_weights(optimizer, alpha=0.2, params=[first, second], coupling=coupling)
    optimizer.load_state_dict(optimizer.state_dict())  # makes new groups
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for lr in (0.1, 0.05):
        before, still = first.detach().clone(), second.detach().clone()
        optimizer.step()
        schedule.step()
        gamma = gamma_by_hand(before, alpha=0.2, kind="wn")
        torch.testing.assert_close(first.detach(), before - lr * gamma * before - lr * first.grad, rtol=0, atol=1e-15)
        assert torch.equal(second, still)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
@pytest.mark.parametrize("as_keyword", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_a_closure_gives_the_same_step(coupling, as_keyword, set_to_none):
    results = []
    for with_closure in (False, True):
        (w,) = weights((4, 5))
        optimizer = torch.optim.SGD([w], 0.1, momentum=0.9)
        shrink_weights(optimizer, alpha=0.2, params=[w], coupling=coupling)

        def closure(w=w, optimizer=optimizer):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss = (w**3).sum()
            loss.backward()
            return loss

        for _ in range(3):
            if not with_closure:
                closure()
                optimizer.step()
            elif as_keyword:
                assert optimizer.step(closure=closure).ndim == 0
            else:
                assert optimizer.step(closure).ndim == 0
        results += [w.detach().clone(), w.grad.clone()]
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


def test_parameters_without_gradient_or_not_named_are_left_alone():
    named, unnamed, frozen = weights((2, 3), (2, 3), (2, 3))
    frozen.grad = None
    for coupling in ("gradient", "weights"):
        optimizer = torch.optim.SGD([named, unnamed, frozen], 0.1)
        kept = frozen.detach().clone()
        expected = unnamed.detach() - 0.1 * unnamed.grad
        with shrink_weights(optimizer, alpha=0.2, params=[named, frozen], coupling=coupling):
            optimizer.step()
        assert torch.equal(frozen, kept)
        assert frozen.grad is None
        torch.testing.assert_close(unnamed.detach(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_after_remove_and_in_copies_the_optimizer_is_its_own_again(coupling):
    (w,), (twin,) = weights((2, 3)), weights((2, 3))
    optimizer, other = torch.optim.SGD([w], 0.1), torch.optim.SGD([twin], 0.1)
    handle = shrink_weights(optimizer, alpha=0.2, params=[w], coupling=coupling)
    copied, (copy_w,) = (both := copy.deepcopy((optimizer, [w])))[0], both[1]
    copy_w.grad = w.grad.clone()
    handle.remove()
    handle.remove()
    for each in (optimizer, other, copied):
        each.step()
    assert torch.equal(w, twin)
    assert torch.equal(copy_w, twin)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_a_probe_attached_afterwards_sees_the_shrink_and_the_raw_gradient(coupling):
    w = make_param((4, 30), dtype=torch.float64)
    w.grad = 1e-9 * w.grad
    optimizer = torch.optim.SGD([w], 0.1)
    shrink_weights(optimizer, alpha=0.5, params=[w], coupling=coupling)
    probe = NormProbe([("w", w)], every=1)
    probe.attach(optimizer)
    before = w.detach().clone()
    optimizer.step()
    values = probe.read()
    assert values["norm/mean"] == pytest.approx(
        float(((1 - 0.05 * before.norm(dim=1)) * before.norm(dim=1)).mean()), rel=1e-6
    )
    assert values["cosine/max"] < 1e-6
    assert values["projected/share"] == 1


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_an_overshooting_shrink_is_clamped_or_warned_of(coupling):
    def optimizer_of(scale):
        w = nn.Parameter(torch.full((1, 4), scale / 2))
        w.grad = torch.zeros_like(w)
        return w, torch.optim.SGD([w], 0.1)

    # lr alpha = 0.01: without the bound a norm of 190 comes down, turning round at each step, and 201 does not.
    for norm, comes_down in ((190.0, True), (201.0, False)):
        w, optimizer = optimizer_of(norm)
        with warnings.catch_warnings():
            if not comes_down:
                warnings.simplefilter("ignore")
            shrink_weights(optimizer, alpha=0.1, params=[w], coupling=coupling, clamp=None)
        for _ in range(5):
            optimizer.step()
        assert (float(w.detach().norm()) < norm) is comes_down
    w, optimizer = optimizer_of(201.0)
    with pytest.warns(UserWarning, match=r"lr x gamma is 2\.01"):
        shrink_weights(optimizer, alpha=0.1, params=[w], coupling=coupling, clamp=None)
    w, optimizer = optimizer_of(201.0)
    shrink_weights(optimizer, alpha=0.1, params=[w], coupling=coupling, clamp=0.75)
    optimizer.step()
    assert float(w.detach().norm()) == pytest.approx(201.0 / 4, rel=1e-6)
    w, optimizer = optimizer_of(201.0)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    shrink_weights(optimizer, alpha=0.1, params=[w], coupling=coupling)
    optimizer.step()
    assert float(w.detach().norm()) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_half_precision_and_complex_weights_shrink(coupling, dtype):
    w = nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=dtype))
    w.grad = torch.zeros_like(w)
    optimizer = torch.optim.SGD([w], 0.5)
    shrink_weights(optimizer, alpha=0.1, params=[w], coupling=coupling)
    optimizer.step()
    assert w.dtype == dtype
    torch.testing.assert_close(w.detach(), torch.tensor([[2.25, 3.0], [0.0, 0.0]], dtype=dtype), rtol=1e-2, atol=0)


@pytest.mark.parametrize("coupling", ["gradient", "weights"])
def test_sparse_gradients_are_refused(coupling):
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = torch.optim.SGD(embedding.parameters(), 0.1)
    shrink_weights(optimizer, alpha=0.1, params=embedding.parameters(), coupling=coupling)
    with pytest.raises(RuntimeError, match="shrink_weights does not support sparse gradients"):
        optimizer.step()


def fused_adam(w):
    return torch.optim.Adam([w], 0.1, fused=True)


def test_scaled_gradients_of_a_fused_optimizer_are_refused_until_unscaled():
    (w,) = weights((2, 3), dtype=torch.float32)
    optimizer = fused_adam(w)
    shrink_weights(optimizer, alpha=0.1, params=[w], coupling="gradient")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((w**2).sum()).backward()
    with pytest.raises(RuntimeError, match="unscale_"):
        scaler.step(optimizer)


def test_a_step_that_a_fused_optimizer_skips_does_not_shrink():
    (w,) = weights((2, 3), dtype=torch.float32)
    optimizer = fused_adam(w)
    shrink_weights(optimizer, alpha=0.1, params=[w], coupling="weights")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = w.detach().clone()
    w.grad = None
    scaler.scale((w * math.inf).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(w, before)


BAD = [
    ({"alpha": -1.0}, "alpha="), ({"alpha": math.nan}, "alpha="), ({"alpha": math.inf}, "alpha="),
    ({"eps": -1.0}, "eps="), ({"clamp": 0.0}, "clamp="), ({"clamp": math.nan}, "clamp="),
    ({"kind": "bn"}, "kind="), ({"coupling": "both"}, "coupling="), ({"params": []}, "params is empty"),
    ({"params": [torch.zeros(2, 3)]}, r"shape \(2, 3\) that the optimizer does not have"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_a_bad_argument_is_named_and_nothing_is_attached(bad, message):
    (w,) = weights((2, 3))
    optimizer = torch.optim.SGD([w], 0.1)
    expected = w.detach() - 0.1 * w.grad
    with pytest.raises(ValueError, match=message):
        shrink_weights(optimizer, **{"alpha": 0.1, "params": [w], **bad})
    optimizer.step()
    torch.testing.assert_close(w.detach(), expected, rtol=0, atol=1e-15)


def test_weights_without_filters_are_refused():
    vector, column = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 1))
    optimizer = torch.optim.SGD([vector, column], 0.1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        shrink_weights(optimizer, alpha=0.1, params=[vector])
    with pytest.raises(ValueError, match="no standard deviation"):
        shrink_weights(optimizer, alpha=0.1, params=[column], kind="ws")
    shrink_weights(optimizer, alpha=0.1, params=[column, column], kind="wn")
