"""The many-networks experiment of `make projection-effect` on one device, without the suite's configuration.

The cells of one seed (optimizer, rate, decay) are one wide network, as `launcher=many` trains them; their optimizers
are one object per kind, with the cells as parameter groups. Batches are drawn on the device, so figures agree with the
suite's runs in distribution and not bit for bit.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adamp import SGDP, AdamP
from benchmarks.peers import Make
from tasks.engine.schedules import cosine
from tasks.engine.wide import WideNetwork
from tasks.small_images import AveragedFashionMnist, mlp

MOMENTUM, BATCH = 0.9, 256
EVALUATED = 2500  # test pictures at a time


class Cell(NamedTuple):
    """One run of the experiment."""

    optimizer: str
    lr: float
    weight_decay: float


@dataclass(frozen=True)
class Experiment:
    """What is trained.

    Attributes:
        cells: Trained at once, for each seed.
        seeds: One after the other.
        num_steps: Of a training.
        width: Units of each of the two hidden layers.
    """

    cells: Sequence[Cell]
    seeds: int
    num_steps: int
    width: int


FULL = Experiment(
    [
        *(Cell(*cell) for cell in product(("SGD", "SGDP"), (0.1, 0.2, 0.4), (0.0, 5e-4))),
        *(Cell(*cell) for cell in product(("AdamW", "AdamP"), (0.003, 0.01, 0.03), (0.0, 0.1))),
    ],
    seeds=8, num_steps=4000, width=32,
)  # fmt: skip
TINY = Experiment(
    [Cell("SGD", 0.2, 0.0), Cell("SGDP", 0.2, 0.0), Cell("AdamW", 0.01, 0.1), Cell("AdamP", 0.01, 0.1)],
    seeds=2, num_steps=2, width=4,
)  # fmt: skip
MAKES: dict[str, Make] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=MOMENTUM),
    "SGDP": lambda p: SGDP(p, lr=0.1, momentum=MOMENTUM, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p),
    "AdamP": lambda p: AdamP(p, fused=True),
}


def trainings(
    experiment: Experiment, device: torch.device, left: Callable[[], float] = lambda: math.inf
) -> Iterator[dict[str, Any]]:
    """Train seed by seed and yield each cell's test loss, top-1 in percent and growth of the hidden weights' norm.

    Args:
        experiment: What is trained.
        device: Where.
        left: The seconds that are left; no seed is begun that would take longer than the slowest before it.
    """
    data = AveragedFashionMnist()
    splits = {name: (images.to(device), labels.to(device)) for name, (images, labels) in data.splits.items()}
    results: list[dict[str, Any]] = []
    slowest = 0.0
    for seed in range(experiment.seeds):
        if left() < slowest:
            yield {"name": f"seed {seed}", "skipped": f"{left():.0f} s were left, a seed takes {slowest:.0f} s"}
            break
        begun = time.perf_counter()
        scores = list(_train(experiment, seed, splits, data.shape, device))
        slowest = max(slowest, time.perf_counter() - begun)
        for cell, score in zip(experiment.cells, scores, strict=True):
            results.append({**cell._asdict(), "seed": seed, **score})
            yield {"name": f"seed {seed}", **results[-1], "seconds": slowest}
    yield from differences(results)


def differences(results: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the mean over seeds, with its standard error, of ours minus theirs at each rate and decay."""
    value = {(r["optimizer"], r["lr"], r["weight_decay"], r["seed"]): r["loss"] for r in results}
    for ours, theirs in (("SGDP", "SGD"), ("AdamP", "AdamW")):
        for lr, decay in dict.fromkeys((lr, decay) for kind, lr, decay, _ in value if kind == ours):
            seeds = [seed for *cell, seed in value if cell == [ours, lr, decay]]
            pairs = [value[ours, lr, decay, seed] - value[theirs, lr, decay, seed] for seed in seeds]
            error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
            yield {
                "name": f"{ours} - {theirs}", "lr": lr, "weight_decay": decay, "seeds": len(pairs),
                "loss": statistics.mean(pairs), "standard_error": error,
            }  # fmt: skip


