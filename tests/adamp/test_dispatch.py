"""Which path a tensor takes, and that all of them are one optimizer: states pass from one to another."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP
from adamp.step import dispatch
from tests.adamp.conftest import PATHS, path_options
from tests.adamp.trajectories import OPTIMIZERS, assert_close, parameters, train

every_optimizer = pytest.mark.parametrize(("cls", "options"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_path_makes_the_steps_of_the_readable_one(cls, options, dtype, path):
    ours, plain = parameters(dtype), parameters(dtype)
    train(cls(ours, **options, **path), ours, 6)
    train(cls(plain, **options, foreach=False), plain, 6)
    assert_close(ours, plain, dtype)


@every_optimizer
@pytest.mark.parametrize("second", PATHS)
def test_a_state_saved_under_one_path_goes_on_under_another(cls, options, path, second, tmp_path):
    params = parameters()
    optimizer = cls(params, **options, **path)
    train(optimizer, params, 3)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = cls(twins, **{**options, "lr": 7.0}, **path_options(second))
    other.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    train(optimizer, params, 3, start=3)
    train(other, twins, 3, start=3)
    assert_close(params, twins)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_a_checkpoint_does_not_change_how_steps_are_computed(cls):
    params = parameters()
    saved = cls(params, lr=0.1, foreach=True).state_dict()
    optimizer = cls(params, lr=0.2, foreach=False, capturable=True)
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["foreach"], group["capturable"]) == (0.1, False, True)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_a_checkpoint_that_knows_no_paths_is_loaded(cls):
    params = parameters()
    optimizer = cls(params, lr=0.1, foreach=True)
    state = copy.deepcopy(optimizer.state_dict())
    for name in ("foreach", "fused", "capturable", "differentiable"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["foreach"] is True
    bare = pickle.loads(pickle.dumps(optimizer))
    for group in bare.param_groups:
        del group["foreach"], group["fused"]
    older = cls.__new__(cls)
    older.__setstate__(bare.__getstate__())
    assert older.param_groups[0]["foreach"] is True  # the defaults', which are pickled with it


def test_an_integer_step_of_an_old_checkpoint_becomes_a_tensor_where_the_path_wants_it():
    params = parameters()
    optimizer = AdamP(params, lr=0.1)
    train(optimizer, params, 1)
    state = optimizer.state_dict()
    for values in state["state"].values():
        values["step"] = 5
    optimizer.load_state_dict(state)
    steps = [optimizer.state[p]["step"] for p in params]
    assert [(s.item(), s.dtype, s.device.type) for s in steps] == [(5, torch.float32, "cpu")] * len(params)


@pytest.mark.parametrize("foreach", [None, False])
def test_counts_beside_the_parameters_follow_them_and_are_not_read_on_the_host(foreach):
    """On tensors without data, which no kernel takes and which refuse to be read."""
    param = nn.Parameter(torch.ones(3, 4, device="meta"))
    optimizer = AdamP([param], lr=0.1, foreach=foreach)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.state[param]["step"].device.type == "cpu"
    optimizer.param_groups[0]["fused"] = True
    for _ in range(2):
        optimizer.step()
        assert optimizer.state[param]["step"].device.type == "meta"


def test_a_count_of_another_dtype_becomes_float32():
    params = parameters()
    optimizer = AdamP(params, lr=0.1)
    train(optimizer, params, 1)
    for state in optimizer.state.values():
        state["step"] = state["step"].double()
    train(optimizer, params, 1)
    assert [(s["step"].item(), s["step"].dtype) for s in optimizer.state.values()] == [(2, torch.float32)] * len(params)


# Options


@pytest.mark.parametrize("cls", [SGDP, AdamP])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"foreach": True, "fused": True}, "`fused` and `foreach` cannot be `True` together"),
        ({"differentiable": True, "fused": True}, "`fused` does not support `differentiable`"),
        ({"differentiable": True, "foreach": True}, "`foreach` does not support `differentiable`"),
    ],
)
def test_options_that_exclude_each_other_are_refused(cls, options, message):
    with pytest.raises(RuntimeError, match=message):
        cls(parameters(), lr=0.1, **options)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
@pytest.mark.parametrize("name", ["foreach", "fused", "capturable", "differentiable"])
def test_a_path_option_that_is_no_bool_is_named(cls, name):
    with pytest.raises(ValueError, match=f"^{name}="):
        cls(parameters(), lr=0.1, **{name: 1})


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_fused_says_why_it_cannot_be_had(cls, monkeypatch):
    with pytest.raises(RuntimeError, match="there is none for meta"):
        cls([nn.Parameter(torch.ones(2, 2, device="meta"))], lr=0.1, fused=True)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_a_flattened_parameter_of_fsdp1_is_refused(cls):
    flat = nn.Parameter(torch.ones(12))
    flat._is_flat_param = True  # what FlatParameter's own check looks at
    with pytest.raises(ValueError, match=r"shape \(12,\) was flattened.*fully_shard"):
        cls([flat], lr=0.1)
    optimizer = cls(parameters(), lr=0.1)
    with pytest.raises(ValueError, match="flattened"):
        optimizer.add_param_group({"params": [flat]})
    assert len(optimizer.param_groups) == 1


# Choice


def chosen(param, **group):
    group = {
        "foreach": None,
        "fused": None,
        "capturable": False,
        "differentiable": False,
        "scale_invariant": "auto",
        "kahan_sum": False,
        **group,
    }
    return dispatch.select_implementation(group, param, torch.zeros_like(param), [torch.zeros_like(param)])


def test_options_choose_the_path():
    w = torch.ones(3, 4)
    assert chosen(w, foreach=True) == "foreach"
    assert chosen(w, foreach=False) == "single"
    assert chosen(w, differentiable=True) == "single"
    assert chosen(w, fused=False) == "foreach"
    path_options("fused")
    assert chosen(w, fused=True) == "fused"
    assert chosen(w.to(torch.complex64), fused=True) == "foreach"  # no kernel takes it
    assert chosen(w.to(torch.complex64), fused=True, foreach=False) == "single"
    assert chosen(w, fused=True, scale_invariant="tensor") == "fused"
    assert chosen(w, fused=True, scale_invariant="columns") == "foreach"  # columns are not dense in memory


def test_by_default_the_cpu_kernel_is_used_only_where_it_is_built_already(monkeypatch):
    w = torch.ones(3, 4)
    monkeypatch.setattr(dispatch, "_is_cpu_kernel_compiled", lambda: False)
    assert chosen(w) == "foreach"
    path_options("fused")
    monkeypatch.setattr(dispatch, "_is_cpu_kernel_compiled", lambda: True)
    assert chosen(w) == "fused"
    assert chosen(w, capturable=True) == chosen(w.to(torch.complex64)) == "foreach"


def test_by_default_other_devices_step_all_at_once():
    assert chosen(torch.ones(3, 4, device="meta")) == "foreach"


# What is kept between steps


def others(params, optimizer):
    """Changes of tensors that a step has to notice, by name; each leaves the values as they are."""
    w, state = params[-1], optimizer.state[params[-1]]
    return {
        "gradient": lambda: setattr(w, "grad", w.grad.clone()),
        "strides of the gradient": lambda: setattr(w, "grad", w.grad.t().contiguous().t()),
        "no gradient": lambda: [setattr(p, "grad", None) for p in params[:-1]],
        "weight": lambda: setattr(w, "data", w.data.clone()),
        "state": lambda: state.update({name: x.clone() for name, x in state.items()}),
        "memory of a state": lambda: [setattr(x, "data", x.data.clone()) for x in state.values()],
        "all states": lambda: optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict())),
        "option": lambda: optimizer.param_groups[0].update(scale_invariant=False),
        "implementation": lambda: optimizer.param_groups[0].update(foreach=False, fused=False),
    }


@every_optimizer
@pytest.mark.parametrize("change", others([nn.Parameter(torch.ones(1))], AdamP([torch.ones(1, 1)], lr=0.1)))
def test_a_step_notices_what_has_changed_since_the_last_one(cls, options, path, change):
    kept, anew = parameters()[:2], parameters()[:2]
    optimizer, other = cls(kept, **options, **path), cls(anew, **options, **path)
    for step in range(4):
        for params, each in ((kept, optimizer), (anew, other)):
            for i, p in enumerate(params):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + i), dtype=p.dtype)
            if step == 2:
                others(params, each)[change]()
        other.__dict__.pop("_plans", None)
        optimizer.step()
        other.step()
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(kept, anew, strict=True))


def test_gradients_are_not_kept_beyond_the_step(path):
    params = parameters()
    optimizer = AdamP(params, lr=0.1, **path)
    for step in range(3):
        train(optimizer, params, 1, start=step)
        grads = [weakref.ref(p.grad) for p in params]
        optimizer.zero_grad()
        assert all(grad() is None for grad in grads)


def test_what_is_kept_is_neither_copied_nor_pickled():
    params = parameters()
    optimizer = AdamP(params, lr=0.1)
    train(optimizer, params, 1)
    assert optimizer._plans
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "_plans" not in other.__dict__


# GradScaler


class Scaled:
    """A model's gradients times 1024, and an optimizer stepped through GradScaler."""

    def __init__(self, cls, options):
        self.params = parameters(torch.float32)
        self.optimizer = cls(self.params, **options)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)

    def step(self, seed, *, bad=False, unscale=False):
        generator = torch.Generator().manual_seed(seed)
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=generator) * self.scaler.get_scale()
        if bad:
            self.params[1].grad[0, 0] = float("inf")
        kept = [p.grad.clone() for p in self.params]
        self.scaler.scale(torch.ones(()))  # GradScaler sets itself up at its first loss
        if unscale:
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return kept


