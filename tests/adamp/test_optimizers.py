"""One battery over both optimizers: what every torch optimizer must do."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP
from tests.adamp import reference
from tests.adamp.test_projection import HostReads

CASES = {
    "sgdp": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}),
    "sgdp-nesterov": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "sgdp-published": (SGDP, {"lr": 0.1, "momentum": 0.9, "project_buffer": True}),
    "sgdp-plain": (SGDP, {"lr": 0.1}),
    "adamp": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamp-nesterov": (AdamP, {"lr": 1e-2, "weight_decay": 0.1, "nesterov": True}),
}
every_optimizer = pytest.mark.parametrize(("cls", "options"), CASES.values(), ids=CASES.keys())


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def backward(model, seed=0):
    x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss


def run(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        backward(model, seed=step)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def make_param(shape, *, dtype=torch.float32, kind="channel", seed=0):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=generator, dtype=torch.float64)
    param = nn.Parameter(w.to(dtype))
    param.grad = reference.gradient(w, kind, generator).to(dtype)
    return param


@every_optimizer
def test_training_lowers_the_loss(cls, options):
    model = net()
    optimizer = cls(model.parameters(), **{**options, "lr": options["lr"] / 5})
    first = float(backward(model).detach())
    for _ in range(20):
        backward(model)
        optimizer.step()
    assert float(backward(model).detach()) < 0.8 * first


@every_optimizer
def test_a_closure_runs_with_gradients_enabled(cls, options):
    model, twin = net(), net()
    optimizer, other = cls(model.parameters(), **options), cls(twin.parameters(), **options)
    with torch.no_grad():
        loss = optimizer.step(lambda: backward_enabled(model))
    assert loss.item() == backward(twin).item()
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def backward_enabled(model):
    assert torch.is_grad_enabled()
    return backward(model)


@every_optimizer
def test_groups_have_their_own_options(cls, options):
    moving, still = make_param((3, 4)), make_param((3, 4))
    before = still.detach().clone()
    optimizer = cls([{"params": [moving]}, {"params": [still], "lr": 0.0}], **options)
    optimizer.step()
    assert torch.equal(still, before)
    assert not torch.equal(moving, before)


@every_optimizer
def test_marks_of_groups_are_respected(cls, options):
    shape = (3, 40)
    params = [make_param(shape, kind="none") for _ in range(3)]
    start = params[0].detach().clone()
    groups = [{"params": [p], "scale_invariant": mark} for p, mark in zip(params, ("auto", True, False), strict=True)]
    cls(groups, **{**options, "weight_decay": 0.0}).step()
    assert torch.equal(params[0], params[2])
    radial = ((params[1] - start) * start).sum(1) / start.norm(dim=1)
    torch.testing.assert_close(radial, torch.zeros(3), atol=1e-6, rtol=0)


@every_optimizer
def test_parameters_without_gradient_stay_and_get_no_state(cls, options):
    used, unused = make_param((3, 4)), nn.Parameter(torch.ones(3, 4))
    optimizer = cls([used, unused], **options)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3, 4))
    assert unused not in optimizer.state


@every_optimizer
def test_a_state_dict_round_trip_continues_bitwise(cls, options):
    model = net()
    optimizer = cls(model.parameters(), **options)
    run(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = cls(twin.parameters(), **{**options, "lr": 7.0})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    expected = run(model, optimizer, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(twin, other, 3, start=3), strict=True))


@every_optimizer
def test_a_state_dict_can_be_saved_and_loaded_as_weights_only(cls, options, tmp_path):
    model = net()
    optimizer = cls(model.parameters(), **options)
    run(model, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    loaded = torch.load(tmp_path / "o.pt", weights_only=True)
    cls(model.parameters(), **options).load_state_dict(loaded)


@every_optimizer
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_independent_and_equal(cls, options, duplicate):
    model = net()
    optimizer = cls(model.parameters(), **options)
    run(model, optimizer, 2)
    twin, other = duplicate((model, optimizer))
    expected = run(model, optimizer, 2, start=2)
    assert all(torch.equal(a, b) for a, b in zip(expected, run(twin, other, 2, start=2), strict=True))


@every_optimizer
def test_a_tensor_learning_rate_gives_the_same_step(cls, options):
    plain, tensor = make_param((3, 4)), make_param((3, 4))
    cls([plain], **options).step()
    cls([tensor], **{**options, "lr": torch.tensor(options["lr"], dtype=torch.float64)}).step()
    torch.testing.assert_close(tensor, plain, rtol=0, atol=1e-7)


@every_optimizer
def test_learning_rate_zero_changes_nothing(cls, options):
    param = make_param((3, 4))
    before = param.detach().clone()
    cls([param], **{**options, "lr": 0.0}).step()
    assert torch.equal(param, before)


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["channel", "none"])
def test_half_precision_steps_are_those_of_float32_rounded_once(cls, options, dtype, kind):
    half = make_param((4, 30), dtype=dtype, kind=kind)
    wide = nn.Parameter(half.detach().float())
    wide.grad = half.grad.float()
    optimizer = cls([half], **options)
    optimizer.step()
    cls([wide], **options).step()
    assert half.dtype == dtype
    assert torch.equal(half, wide.to(dtype))
    assert all(v.dtype == dtype for k, v in optimizer.state[half].items() if k != "step")


@every_optimizer
def test_float16_stays_finite_with_tiny_gradients(cls, options):
    param = make_param((4, 30), dtype=torch.float16, kind="none")
    param.grad = param.grad * 1e-5
    optimizer = cls([param], **options)
    for _ in range(3):
        optimizer.step()
    assert torch.isfinite(param).all()


@every_optimizer
@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (0,), (0, 5), (5, 0), (0, 3, 3, 3), (1, 1), (12, 1), (1, 9), (2, 3, 1, 1)]
)
def test_every_shape_makes_a_step(cls, options, shape):
    param = nn.Parameter(torch.ones(shape))
    param.grad = torch.ones(shape)
    cls([param], **options).step()
    assert param.shape == torch.Size(shape)
    assert torch.isfinite(param).all()


@every_optimizer
@pytest.mark.parametrize("kind", ["channel", "layer", "none"])
def test_channels_last_and_transposed_weights_make_the_same_step(cls, options, kind):
    plain, last, turned = (make_param((4, 5, 3, 3), kind=kind) for _ in range(3))
    last.data = last.data.to(memory_format=torch.channels_last)
    last.grad = last.grad.to(memory_format=torch.channels_last)
    turned.data = turned.data.transpose(0, 1).contiguous().transpose(0, 1)
    optimizers = [cls([p], **options) for p in (plain, last, turned)]
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(last, plain)
    torch.testing.assert_close(turned, plain)
    for param, optimizer in ((last, optimizers[1]), (turned, optimizers[2])):
        states = [v for k, v in optimizer.state[param].items() if k != "step"]
        assert all(v.stride() == param.stride() for v in states)


@every_optimizer
def test_maximize_is_descent_on_the_negated_gradient_and_leaves_grad_alone(cls, options):
    up, down = make_param((3, 4)), make_param((3, 4))
    down.grad.neg_()
    kept = up.grad.clone()
    cls([up], **options, maximize=True).step()
    cls([down], **options).step()
    assert torch.equal(up, down)
    assert torch.equal(up.grad, kept)


@every_optimizer
def test_the_gradient_is_never_modified(cls, options):
    param = make_param((3, 4))
    kept = param.grad.clone()
    optimizer = cls([param], **options)
    for _ in range(3):
        optimizer.step()
    assert torch.equal(param.grad, kept)


@every_optimizer
@pytest.mark.parametrize("shape", [(3, 4), (5,)])
def test_complex_parameters_step_as_their_real_view(cls, options, shape):
    real = make_param((*shape, 2), dtype=torch.float64)
    comp = nn.Parameter(torch.view_as_complex(real.detach().clone()))
    comp.grad = torch.view_as_complex(real.grad.clone())
    group = {"params": [real], "scale_invariant": "auto" if len(shape) > 1 else False}
    real_optimizer, comp_optimizer = cls([group], **options), cls([comp], **options)
    for _ in range(3):
        real_optimizer.step()
        comp_optimizer.step()
    torch.testing.assert_close(torch.view_as_real(comp), real)


@every_optimizer
def test_sparse_gradients_are_refused(cls, options):
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        cls(embedding.parameters(), **options).step()


@every_optimizer
def test_a_step_reads_nothing_back_to_the_host(cls, options):
    params = [make_param((3, 4)), make_param((5,), kind="none"), make_param((4, 30), kind="layer")]
    optimizer = cls(params, **options)
    optimizer.step()
    with HostReads() as reads:
        optimizer.step()
    assert reads.count == 0


@every_optimizer
def test_the_order_of_parameters_does_not_matter(cls, options):
    first, second = [make_param((3, 4), seed=k) for k in range(3)], [make_param((3, 4), seed=k) for k in range(3)]
    cls(first, **options).step()
    cls(second[::-1], **options).step()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@every_optimizer
def test_schedulers_hooks_and_gradient_scaling_work(cls, options):
    model = net()
    optimizer = cls(model.parameters(), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    twin = net()
    other = cls(twin.parameters(), **options)
    other_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(other, 4)
    for step in range(3):
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        model.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        run(twin, other, 1, start=step)
        other_schedule.step()
    assert seen == ["before", "after"] * 3
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    before = [p.detach().clone() for p in model.parameters()]
    backward(model)
    next(model.parameters()).grad.fill_(math.inf)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@every_optimizer
def test_one_cycle_schedules_move_momentum_or_betas(cls, options):
    optimizer = cls([make_param((3, 4))], **{**options, **({"momentum": 0.9} if cls is SGDP else {})})
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    for _ in range(4):
        optimizer.step()
        schedule.step()


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
    ],
)
def test_a_bad_option_of_one_optimizer_is_named(cls, bad, message):
    with pytest.raises(ValueError, match=message):
        cls([make_param((3, 4))], **{"lr": 0.1, **bad})


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
