"""One battery over every optimizer on every path: what any torch optimizer must do."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from adamp import SGDP, AdaRemS
from tests.adamp.optimizer_cases import (
    every,
    every_optimizer,
    our_optimizers,
    over,
    own,
    projecting,
)
from tests.adamp.problems import HostReads, backward, make_param, net, run


def states(optimizer, param):
    return {k: v for k, v in optimizer.state[param].items() if v.shape == param.shape and v.ndim}


@every_optimizer
def test_training_lowers_the_loss(build):
    model = net()
    optimizer = build(build.groups(model), lr=build.lr / 5)
    first = float(backward(model).detach())
    for _ in range(60):
        backward(model)
        optimizer.step()
    assert float(backward(model).detach()) < 0.8 * first


@every_optimizer
def test_a_closure_runs_with_gradients_enabled_and_its_loss_comes_back(build):
    model, twin = net(), net()
    optimizer, other = build(build.groups(model)), build(build.groups(twin))
    with torch.no_grad():
        loss = optimizer.step(lambda: backward_enabled(model))
    assert loss.item() == backward(twin).item()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def backward_enabled(model):
    assert torch.is_grad_enabled()
    return backward(model)


@over({name: case for name, case in every.items() if case.cls is not AdaRemS})
def test_groups_have_their_own_options(build):
    moving, still = make_param((3, 4)), make_param((3, 4))
    before = still.detach().clone()
    optimizer = build([{"params": [moving]}, {"params": [still], "lr": 0.0}])
    optimizer.step()
    assert torch.equal(still, before)
    assert not torch.equal(moving, before)


@projecting
def test_marks_of_groups_are_respected(build):
    shape = (3, 40)
    params = [make_param(shape, kind="none") for _ in range(3)]
    start = params[0].detach().clone()
    groups = [{"params": [p], "scale_invariant": mark} for p, mark in zip(params, ("auto", True, False), strict=True)]
    build(groups, weight_decay=0.0).step()
    torch.testing.assert_close(params[0], params[2])
    radial = ((params[1] - start) * start).sum(1) / start.norm(dim=1)
    torch.testing.assert_close(radial, torch.zeros(3), atol=1e-6, rtol=0)


@every_optimizer
def test_parameters_without_gradient_stay_and_get_no_state(build):
    used, unused = make_param((3, 4)), nn.Parameter(torch.ones(3, 4))
    frozen = nn.Parameter(torch.ones(3, 4), requires_grad=False)
    optimizer = build([used, unused, frozen])
    optimizer.step()
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 4))
    assert torch.equal(frozen, torch.ones(3, 4))
    assert set(optimizer.state) <= {used}


@over({name: case for name, case in every.items() if name != "one-sphere"})  # which refuses it by name
def test_a_first_gradient_may_come_late(build):
    early, late, alone = make_param((3, 4)), make_param((4, 2)), make_param((4, 2))
    gradient, late.grad = late.grad, None
    optimizer = build([early, late])
    optimizer.step()
    late.grad = gradient
    optimizer.step()
    build([alone]).step()
    torch.testing.assert_close(late, alone)


@every_optimizer
def test_a_saved_state_continues_bitwise(build, tmp_path):
    model = net()
    optimizer = build(build.groups(model))
    run(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = build(build.groups(twin), lr=7.0)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    other.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    expected = run(model, optimizer, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(twin, other, 3, start=3), strict=True))


@our_optimizers  # an optimizer's hooks are not copied with it
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent_and_equal(build, duplicate):
    model = net()
    optimizer = build(build.groups(model))
    run(model, optimizer, 2)
    twin, other = duplicate((model, optimizer))
    expected = run(model, optimizer, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(twin, other, 2, start=2), strict=True))


@our_optimizers
def test_a_tensor_learning_rate_gives_the_same_step(build):
    plain, tensor = make_param((3, 4)), make_param((3, 4))
    build([plain]).step()
    build([tensor], lr=torch.tensor(build.lr, dtype=torch.float64)).step()
    torch.testing.assert_close(tensor, plain, rtol=0, atol=1e-7)


@over({name: case for name, case in own.items() if case.cls is not AdaRemS})
def test_learning_rate_zero_changes_nothing(build):
    param = make_param((3, 4))
    before = param.detach().clone()
    build([param], lr=0.0).step()
    assert torch.equal(param, before)


@our_optimizers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["channel", "none"])
def test_half_precision_steps_are_those_of_float32_rounded_once(build, dtype, kind):
    half = make_param((4, 30), dtype=dtype, kind=kind)
    wide = nn.Parameter(half.detach().float())
    wide.grad = half.grad.float()
    optimizer = build([half])
    optimizer.step()
    build([wide]).step()
    assert half.dtype == dtype
    assert torch.equal(half, wide.to(dtype))
    assert all(v.dtype == dtype for v in states(optimizer, half).values())


@projecting
def test_float16_stays_finite_with_tiny_gradients(build):
    param = make_param((4, 30), dtype=torch.float16, kind="none")
    param.grad = param.grad * 1e-5
    optimizer = build([param])
    for _ in range(3):
        optimizer.step()
    assert torch.isfinite(param).all()


@every_optimizer
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (0,), (0, 5), (5, 0), (0, 3, 3, 3), (1, 1), (12, 1), (1, 9), (2, 3, 1, 1)]
)
def test_every_shape_makes_a_step(build, shape):
    param = nn.Parameter(torch.ones(shape))
    param.grad = torch.ones(shape)
    build([param]).step()
    assert param.shape == torch.Size(shape)
    assert torch.isfinite(param).all()


@every_optimizer
@pytest.mark.parametrize("kind", ["channel", "layer", "none"])
def test_strides_of_any_kind_make_the_same_step(build, kind):
    """channels_last, transposed, and a gradient whose strides are not its weight's; two steps each."""
    plain, last, turned, mixed = (make_param((4, 5, 3, 3), kind=kind) for _ in range(4))
    last.data = last.data.to(memory_format=torch.channels_last)
    last.grad = last.grad.to(memory_format=torch.channels_last)
    turned.data = turned.data.transpose(0, 1).contiguous().transpose(0, 1)
    mixed.grad = mixed.grad.to(memory_format=torch.channels_last)
    optimizers = {p: build([p]) for p in (plain, last, turned, mixed)}
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.step()
    for param, optimizer in optimizers.items():
        torch.testing.assert_close(param, plain)
        if build in own.values():  # the buffer of torch's SGD has its gradient's strides
            assert all(v.stride() == param.stride() for v in states(optimizer, param).values())