@every_optimizer
@pytest.mark.parametrize("unscale", [False, True])
def test_gradient_scaling_makes_no_difference(cls, options, path, unscale):
    scaled = Scaled(cls, {**options, **path})
    plain = parameters(torch.float32)
    optimizer = cls(plain, **options, foreach=False)
    for seed in range(3):
        scaled.step(seed, unscale=unscale)
        generator = torch.Generator().manual_seed(seed)
        for p in plain:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    assert_close(scaled.params, plain, torch.float32)


@every_optimizer
def test_an_infinite_gradient_skips_the_step_and_lowers_the_scale(cls, options, path):
    scaled = Scaled(cls, {**options, **path})
    scaled.step(0)
    before = copy.deepcopy((scaled.params, scaled.optimizer.state_dict()["state"]))
    scale = scaled.scaler.get_scale()
    scaled.step(1, bad=True)
    assert all(torch.equal(a, b) for a, b in zip(before[0], scaled.params, strict=True))
    now = scaled.optimizer.state_dict()["state"]
    assert all(torch.equal(x, now[i][name]) for i, state in before[1].items() for name, x in state.items())
    assert scaled.scaler.get_scale() == scale / 2


def test_fused_takes_the_scale_itself_and_leaves_gradients_alone():
    scaled = Scaled(AdamP, {"lr": 0.1, **path_options("fused")})
    kept = scaled.step(0)
    assert scaled.optimizer._step_supports_amp_scaling
    assert all(torch.equal(p.grad, g) for p, g in zip(scaled.params, kept, strict=True))
    assert not AdamP(scaled.params, 0.1)._step_supports_amp_scaling
    assert pickle.loads(pickle.dumps(scaled.optimizer))._step_supports_amp_scaling


