"""All tensors at once: how many launches a step takes, that it reads nothing back, and what it costs in memory."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adamp import SGDP, AdamP
from adamp.step import foreach
from tests.adamp.problems import HostReads

VIEWS = {"view", "split_with_sizes", "split", "slice", "select", "expand", "unbind", "unsqueeze", "detach", "alias",
         "t", "transpose", "_unsafe_view", "as_strided", "permute", "view_as_real", "new_empty", "empty"}  # fmt: skip
OPTIMIZERS = {
    "sgdp": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}),
    "sgdp-published": (SGDP, {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "project_buffer": True}),
    "adamp": (AdamP, {"lr": 1e-3, "weight_decay": 1e-2}),
}


class Launches(TorchDispatchMode):
    """Counts operations that would start a kernel, a foreach operation as one; views and allocations start none.

    With `on_device` those alone that read or write a tensor beside the CPU.
    """

    def __init__(self, *, on_device=False):
        super().__init__()
        self.count, self.on_device = 0, on_device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        counts = not self.on_device or any(x.device.type != "cpu" for x in tensors)
        self.count += counts and func._schema.name.removeprefix("aten::") not in VIEWS
        return result


@pytest.fixture(scope="module")
def resnet50():
    """The shapes of ResNet-50's 161 parameters, with gradients, at 1/16 of the width."""
    torch.manual_seed(0)
    params = []
    for p in torchvision.models.resnet50(weights=None).parameters():
        shape = [max(1, n // 16) for n in p.shape[:2]] + list(p.shape[2:])
        params.append(nn.Parameter(torch.randn(shape)))
        params[-1].grad = torch.randn(shape)
    return params


def launches(optimizer, **counted):
    optimizer.step()
    with Launches(**counted) as counter:
        optimizer.step()
    return counter.count


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resnet50_takes_at_most_420_launches(name, resnet50):
    cls, options = OPTIMIZERS[name]
    assert sum(p.ndim > 1 for p in resnet50) == 54
    together = launches(cls(resnet50, **options, foreach=True))
    assert together <= 420
    assert launches(cls(resnet50, **options, foreach=False)) > 6 * together


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("capturable", [False, True])
def test_on_a_device_a_resnet50_takes_at_most_120_launches(name, capturable):
    """Counted on tensors without data, which also refuse to be read on the host."""
    cls, options = OPTIMIZERS[name]
    with torch.device("meta"):
        params = list(torchvision.models.resnet50().parameters())
    for p in params:
        p.grad = torch.empty_like(p)
    assert launches(cls(params, **options, foreach=True, capturable=capturable), on_device=True) <= 120


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mark", ["auto", True])
def test_rows_of_one_length_may_be_summed_together(name, mark, monkeypatch):
    cls, options = OPTIMIZERS[name]
    shapes = [(4, 3, 3, 3), (6, 27), (5, 27), (0, 3), (3, 0), (8, 2, 2, 2), (7,), (1, 64), ()]
    ends = []
    for together in (False, True):
        monkeypatch.setattr(foreach, "_launches_are_dear", lambda device, together=together: together)
        monkeypatch.setattr(foreach, "CHUNK", 200)
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]
        params[5] = nn.Parameter(params[5].detach().to(memory_format=torch.channels_last))
        params = params if mark == "auto" else [p for p in params if p.ndim > 1]
        optimizer = cls(params, **options, foreach=True, scale_invariant=mark)
        for _ in range(2):
            for p in params:
                p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
            params[1].grad -= (
                (params[1].grad * params[1]).sum(1, keepdim=True) * params[1] / (params[1] ** 2).sum(1, keepdim=True)
            )
            optimizer.step()
        ends.append([p.detach() for p in params])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_marks_save_the_sums_of_the_test(name, resnet50):
    cls, options = OPTIMIZERS[name]
    matrices = [p for p in resnet50 if p.ndim > 1]
    assert launches(cls(matrices, **options, foreach=True, scale_invariant=True)) <= 260
    assert launches(cls(resnet50, **options, foreach=True, scale_invariant=False)) <= 30


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_reads_nothing_back_to_the_host(name, tensor_lr, capturable, resnet50):
    cls, options = OPTIMIZERS[name]
    lr = torch.tensor(options["lr"]) if tensor_lr else options["lr"]
    optimizer = cls(resnet50, **{**options, "lr": lr}, foreach=True, capturable=capturable)
    optimizer.step()
    with HostReads() as reads:
        optimizer.step()
    assert reads.count == 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_steps_from_the_same_start_give_the_same_bits(name, resnet50):
    cls, options = OPTIMIZERS[name]
    ends = []
    for _ in range(2):
        params = [nn.Parameter(p.detach().clone()) for p in resnet50]
        for p, source in zip(params, resnet50, strict=True):
            p.grad = source.grad
        cls(params, **options, foreach=True).step()
        ends.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_size_of_the_chunks_makes_no_difference(name, resnet50, monkeypatch):
    cls, options = OPTIMIZERS[name]
    ends = []
    for chunk in (1, 1000, 2**24):
        monkeypatch.setattr(foreach, "CHUNK", chunk)
        params = [nn.Parameter(p.detach().clone()) for p in resnet50]
        for p, source in zip(params, resnet50, strict=True):
            p.grad = source.grad
        cls(params, **options, foreach=True).step()
        ends.append(params)
    for params in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], params, strict=True))
