"""Step hooks under wrappers, foreign learning rates, exceptions, steps that only create state, and lost parameters."""

import contextlib
import copy
import warnings

import pytest
import timm.optim
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import StepLR

from adamp import SGDP, AdamP, AdaRem, AdaRemS, NormProbe, project_updates, shrink_weights
from tests.adamp.problems import make_param


class Wrapper(torch.optim.Optimizer):
    """An optimizer around others that does not initialise torch's base class, as accelerate's and timm's do not."""

    def __init__(self, inner, second=None):
        self.inner, self.second = inner, second

    @property
    def param_groups(self):
        return self.inner.param_groups

    def step(self, closure=None):
        return self.inner.step(closure)


class Failing(torch.optim.Optimizer):
    """Gradient descent whose first step raises after its closure, as one that finds no memory."""

    def __init__(self, params, lr, *, fails=True):
        super().__init__(params, {"lr": lr})
        self.fails = fails

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            closure()
        if self.fails:
            self.fails = False
            raise RuntimeError("out of memory")
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad)


def orthogonal_param():
    """Return a weight of norm 5 whose gradient is orthogonal to it, so that SGD alone makes it longer."""
    param = nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    param.grad = torch.tensor([[4.0, -3.0]], dtype=torch.float64)
    return param


ATTACH = {
    "project": lambda optimizer, params: project_updates(optimizer, params=params),
    "gradient": lambda optimizer, params: shrink_weights(optimizer, alpha=0.2, params=params),
    "weights": lambda optimizer, params: shrink_weights(optimizer, alpha=0.2, params=params, coupling="weights"),
    "probe": lambda optimizer, params: NormProbe([("p", p) for p in params], every=1).attach(optimizer),
}
every_hook = pytest.mark.parametrize("attach", ATTACH.values(), ids=ATTACH)


# Wrappers


@pytest.mark.parametrize(
    "wrap",
    [timm.optim.Lookahead, Wrapper, lambda optimizer: Wrapper(Wrapper(optimizer)), lambda optimizer: optimizer],
    ids=["timm-lookahead", "one", "two", "none"],
)
@pytest.mark.parametrize("attach", [ATTACH["project"], ATTACH["gradient"], ATTACH["weights"]])
def test_hooks_reach_the_optimizer_inside_a_wrapper(wrap, attach):
    ours, plain = make_param((4, 30)), make_param((4, 30))
    for param in (ours, plain):
        param.grad += 1e-3 * param.detach()
    optimizer, other = wrap(torch.optim.SGD([ours], 0.1, momentum=0.9)), torch.optim.SGD([plain], 0.1, momentum=0.9)
    attach(optimizer, [ours])
    attach(other, [plain])
    for _ in range(3):  # Lookahead averages at the sixth
        optimizer.step()
        other.step()
    assert torch.equal(ours, plain)


def test_accelerate_prepared_optimizers_are_projected():
    accelerate = pytest.importorskip("accelerate")
    ours, plain = make_param((4, 30)), make_param((4, 30))
    for param in (ours, plain):
        param.grad += 1e-3 * param.detach()
    optimizer = accelerate.Accelerator(cpu=True).prepare(torch.optim.SGD([ours], 0.1))
    other = torch.optim.SGD([plain], 0.1)
    project_updates(optimizer)
    project_updates(other)
    optimizer.step()
    other.step()
    assert torch.equal(ours, plain)


@every_hook
def test_a_wrapper_of_two_optimizers_is_refused_by_name(attach):
    first, second = make_param((4, 30)), make_param((4, 30))
    wrapper = Wrapper(torch.optim.SGD([first], 0.1), torch.optim.SGD([second], 0.1))
    with pytest.raises(ValueError, match="Wrapper runs no step hooks, and holds 2 optimizers"):
        attach(wrapper, [first])


@pytest.mark.parametrize("flag", ["_is_flat_param", "_fsdp_flattened"])
@pytest.mark.parametrize("attach", [lambda optimizer, params: project_updates(optimizer), *list(ATTACH.values())[:3]])
def test_parameters_that_fsdp_flattened_are_refused(flag, attach):
    param = nn.Parameter(torch.ones(12))
    setattr(param, flag, True)
    optimizer = torch.optim.SGD([param], 0.1)
    with pytest.raises(ValueError, match="flattened by FullyShardedDataParallel"):
        attach(optimizer, [param])


def projected_sgd(params, lr):
    optimizer = torch.optim.SGD(params, lr)
    project_updates(optimizer)
    return optimizer


every_projection = pytest.mark.parametrize("build", [SGDP, AdamP, projected_sgd])