@every_optimizer
@pytest.mark.parametrize("bad", [False, True])
def test_what_the_kernel_does_not_take_is_unscaled_and_skipped_too(cls, options, bad):
    """A transposed gradient, beside parameters that the kernel takes."""
    w, grad = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.randn(3, 4).t()
    ours, plain = nn.Parameter(w.clone()), nn.Parameter(w.clone())
    ours.grad, plain.grad = grad * 8, grad.clone()
    optimizer = cls([ours], **options, **path_options("fused"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(float(bad))
    optimizer.step()
    if bad:
        assert torch.equal(ours, w)
        return
    cls([plain], **options, foreach=False).step()
    torch.testing.assert_close(ours, plain)


@every_optimizer
@pytest.mark.parametrize("foreach", [None, False])
@pytest.mark.parametrize("bad", [False, True])
def test_on_a_device_the_flag_undoes_the_step_bit_for_bit(cls, options, foreach, bad, monkeypatch):
    ours, plain = parameters(torch.float32), parameters(torch.float32)
    optimizer, twin = (cls(params, **options, foreach=foreach, fused=False) for params in (ours, plain))
    for each, params in ((optimizer, ours), (twin, plain)):
        train(each, params, 2)
    before = copy.deepcopy((ours, optimizer.state_dict()["state"]))
    monkeypatch.setattr(dispatch, "_are_on_device", lambda *tensors: True)
    for p, q in zip(ours, plain, strict=True):
        q.grad = torch.ones_like(q)
        p.grad = torch.full_like(p, float("inf")) if bad else 4 * q.grad
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor([float(bad)])
    optimizer.step()
    if not bad:
        twin.step()
    expected, state = before if bad else (plain, twin.state_dict()["state"])
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    now = optimizer.state_dict()["state"]
    assert all(torch.equal(x, now[i][name]) for i, values in state.items() for name, x in values.items())


@pytest.mark.parametrize("cls", [SGDP, AdamP])
@pytest.mark.parametrize("foreach", [None, False])
def test_the_flag_is_not_read_on_the_host_where_it_lies_on_a_device(cls, foreach):
    """On tensors without data, which no kernel takes and which refuse to be read."""
    param = nn.Parameter(torch.ones(3, 4, device="meta"))
    optimizer = cls([param], lr=0.1, foreach=foreach)
    optimizer.param_groups[0]["fused"] = True  # what makes GradScaler hand the flag over
    param.grad = torch.ones_like(param)
    optimizer.grad_scale, optimizer.found_inf = (torch.ones(1, device="meta") for _ in range(2))
    optimizer.step()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_flag_that_the_host_reads_has_arrived_there(device):
    class Moves(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.to:
                moves.append(kwargs["non_blocking"])
            return func(*args, **(kwargs or {}))

    moves = []
    with Moves():
        dispatch._to_device(torch.ones(1), torch.device(device))
    assert moves == [device != "cpu"]


@pytest.mark.parametrize("strides", ["contiguous", "transposed"])
@pytest.mark.parametrize("foreach", [None, False])
def test_a_small_half_precision_gradient_is_widened_before_it_is_unscaled(strides, foreach):
    w = torch.zeros(4, 3, dtype=torch.float16)
    param = nn.Parameter(w if strides == "contiguous" else w.t())
    param.grad = torch.full_like(param, 1e-3)
    optimizer = SGDP([param], lr=1e6, **{**path_options("fused"), "foreach": foreach})
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(65536.0), torch.tensor(0.0)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, -0.01526), rtol=1e-3, atol=0)
