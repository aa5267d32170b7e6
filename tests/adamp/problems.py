"""Small networks, parameters with gradients, and a count of host reads."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adamp import reference


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def filter_network():
    """Normalised convolution with an uneven number of filters, a head of one output: a process without its row."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False), nn.GroupNorm(1, 5), nn.Flatten(), nn.Linear(20, 3), nn.Linear(3, 1)
    ).double()


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


def matrices(model):
    return {name: p for name, p in model.named_parameters() if p.ndim > 1}


def snapshot(model):
    return [p.detach().clone() for p in matrices(model).values()]


def vectors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def set_random_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)


class HostReads(TorchDispatchMode):
    """Counts operations that bring a value to the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
            self.count += 1
        return func(*args, **(kwargs or {}))