@every_projection
def test_vectors_alone_are_warned_of_once(build):
    with pytest.warns(UserWarning, match="has no parameter of two or more dimensions") as caught:
        build([nn.Parameter(torch.ones(12)), nn.Parameter(torch.ones(3))], lr=0.1)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build([nn.Parameter(torch.ones(12)), nn.Parameter(torch.ones(3, 4))], lr=0.1)
        SGDP([nn.Parameter(torch.ones(12))], lr=0.1, scale_invariant=False)


@every_projection
def test_matrices_that_a_wrapper_flattens_later_are_warned_of_at_the_first_step_alone(build):
    optimizer = build([make_param((3, 2))], lr=0.1)
    flat = nn.Parameter(torch.ones(6))
    optimizer.param_groups[0]["params"] = [flat]  # as DeepSpeed's ZeRO does
    flat.grad = torch.ones(6)
    with pytest.warns(UserWarning, match="has no parameter of two or more dimensions") as caught:
        optimizer.step()
        optimizer.step()
    assert len(caught) == 1


class CallingItsBase(torch.optim.SGD):
    """A step that calls its base class's: torch runs hooks in both."""

    def step(self, closure=None):
        return super().step(closure)


@every_hook
def test_a_step_that_calls_its_base_class_is_one_step(attach):
    ours, plain = make_param((4, 30)), make_param((4, 30))
    grad = ours.grad
    optimizer, other = CallingItsBase([ours], 0.1, momentum=0.9), torch.optim.SGD([plain], 0.1, momentum=0.9)
    attach(optimizer, [ours])
    attach(other, [plain])
    for _ in range(2):
        optimizer.step()
        other.step()
    assert torch.equal(ours, plain)
    assert ours.grad is grad


def test_a_probe_counts_a_step_that_calls_its_base_class_once():
    param = make_param((4, 30))
    optimizer = CallingItsBase([param], 0.1)
    probe = NormProbe([("p", param)], every=1)
    probe.attach(optimizer)
    optimizer.step()
    assert probe.state_dict()["step"] == 1


@every_hook
def test_an_optimizer_that_only_its_step_holds_makes_it(attach):
    param = make_param((4, 30))
    optimizer = torch.optim.SGD([param], 0.1)
    attach(optimizer, [param])
    step, before = optimizer.step, param.detach().clone()
    del optimizer
    step()
    assert not torch.equal(param, before)


# Learning rates


NO_RATE = {
    "prodigy": {"lr": 1.0, "d": 1e-6},
    "schedule-free": {"lr": 1.0, "weight_lr_power": 2.0},
    "none": {"lr": None},
}


@pytest.mark.parametrize("entries", NO_RATE.values(), ids=NO_RATE)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("attach", [ATTACH["project"], ATTACH["gradient"], ATTACH["weights"]])
def test_a_rate_that_is_not_the_groups_lr_is_refused_before_anything_moves(entries, late, attach):
    param = orthogonal_param()
    grad, before = param.grad, param.detach().clone()
    optimizer = torch.optim.AdamW([param], lr=1.0, weight_decay=0.1)
    if late:
        attach(optimizer, [param])
    optimizer.param_groups[0].update(entries)
    with pytest.raises(ValueError, match=r"^lr="):
        optimizer.step() if late else attach(optimizer, [param])
    assert torch.equal(param, before)
    assert param.grad is grad


def test_without_decay_no_rate_is_needed():
    param = orthogonal_param()
    optimizer = torch.optim.SGD([param], lr=0.1)
    optimizer.param_groups[0]["d"] = 1e-6
    project_updates(optimizer)
    shrink_weights(optimizer, alpha=0.2, params=[param], clamp=None)
    optimizer.step()
    decaying = torch.optim.AdamW([orthogonal_param()], lr=0.1, weight_decay=0.1)
    decaying.param_groups[0]["d"] = 1e-6
    project_updates(decaying, wd_ratio=0.0)


def test_prodigy_is_refused_with_decay_and_projected_without():
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    with pytest.raises(ValueError, match="entry 'd'"):
        project_updates(pytorch_optimizer.Prodigy([orthogonal_param()], lr=1.0, weight_decay=0.1))
    param = orthogonal_param()
    optimizer = pytorch_optimizer.Prodigy([param], lr=1.0, weight_decay=0.0)
    project_updates(optimizer)
    optimizer.step()


@pytest.mark.parametrize(
    ("entries", "decay"),
    [({}, 0.01), ({"fixed_decay": True}, 0.1), ({"corrected_weight_decay": True, "max_lr_snapshot": 0.2}, 0.005)],
    ids=["decoupled", "pytorch_optimizer-fixed", "timm-corrected"],
)
def test_the_decay_is_that_of_the_optimizers_own_rule(entries, decay):
    ends = []
    for weight_decay in (0.0, 0.1):
        param = make_param((4, 30), dtype=torch.float64)
        before = param.detach().clone()
        optimizer = torch.optim.SGD([{"params": [param], **entries}], 0.1, weight_decay=weight_decay)
        project_updates(optimizer, wd_ratio=0.5)
        optimizer.step()
        ends.append(param.detach().clone())
    torch.testing.assert_close(ends[0] - ends[1], 0.5 * decay * before, rtol=0, atol=1e-9)