@our_optimizers
def test_maximize_is_descent_on_the_negated_gradient_and_leaves_grad_alone(build):
    up, down = make_param((3, 4)), make_param((3, 4))
    down.grad.neg_()
    kept = up.grad.clone()
    first, second = build([up], maximize=True), build([down])
    for _ in range(2):
        first.step()
        second.step()
    assert torch.equal(up, down)
    assert torch.equal(up.grad, kept)


@every_optimizer
def test_the_gradient_is_never_modified(build):
    param = make_param((3, 4))
    kept = param.grad.clone()
    optimizer = build([param])
    for _ in range(3):
        optimizer.step()
    assert torch.equal(param.grad, kept)


@our_optimizers
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_complex_parameters_step_as_their_real_view(build, shape):
    real = make_param((*shape, 2), dtype=torch.float64)
    comp = nn.Parameter(torch.view_as_complex(real.detach().clone()))
    comp.grad = torch.view_as_complex(real.grad.clone())
    group = {"params": [real]}
    if build.path and len(shape) == 1:
        group["scale_invariant"] = False
    optimizers = build([group]), build([comp])
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.view_as_real(comp), real)


@our_optimizers
def test_sparse_gradients_are_refused(build):
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        build(embedding.parameters()).step()


@over({name: case for name, case in own.items() if case.path != "fused"})  # a kernel on the CPU reads on the CPU
def test_a_step_reads_nothing_back_to_the_host(build):
    optimizer = build([make_param((3, 4)), make_param((5, 2), kind="none"), make_param((4, 30), kind="layer")])
    optimizer.step()
    with HostReads() as reads:
        optimizer.step()
    assert reads.count == 0


@projecting
def test_a_row_that_is_not_finite_leaves_other_rows_and_tensors_alone(build):
    hurt, whole, vector = make_param((3, 8)), make_param((4, 8), seed=1), make_param((5,), kind="none", seed=2)
    alone = make_param((4, 8), seed=1)
    hurt.grad[1, 2] = math.nan
    build([hurt, whole, vector]).step()
    build([alone]).step()
    finite = torch.isfinite(hurt)
    assert finite[0].all()
    assert finite[2].all()
    assert not finite[1].all()
    torch.testing.assert_close(whole, alone)
    assert torch.isfinite(vector).all()


@our_optimizers
def test_the_order_of_parameters_does_not_matter(build):
    first, second = ([make_param((3, 4), seed=k) for k in range(3)] for _ in range(2))
    build(first).step()
    build(second[::-1]).step()
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


@every_optimizer
def test_schedulers_hooks_and_gradient_scaling_work(build):
    model, twin = net(), net()
    optimizer, other = build(build.groups(model)), build(build.groups(twin))
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 4) for o in (optimizer, other)]
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        run(twin, other, 1, start=step)
        for schedule in schedules:
            schedule.step()
    assert seen == ["before", "after"] * 3
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    next(model.parameters()).grad.fill_(math.inf)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@projecting
def test_one_cycle_schedules_move_momentum_or_betas(build):
    optimizer = build([make_param((3, 4))], **({"momentum": 0.9} if build.cls is SGDP else {}))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    for _ in range(4):
        optimizer.step()
        schedule.step()
