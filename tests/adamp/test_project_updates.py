"""The projection around any optimizer: SGDP and AdamP where they coincide, the optimizer itself where it is off."""

import copy
import math

import pytest
import timm.optim
import torch
from torch import nn

from adamp import SGDP, AdamP, NormProbe, project_updates, shrink_weights
from adamp.hooks.project_updates import with_projection
from tests.adamp import reference
from tests.adamp.problems import make_param, net, run


class SignSGD(torch.optim.Optimizer):
    """An optimizer of a user's own, without an entry for weight decay."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])
        return loss


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 1e-2}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2}),
    "radam": (torch.optim.RAdam, {"lr": 1e-2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "lion": (timm.optim.Lion, {"lr": 1e-2, "weight_decay": 0.1}),
    "lamb": (timm.optim.Lamb, {"lr": 1e-2, "weight_decay": 0.1}),
    "timm-muon": (timm.optim.Muon, {"lr": 1e-2, "weight_decay": 0.1}),
    "own": (SignSGD, {"lr": 1e-2}),
}
if hasattr(torch.optim, "Muon"):
    OPTIMIZERS["muon"] = (torch.optim.Muon, {"lr": 1e-2})
every_optimizer = pytest.mark.parametrize(("make", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())

SHAPES = ((4, 30), (4, 30), (4, 30))
KINDS = ("channel", "layer", "none")


def params_of(dtype=torch.float64):
    return [make_param(s, dtype=dtype, kind=k, seed=i) for i, (s, k) in enumerate(zip(SHAPES, KINDS, strict=True))]


def set_grads(params, seed, kinds=KINDS):
    generator = torch.Generator().manual_seed(100 + seed)  # not a seed of the weights
    for p, kind in zip(params, kinds, strict=True):
        p.grad = reference.gradient(p.detach(), kind, generator)


def radial(after, before, rows):
    """Return the change along the weight, one number a row, as a share of the whole change."""
    a, b = after.detach().reshape(rows, -1), before.reshape(rows, -1)
    return ((a - b) * b).sum(1).abs() / b.norm(dim=1) / (a - b).norm(dim=1)


@every_optimizer
def test_steps_of_found_tensors_have_no_radial_part_and_others_are_the_optimizers_own(make, options):
    ours, theirs = params_of(), params_of()
    optimizer, plain = make(ours, **options), make(theirs, **options)
    project_updates(optimizer, eps=0.0, wd_ratio=0.0)
    for step in range(4):
        set_grads(ours, step)
        for a, b in zip(ours, theirs, strict=True):
            b.data.copy_(a.detach())
            b.grad = a.grad.clone()
        before = [p.detach().clone() for p in ours]
        optimizer.step()
        plain.step()
        assert float(radial(ours[0], before[0], 4).max()) < 1e-13
        assert float(radial(ours[1], before[1], 1).max()) < 1e-13
        assert torch.equal(ours[2], theirs[2])
        # What is left of the change is the optimizer's, without its radial part.
        d = theirs[0].detach() - before[0]
        unit = before[0] / before[0].norm(dim=1, keepdim=True)
        expected = before[0] + d - (d * unit).sum(1, keepdim=True) * unit
        torch.testing.assert_close(ours[0].detach(), expected, rtol=0, atol=1e-15)


@every_optimizer
@pytest.mark.parametrize(("delta", "kinds"), [(0.0, KINDS), (0.1, ("none",) * 3)])
def test_where_the_test_does_not_fire_the_optimizer_is_untouched_bit_for_bit(make, options, delta, kinds):
    ours, theirs = params_of(), params_of()
    optimizer, plain = make(ours, **options), make(theirs, **options)
    project_updates(optimizer, delta=delta)
    for step in range(4):
        set_grads(ours, step, kinds)
        set_grads(theirs, step, kinds)
        optimizer.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def train(make, options, attach=None, steps=15):
    model = net().double()
    optimizer = make(model.parameters(), **options)
    if attach is not None:
        attach(optimizer)
    fired = 0.0
    probe = NormProbe(model.named_parameters(), every=1)
    probe.attach(optimizer)
    for step in range(steps):
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    values = probe.read()
    fired = values["projected/share"]
    return [p.detach().clone() for p in model.parameters()], values, fired


PAIRS = {
    "sgdp": (SGDP, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgdp-heavy-ball": (SGDP, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "adamp": (AdamP, torch.optim.Adam, {"lr": 1e-2}),
    "adamp-decay": (AdamP, torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
}


@pytest.mark.parametrize(("ours", "base", "options"), PAIRS.values(), ids=PAIRS.keys())
def test_it_makes_sgdp_of_sgd_and_adamp_of_adam_and_of_adamw_with_its_decay(ours, base, options):
    # Nets with batch norm, not random gradients: here the test fires in some tensors and not in others.
    expected, expected_values, fired = train(ours, options)
    found, values, _ = train(base, options, project_updates)
    assert 0 < fired < 1
    # The projection's eps leaves 2 eps / norm of AdamW's own decay.
    atol = 1e-9 if options.get("weight_decay") else 1e-12
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
    # A probe attached afterwards measures the projected steps.
    assert values == pytest.approx(expected_values, rel=1e-6, abs=1e-9)


def test_a_probe_attached_before_measures_the_steps_that_the_optimizer_meant():
    p = make_param((4, 30), dtype=torch.float64)
    p.grad += 0.01 * p.detach() * p.grad.norm() / p.detach().norm() / 30  # a little radial, under the threshold
    optimizer = torch.optim.SGD([p], 1.0)
    early = NormProbe([("p", p)], every=1)
    early.attach(optimizer)
    project_updates(optimizer)
    late = NormProbe([("p", p)], every=1)
    late.attach(optimizer)
    optimizer.step()
    assert late.read()["norm/mean"] == pytest.approx(float(p.detach().norm(dim=1).mean()), rel=1e-12)
    assert early.read()["norm/mean"] != pytest.approx(float(p.detach().norm(dim=1).mean()), rel=1e-9)


@pytest.mark.parametrize("wd_ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_a_projected_weight_decays_by_wd_ratio_and_a_coupled_decay_does_not_disturb_the_test(make, wd_ratio):
    p, twin = make_param((4, 30), dtype=torch.float64), make_param((4, 30), dtype=torch.float64)
    optimizer, other = make([p], lr=1e-3, weight_decay=0.5), make([twin], lr=1e-3, weight_decay=0.0)
    project_updates(optimizer, wd_ratio=wd_ratio)
    project_updates(other)
    w = p.detach().clone()
    optimizer.step()
    other.step()
    # The projection's eps leaves 2 eps / norm of the optimizer's own decay.
    torch.testing.assert_close(p.detach(), twin.detach() - 1e-3 * 0.5 * wd_ratio * w, rtol=0, atol=1e-10)


def test_entries_of_a_group_win_over_the_arguments():
    params = [make_param((4, 30), dtype=torch.float64) for _ in range(3)]
    before = params[0].detach().clone()
    groups = [{"params": [params[0]]}, {"params": [params[1]], "delta": 0.0}, {"params": [params[2]], "wd_ratio": 1.0}]
    for p in params:
        p.grad += 1e-4 * before
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.5)
    project_updates(optimizer)
    optimizer.step()
    plain = make_param((4, 30), dtype=torch.float64)
    plain.grad += 1e-4 * before
    torch.optim.AdamW([plain], lr=1e-3, weight_decay=0.5).step()
    assert torch.equal(params[1], plain)
    torch.testing.assert_close(params[0].detach() - params[2].detach(), 1e-3 * 0.5 * 0.9 * before, rtol=0, atol=1e-15)


def test_a_shrink_attached_afterwards_is_kept():
    ends = []
    for attach_shrink in (False, True):
        p = make_param((4, 30), dtype=torch.float64)
        norms = p.detach().norm(dim=1)
        optimizer = torch.optim.Adam([p], 1e-3)
        project_updates(optimizer)
        if attach_shrink:
            shrink_weights(optimizer, alpha=0.5, params=[p], coupling="weights")
        optimizer.step()
        ends.append(p.detach().clone())
    w = make_param((4, 30), dtype=torch.float64).detach()
    expected = ends[0] - 1e-3 * 0.5 * norms[:, None] * w
    torch.testing.assert_close(ends[1], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("mark", "fires"), [(True, True), (False, False), ("auto", False)])
def test_marks_of_groups_take_the_place_of_the_test(mark, fires):
    p = make_param((4, 30), dtype=torch.float64, kind="none")
    before = p.detach().clone()
    optimizer = torch.optim.SGD([{"params": [p], "scale_invariant": mark}], 0.1)
    project_updates(optimizer)
    optimizer.step()
    assert (float(radial(p, before, 4).max()) < 1e-6) is fires


def test_a_probe_reads_the_entries_of_groups_that_have_no_eps():
    p = make_param((4, 30), dtype=torch.float64)
    optimizer = torch.optim.SGD([{"params": [p], "delta": 0.0, "wd_ratio": 1.0}], 0.1)
    project_updates(optimizer)
    probe = NormProbe([("p", p)], every=1)
    probe.attach(optimizer)
    optimizer.step()
    assert probe.read()["projected/share"] == 0


def test_only_the_named_parameters_are_projected():
    first, second = make_param((4, 30), dtype=torch.float64), make_param((4, 30), dtype=torch.float64)
    for p in (first, second):
        p.grad += 1e-4 * p.detach()
    before = first.detach().clone()
    optimizer = torch.optim.SGD([first, second, make_param((3,))], 0.1)
    project_updates(optimizer, params=iter([first]))
    optimizer.step()
    assert float(radial(first, before, 4).max()) < 1e-7
    torch.testing.assert_close(second.detach(), before - 0.1 * second.grad, rtol=0, atol=1e-15)


@pytest.mark.parametrize("as_keyword", [False, True])
def test_a_closure_gives_the_same_step(as_keyword):
    model, twin = net(), net()
    optimizer, other = (torch.optim.Adam(m.parameters(), 1e-2) for m in (model, twin))
    project_updates(optimizer)
    project_updates(other)
    expected = run(model, optimizer, 3)
    for step in range(3):

        def closure(step=step):
            twin.zero_grad()
            x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step))
            loss = twin(x).square().mean()
            loss.backward()
            return loss

        loss = other.step(closure=closure) if as_keyword else other.step(closure)
        assert loss.ndim == 0
    assert all(torch.equal(a, b) for a, b in zip(expected, twin.parameters(), strict=True))


def test_parameters_without_gradient_vectors_and_empty_weights_are_left_alone():
    used, frozen = make_param((4, 30)), nn.Parameter(torch.ones(4, 30))
    empty, vector = nn.Parameter(torch.zeros(0, 3)), make_param((5,), kind="none")
    empty.grad = torch.zeros(0, 3)
    expected = vector.detach() - 0.1 * vector.grad
    optimizer = torch.optim.SGD([used, frozen, empty, vector], 0.1)
    project_updates(optimizer)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(4, 30))
    torch.testing.assert_close(vector.detach(), expected)


def test_the_gradient_and_the_optimizers_state_are_not_touched():
    p, twin = make_param((4, 30)), make_param((4, 30))
    kept = p.grad.clone()
    optimizer, other = torch.optim.SGD([p], 0.1, momentum=0.9), torch.optim.SGD([twin], 0.1, momentum=0.9)
    project_updates(optimizer)
    for _ in range(2):
        optimizer.step()
        other.step()
    assert torch.equal(p.grad, kept)
    assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[twin]["momentum_buffer"])
    assert not torch.equal(p, twin)


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_training_goes_on_bitwise_from_a_checkpoint_once_attached_anew(way):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    project_updates(optimizer)
    run(model, optimizer, 2)
    if way == "state_dict":
        twin = copy.deepcopy(model)
        other = torch.optim.AdamW(twin.parameters(), 1.0)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        twin, other = copy.deepcopy((model, optimizer))
    project_updates(other)
    expected = run(model, optimizer, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(twin, other, 2, start=2), strict=True))


def test_after_remove_the_optimizer_is_its_own_again():
    p, twin = make_param((4, 30)), make_param((4, 30))
    optimizer, other = torch.optim.SGD([p], 0.1), torch.optim.SGD([twin], 0.1)
    for q in (p, twin):
        q.grad += 1e-4 * q.detach()
    with project_updates(optimizer):
        pass
    optimizer.step()
    other.step()
    assert torch.equal(p, twin)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_half_precision_and_complex_weights_are_projected(dtype):
    p = nn.Parameter(torch.tensor([[64.0, 0.0], [0.0, 64.0]], dtype=dtype))
    p.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype)
    optimizer = torch.optim.SGD([p], 1.0, momentum=0.9)
    project_updates(optimizer)
    optimizer.step()
    assert p.dtype == dtype
    assert torch.equal(p.detach(), torch.tensor([[64.0, -1.0], [-1.0, 64.0]], dtype=dtype))
    buffer = torch.tensor([[8.0, 0.0], [0.0, 8.0]], dtype=dtype)
    optimizer.state[p]["momentum_buffer"] = buffer  # radial: what the projection must take out
    p.data = torch.tensor([[64.0, 0.0], [0.0, 64.0]], dtype=dtype)
    optimizer.step()
    assert torch.equal(p.detach(), torch.tensor([[64.0, -1.0], [-1.0, 64.0]], dtype=dtype))


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaling_changes_no_step_and_a_skipped_step_changes_no_weight(fused, unscale):
    model, twin = net(), net()
    optimizer, other = (torch.optim.AdamW(m.parameters(), 1e-2, fused=fused) for m in (model, twin))
    project_updates(optimizer)
    project_updates(other)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        before = [p.detach().clone() for p in model.parameters()]
        model.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        if step == 2:
            next(model.parameters()).grad.view(-1)[0] = math.inf
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if step == 2:
            assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        else:
            run(twin, other, 1, start=step)
            for a, b in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("base", "weight_decay"),
    [(torch.optim.NAdam, 0.1), (timm.optim.Lion, 0.1), (lambda params, lr, weight_decay: SignSGD(params, lr), 0.0)],
)
def test_the_builder_is_the_base_with_the_hooks_attached(base, weight_decay):
    model, twin = net(), net()
    optimizer = with_projection(model.parameters(), 1e-2, base=base, weight_decay=weight_decay, delta=0.2, wd_ratio=0.5)
    other = base(twin.parameters(), lr=1e-2, weight_decay=weight_decay)
    project_updates(other, delta=0.2, wd_ratio=0.5)
    assert type(optimizer) is type(other)
    assert all(torch.equal(a, b) for a, b in zip(run(model, optimizer, 3), run(twin, other, 3), strict=True))


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    optimizer = torch.optim.SGD(embedding.parameters(), 0.1)
    project_updates(optimizer)
    with pytest.raises(RuntimeError, match="project_updates does not support sparse gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"delta": -0.1}, "delta="),
        ({"delta": math.nan}, "delta="),
        ({"eps": -1.0}, "eps="),
        ({"wd_ratio": math.nan}, "wd_ratio="),
        ({"params": []}, "params is empty"),
        ({"params": [torch.zeros(2, 2)]}, "does not have"),
    ],
)
def test_a_bad_argument_is_named(bad, message):
    optimizer = torch.optim.SGD([make_param((3, 4))], 0.1)
    with pytest.raises(ValueError, match=message):
        project_updates(optimizer, **bad)