# Exceptions


@pytest.mark.parametrize("with_closure", [False, True])
@pytest.mark.parametrize("scheduled", ["no", "before", "after"])
@every_hook
def test_after_a_step_that_raises_all_is_as_before_and_a_retry_is_the_step(attach, scheduled, with_closure):
    ours, plain = make_param((4, 30)), make_param((4, 30))
    optimizer, other = Failing([ours], 0.1), Failing([plain], 0.1, fails=False)
    if scheduled == "before":
        StepLR(optimizer, 1)
    attach(optimizer, [ours])
    attach(other, [plain])
    if scheduled == "after":
        StepLR(optimizer, 1)
    grad, before = ours.grad, ours.detach().clone()
    kept = grad.clone()
    closure = (lambda: torch.zeros(())) if with_closure else None
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert ours.grad is grad
    assert torch.equal(grad, kept)
    assert torch.equal(ours, before)
    optimizer.step(closure)
    other.step(closure)
    assert torch.equal(ours, plain)
    assert ours.grad is grad


@pytest.mark.parametrize("attach", [ATTACH["gradient"], ATTACH["weights"]])
@pytest.mark.parametrize("with_closure", [False, True])
def test_a_sparse_gradient_is_refused_before_anything_moves(attach, with_closure):
    dense, sparse = make_param((4, 30)), nn.Parameter(torch.ones(2, 3))
    sparse.grad = torch.ones(2, 3).to_sparse()
    grad, before = dense.grad, dense.detach().clone()
    optimizer = torch.optim.SGD([dense, sparse], 0.1)
    attach(optimizer, [dense, sparse])
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step((lambda: torch.zeros(())) if with_closure else None)
    assert dense.grad is grad
    assert torch.equal(dense, before)


def test_another_hook_that_raises_leaves_the_gradient_as_it_was():
    param = make_param((4, 30))
    grad = param.grad
    optimizer = torch.optim.SGD([param], 0.1)
    optimizer.register_step_post_hook(lambda *_: 1 / 0)
    shrink_weights(optimizer, alpha=0.2, params=[param])
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert param.grad is grad


@every_hook
@pytest.mark.parametrize("place", ["closure", "hook"])
def test_a_step_in_which_hooks_are_removed_ends_as_it_began(attach, place):
    removed, kept = orthogonal_param(), orthogonal_param()
    grad = removed.grad
    for param in (removed, kept):
        optimizer = torch.optim.SGD([param], 0.1)
        handle = attach(optimizer, [param])
        act = handle.remove if param is removed else lambda: None
        if place == "hook":
            optimizer.register_step_post_hook(lambda *_, act=act: act())
            optimizer.step()
        else:
            optimizer.step(lambda act=act: act() or torch.zeros(()))
    assert removed.grad is grad and torch.equal(removed, kept)


@pytest.mark.parametrize("fails", [False, True])
def test_two_shrinks_of_one_gradient_give_it_back(fails):
    param = make_param((4, 30))
    grad = param.grad
    optimizer = Failing([param], 0.1, fails=fails)
    for _ in range(2):
        shrink_weights(optimizer, alpha=0.2, params=[param])
    expected = param.detach() - 0.1 * (grad + 2 * 0.2 * param.detach().norm(dim=1, keepdim=True) * param.detach())
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        optimizer.step()
    assert param.grad is grad
    if not fails:
        torch.testing.assert_close(param.detach(), expected)


@pytest.mark.parametrize("mark", ["row", None, ("columns", 3)])
def test_a_mark_that_a_group_brings_later_is_checked_before_anything_moves(mark):
    param, late = make_param((4, 30)), make_param((4, 30))
    optimizer = torch.optim.SGD([param], 0.1)
    project_updates(optimizer)
    optimizer.add_param_group({"params": [late], "scale_invariant": mark})
    before = [param.detach().clone(), late.detach().clone()]
    with pytest.raises(ValueError, match="scale_invariant="):
        optimizer.step()
    assert torch.equal(param, before[0]) and torch.equal(late, before[1])


def test_a_shrink_without_clamp_takes_weights_without_entries():
    param = nn.Parameter(torch.zeros(0, 6))
    shrink_weights(torch.optim.SGD([param], 0.1), alpha=0.2, params=[param], clamp=None)


