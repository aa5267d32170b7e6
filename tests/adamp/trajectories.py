"""Steps of AdamP and SGDP on tensors for which the scale-invariance test fires by channel, by layer and not at all."""

import torch
from torch import nn

from adamp import SGDP, AdamP
from tests.adamp import reference

OPTIMIZERS = {
    "sgdp": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "sgdp-published": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "project_buffer": True}),
    "sgdp-plain": (SGDP, {"lr": 0.05, "weight_decay": 1e-2}),
    "adamp": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
    "adamp-nesterov": (AdamP, {"lr": 1e-2, "weight_decay": 0.1, "nesterov": True}),
}
SHAPES = {"channel": (4, 3, 3, 3), "layer": (6, 8), "none": (5, 7), "vector": (9,), "scalar": ()}


def parameters(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES.values()]


def set_grads(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for kind, p in zip(SHAPES, params, strict=True):
        p.grad = reference.gradient(p.detach(), kind if p.ndim > 1 else "none", generator)


def run_together(optimizers_and_params, steps, start=0):
    """Step every optimizer with the gradients of the first one's weights."""
    for step in range(start, start + steps):
        set_grads(optimizers_and_params[0][1], step)
        for _, params in optimizers_and_params[1:]:
            for p, source in zip(params, optimizers_and_params[0][1], strict=True):
                p.grad = source.grad.clone()
        for optimizer, _ in optimizers_and_params:
            optimizer.step()


def assert_equal(first, second, atol=1e-12):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def train(optimizer, params, steps, start=0):
    """Steps whose gradients depend on the weights, so that a difference once made stays and grows."""
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(100 + step)
        for kind, p in zip(SHAPES, params, strict=True):
            w = p.detach().double()
            p.grad = reference.gradient(w, kind if p.ndim > 1 else "none", generator).to(p.dtype)
        optimizer.step()


def assert_close(first, second, dtype=torch.float64):
    atol = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
