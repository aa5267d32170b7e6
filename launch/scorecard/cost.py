"""What a step costs in time and memory, beside torch's fused AdamW, in turns on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from launch.interleaved import clock, take_turns
from launch.scorecard.candidate import Candidate, in_child
from tasks.engine.optim import evaluates_other_weights
from tasks.small_images import convnet

ROUNDS = 9


def measured(candidate: Candidate, opt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost of a candidate, measured in a process of its own.

    Args:
        candidate: The optimizer.
        opt: Its entry of a run's configuration.

    Returns:
        `step` and `training_step`: median CPU time on one thread as a ratio to fused AdamW's, with quartiles, and
        AdamW's milliseconds; `bytes_per_parameter` of the optimizer's state, and AdamW's.
    """
    return in_child(_measured, candidate, dict(opt))


def shapes() -> list[tuple[int, ...]]:
    """Return the shapes of ResNet18's parameters with a quarter of its channels, 0.7 million weights."""
    import torchvision

    with torch.device("meta"):
        found = [tuple(p.shape) for p in torchvision.models.resnet18().parameters()]
    return [tuple(size // 4 if size >= 64 else size for size in shape) for shape in found]


def _measured(candidate: Candidate, opt: Mapping[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = [torch.randn(shape) for shape in shapes()]
    grads = [torch.randn(shape) for shape in shapes()]
    small = {**opt, "lr": 1e-8}
    made = {
        "baseline": _attached(lambda params: torch.optim.AdamW(params, lr=1e-8, fused=True), weights, grads),
        "candidate": _attached(candidate.made_by(small), weights, grads),
    }
    _, read = clock(1)
    steps = take_turns({name: each.step for name, each in made.items()}, read, rounds=ROUNDS)
    count = sum(weight.numel() for weight in weights)
    held = {name: _state_bytes(optimizer) / count for name, optimizer in made.items()}
    training = take_turns(
        {
            "baseline": _training_step(lambda params: torch.optim.AdamW(params, lr=1e-8, fused=True)),
            "candidate": _training_step(candidate.made_by(small)),
        },
        read,
        rounds=ROUNDS,
    )
    return {
        "baseline": "torch.optim.AdamW, fused", "clock": "CPU time, 1 thread", "parameters": count,
        "step": _ratio(steps), "training_step": _ratio(training),
        "bytes_per_parameter": round(held["candidate"], 3), "baseline_bytes_per_parameter": round(held["baseline"], 3),
    }  # fmt: skip


def _attached(make: Callable[..., Optimizer], weights: list[Tensor], grads: list[Tensor]) -> Optimizer:
    params = [nn.Parameter(weight.clone()) for weight in weights]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    return _training(make([{"params": params}]))


def _training(optimizer: Optimizer) -> Optimizer:
    if evaluates_other_weights(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _training_step(make: Callable[..., Optimizer]) -> Callable[[], None]:
    torch.manual_seed(0)
    network = convnet((1, 7, 7), 10)
    images, labels = torch.randn(256, 1, 7, 7), torch.randint(10, (256,))
    optimizer = _training(make([{"params": list(network.parameters())}]))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step


def _state_bytes(optimizer: Optimizer) -> int:
    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, Mapping):
            return sum(map(size, value.values()))
        return sum(map(size, value)) if isinstance(value, list | tuple) else 0

    return sum(map(size, optimizer.state.values()))


def _ratio(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    base, ours = seconds.values()
    low, middle, high = statistics.quantiles([mine / other for mine, other in zip(ours, base, strict=True)], n=4)
    values = {"ratio": middle, "low": low, "high": high, "baseline_ms": 1000 * statistics.median(base)}
    return {key: float(f"{value:.4g}") for key, value in values.items()}