def _train(
    experiment: Experiment,
    seed: int,
    splits: dict[str, tuple[Tensor, Tensor]],
    shape: tuple[int, int, int],
    device: torch.device,
) -> Iterator[dict[str, float]]:
    """Train the cells of one seed at once and yield their scores."""
    torch.manual_seed(seed)
    network = mlp(shape, 10, width=experiment.width).to(device)
    wide = WideNetwork(network, len(experiment.cells))
    kinds = dict.fromkeys(cell.optimizer for cell in experiment.cells)
    optimizers = [optimizer_of(kind, experiment.cells, wide.members) for kind in kinds]
    rates = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    before = [_hidden_norm(member) for member in wide.members]

    images, labels = splits["train"]
    generator = torch.Generator(device).manual_seed(seed)
    per_pass = len(labels) // BATCH
    wide.module.train()
    for step in range(experiment.num_steps):
        if step % per_pass == 0:
            order = torch.randperm(len(labels), generator=generator, device=device)
        batch = order[step % per_pass * BATCH : (step % per_pass + 1) * BATCH]
        for group, lr in rates:
            group["lr"] = lr * cosine(step, experiment.num_steps)
        wide.zero_grad()
        losses, _ = _outcomes(wide, images[batch], labels[batch])
        losses.mean(0).sum().backward()  # no network's loss depends on another's weights
        for optimizer in optimizers:
            optimizer.step()
    yield from _scores(wide, splits["val"], before)


def optimizer_of(kind: str, cells: Sequence[Cell], members: Sequence[nn.Module]) -> torch.optim.Optimizer:
    """Return one optimizer of all cells of a kind: of each cell a group that decays, and one of vectors."""
    groups: list[dict[str, Any]] = []
    for cell, member in zip(cells, members, strict=True):
        if cell.optimizer == kind:
            parameters = list(member.parameters())
            for params, decay in (
                ([p for p in parameters if p.ndim > 1], cell.weight_decay), ([p for p in parameters if p.ndim < 2], 0.0)
            ):  # fmt: skip
                groups.append({"params": params, "lr": cell.lr, "weight_decay": decay})
    return MAKES[kind](groups)


def _outcomes(wide: WideNetwork, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each example's loss under each network and whether it is right, (B, K) each."""
    logits = wide.module(images).view(len(labels), wide.count, -1).transpose(1, 2)  # (B, classes, K)
    every_label = labels[:, None].expand(-1, wide.count)
    return F.cross_entropy(logits, every_label, reduction="none"), logits.argmax(1) == every_label


@torch.no_grad()
def _scores(wide: WideNetwork, split: tuple[Tensor, Tensor], before: Sequence[Tensor]) -> Iterator[dict[str, float]]:
    wide.module.eval()
    images, labels = split
    loss = torch.zeros(wide.count, dtype=torch.float64, device=images.device)
    right = torch.zeros_like(loss)
    for start in range(0, len(labels), EVALUATED):
        some = slice(start, start + EVALUATED)
        losses, are_right = _outcomes(wide, images[some], labels[some])
        loss += losses.double().sum(0)
        right += are_right.sum(0)
    for index, (member, start_norm) in enumerate(zip(wide.members, before, strict=True)):
        yield {
            "loss": float(loss[index]) / len(labels), "top1": 100 * float(right[index]) / len(labels),
            "norm_growth": float(_hidden_norm(member) / start_norm),
        }  # fmt: skip


@torch.no_grad()
def _hidden_norm(network: nn.Module) -> Tensor:
    """Return the norm of the scale-invariant weights: all matrices but the output."""
    hidden = [p for name, p in network.named_parameters() if p.ndim > 1 and not name.startswith("output")]
    return torch.stack([p.square().sum() for p in hidden]).sum().sqrt()