@every_hook
def test_attaching_and_removing_leaves_the_optimizer_its_own_step(attach):
    param = make_param((4, 30))
    optimizer = torch.optim.SGD([param], 0.1)
    for _ in range(3):
        attach(optimizer, [param]).remove()
    assert "step" not in vars(optimizer)
    with attach(optimizer, [param]):
        copied = copy.deepcopy(optimizer)
    assert "step" not in vars(copied)


def test_a_shared_sphere_that_cannot_be_stepped_moves_nothing():
    free, late, first = (make_param((2, 3), seed=seed) for seed in range(3))
    groups = [{"params": [free]}, {"params": [first, late], "scale_invariant": True, "sphere": "global"}]
    optimizer = AdaRemS(groups, lr=0.1)
    late_grad, late.grad = late.grad, None
    optimizer.step()
    late.grad = late_grad
    before = [p.detach().clone() for p in (free, first, late)]
    with pytest.raises(RuntimeError, match="first gradient after"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, (free, first, late), strict=True))


# Steps that only create state


FRESH = {
    "sgdp": lambda params: SGDP(params, lr=0.1, momentum=0.9),
    "adamp": lambda params: AdamP(params, lr=0.1, weight_decay=0.1),
    "adarem": lambda params: AdaRem(params, lr=0.1),
    "adarem_s": lambda params: AdaRemS(
        [{"params": params, "scale_invariant": True}], lr=0.1, radius=2.0, weight_decay=0.1
    ),
}


def three_steps(build, *, ask, load=False):
    """Return a weight after three steps and what a probe saw; `ask` for the state dict before, `load` it elsewhere."""
    layer = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    param = layer.weight
    before = make_param((4, 5), dtype=torch.float64).detach()
    param.data.copy_(before)
    optimizer = build([param])
    if load:
        state = copy.deepcopy(get_optimizer_state_dict(layer, optimizer))
        optimizer = build([param])
        set_optimizer_state_dict(layer, optimizer, state)
    probe = NormProbe([("weight", param)], every=1, oscillation_window=2)
    probe.attach(optimizer)
    if ask:
        get_optimizer_state_dict(layer, optimizer)
        assert torch.equal(param, before)
    for seed in range(3):
        param.grad = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        optimizer.step()
    return param.detach(), probe.read()


@pytest.mark.parametrize("build", FRESH.values(), ids=FRESH)
@pytest.mark.parametrize("load", [False, True])
def test_a_fresh_optimizer_asked_for_its_state_takes_no_step(build, load):
    expected, expected_values = three_steps(build, ask=False)
    weight, values = three_steps(build, ask=True, load=load)
    assert torch.equal(weight, expected)
    assert values == expected_values


def test_a_probe_and_a_shrink_do_not_notice_the_hidden_step_of_a_foreign_optimizer():
    def build(params):
        optimizer = torch.optim.SGD(params, 0.1, momentum=0.9)
        shrink_weights(optimizer, alpha=0.2, params=params)
        return optimizer

    expected, expected_values = three_steps(build, ask=False)
    weight, values = three_steps(build, ask=True)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)
    assert values == pytest.approx(expected_values, rel=1e-12)


@pytest.mark.parametrize("build", [FRESH["adamp"], FRESH["adarem_s"]])
def test_a_first_step_at_rate_zero_with_gradients_counts(build):
    param = make_param((4, 5))
    optimizer = build([param])
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert optimizer.state[param].get("step", 1) == 1
    assert optimizer.state[param].get("alpha", 1) != 0


# Parameters that leave


@pytest.mark.parametrize("attach", [ATTACH["project"], ATTACH["gradient"], ATTACH["weights"]])
def test_a_parameter_that_has_left_the_optimizer_is_skipped_with_a_reason(attach):
    kept, leaving, alone = (make_param((4, 30)) for _ in range(3))
    optimizer, other = torch.optim.SGD([kept, leaving], 0.1), torch.optim.SGD([alone], 0.1)
    attach(optimizer, [kept, leaving])
    attach(other, [alone])
    optimizer.param_groups[0]["params"] = [kept]
    before = leaving.detach().clone()
    with pytest.warns(UserWarning, match=r"shape \(4, 30\) has left the optimizer") as caught:
        optimizer.step()
        optimizer.step()
    other.step()
    other.step()
    assert len(caught) == 1
    assert torch.equal(kept, alone)
    assert torch.equal(leaving, before)


def test_a_parameter_of_a_lazy_layer_is_refused_by_params_and_projected_without():
    layer = nn.LazyLinear(3, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with pytest.raises(ValueError, match="lazy module"):
        project_updates(optimizer, params=layer.parameters())
    project_updates(optimizer)
    layer(torch.ones(2, 4)).sum().backward()
    optimizer.step()
