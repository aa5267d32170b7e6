"""ReBias: a network f kept from learning what a network g, biased by its structure, can learn.

Shapes: B pictures of a step over all processes, b of this process, D features, K classes.
Reference: Bahng et al., arXiv:1910.02806, section 3; used by the AdamP paper in section D.2 and Table D.2.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.base import Batch, BatchLoader, InputError, Shard, StepContext, Task, Update
from tasks.precision import widen
from tasks.rebias.hsic import MIN_SAMPLES, hsic_unbiased, median_sigma, rbf_kernel

Method = Literal["rebias", "vanilla", "biased"]
METHODS = {"rebias": ("f", "g"), "vanilla": ("f",), "biased": ("g",)}
SIGMA_SHARE = 0.25  # of an epoch's batches: those whose distances give the median bandwidths


class ReBias(Task):
    """Trains f and g by turns on the same batches.

    With F and G the features of a batch, each step of g minimises CE(g) - lambda_g HSIC(G, F): it fits the labels
    and depends on f as much as it can. Then a step of f minimises CE(f) + lambda_f HSIC(F, G). The other network's
    features are constants in both. HSIC is no mean over pictures: it sees the step's whole batch, gathered over
    processes, and micro-batches are refused.

    Both networks run in training mode, also where they only provide constants, so BatchNorm's running statistics
    move twice per step, as in the published code.

    Args:
        f: Builds the target network from `num_classes`: pictures (B, 3, H, W) -> logits (B, K), features (B, D).
        g: Builds the biased network, likewise.
        num_classes: K.
        batch_size: Global training batch.
        seed: Fixes the order of the data.
        method: "rebias" trains both, "vanilla" f alone and "biased" g alone, with cross-entropy only.
        lambda_f: Weight of HSIC in f's loss; 0 trains f as "vanilla" does.
        lambda_g: Weight of HSIC in g's loss; 0 trains g as "biased" does.
        sigma: Bandwidth of both kernels, or "median": the square root of the median squared distance, for each
            network, measured before each epoch on a quarter of its batches.
        num_g_updates: Steps of g before each step of f.
        swap_inner_sigma: In g's loss give F the bandwidth of g and G that of f, as the published code does; that
            matters with "median" alone. The published numbers use it.
    """

    def __init__(
        self,
        f: Callable[..., nn.Module],
        g: Callable[..., nn.Module],
        *,
        num_classes: int,
        batch_size: int,
        seed: int,
        method: Method,
        lambda_f: float,
        lambda_g: float,
        sigma: float | Literal["median"],
        num_g_updates: int,
        swap_inner_sigma: bool,
    ) -> None:
        if method not in METHODS:
            raise InputError(f"task.method={method}: must be one of {', '.join(METHODS)}")
        for option, value in (("lambda_f", lambda_f), ("lambda_g", lambda_g)):
            if not (value >= 0 and math.isfinite(value)):
                raise InputError(f"task.{option}={value}: must be 0 or more, and finite")
        if sigma != "median" and not (isinstance(sigma, int | float) and 0 < sigma < math.inf):
            raise InputError(f"task.sigma={sigma}: must be median, or a positive number")
        if not num_g_updates >= 1:
            raise InputError(f"task.num_g_updates={num_g_updates}: must be at least 1")
        self.lambdas = {"f": float(lambda_f), "g": float(lambda_g)} if method == "rebias" else {"f": 0.0, "g": 0.0}
        least = MIN_SAMPLES if any(self.lambdas.values()) else 1
        if not batch_size >= least:
            raise InputError(f"train.batch_size={batch_size}: must be at least {least}, the least that HSIC can use")
        builders = {"f": f, "g": g}
        self.networks = {role: builders[role](num_classes=num_classes) for role in METHODS[method]}
        self.method, self.batch_size, self.seed = method, batch_size, seed
        self.sigma, self.num_g_updates, self.swap_inner_sigma = sigma, num_g_updates, swap_inner_sigma
        self._epoch, self._shard = 0, Shard()

    @property
    def reported(self) -> str:
        """The network whose accuracy is the result: f, or g where it is trained alone."""
        return METHODS[self.method][0]

    # ------------------------------------------------------------------------------------------------ data

    @abstractmethod
    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return a training batch's normalised pictures (b, 3, H, W) and labels (b,), on the device it is on."""

    @abstractmethod
    def batches(self, epoch: int, shard: Shard, start: int) -> BatchLoader:
        """Return training batches, as `train_batches` does."""

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        if shard.accumulation_steps > 1:
            raise InputError(
                f"train.accumulation={shard.accumulation_steps}: must be 1, HSIC needs the whole batch at once"
            )
        self._epoch, self._shard = epoch, shard
        return self.batches(epoch, shard, start)

    # ------------------------------------------------------------------------------------------------ losses

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, labels = self.pictures(batch)
        sigmas = self._sigmas(nets, context)
        # The min-max game: the inner maximisation over g, then the outer minimisation over f
        for role, other in (("g", "f"),) * self.num_g_updates + (("f", "g"),):
            if role in nets:
                yield self._update(
                    nets, role, other, images=images, labels=labels, sigmas=sigmas, gather=context.gather
                )

    def _update(
        self,
        nets: Mapping[str, nn.Module],
        role: str,
        other: str,
        *,
        images: Tensor,
        labels: Tensor,
        sigmas: Mapping[str, float],
        gather: Callable[[Tensor], Tensor],
    ) -> Update:
        logits, features = nets[role](images)  # (b, K), (b, D)
        loss = F.cross_entropy(logits, labels)
        hits = (logits.detach().argmax(1) == labels).float()
        log = {f"train/{role}_top1": 100 * hits.mean()}
        if self.lambdas[role] > 0:
            # HSIC with the other network's features held constant, over the global batch
            with torch.no_grad():
                constants = gather(widen(nets[other](images)[1]))  # (B, D)
            own_features = gather(widen(features))
            swapped = self.swap_inner_sigma and role == "g"
            first, second = (other, role) if swapped else (role, other)
            hsic = hsic_unbiased(rbf_kernel(own_features, sigmas[first]), rbf_kernel(constants, sigmas[second]))
            loss = loss + (hsic if role == "f" else -hsic) * self.lambdas[role]
            log[f"train/{role}_hsic"] = hsic.detach()
            log[f"train/{role}_distance"] = median_sigma(own_features)
        return Update(loss, network=role, log=log)

    def _sigmas(self, nets: Mapping[str, nn.Module], context: StepContext) -> dict[str, float]:
        """Return each network's bandwidth; the median ones are found before an epoch's first step and carried."""
        if self.sigma != "median" or not any(self.lambdas.values()):
            fixed = 1.0 if self.sigma == "median" else float(self.sigma)
            return {"f": fixed, "g": fixed}
        state = context.state
        if state.get("epoch") != self._epoch:
            state["sigmas"], state["epoch"] = self._measure(nets, context.gather), self._epoch
        sigmas: dict[str, float] = state["sigmas"]
        return sigmas

    @torch.no_grad()
    def _measure(self, nets: Mapping[str, nn.Module], gather: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the median rule's bandwidths over batches 0 to a quarter of the epoch's."""
        batches = self.batches(self._epoch, self._shard, 0)
        device = next(nets["f"].parameters()).device
        features_by_role: dict[str, list[Tensor]] = {role: [] for role in nets}
        with _buffers_kept(nets):
            for batch in islice(iter(batches), int(SIGMA_SHARE * len(batches)) + 1):
                images, _ = self.pictures([part.to(device) for part in batch])
                for role, net in nets.items():
                    features_by_role[role].append(gather(widen(net(images)[1])))
        sigmas = {role: float(median_sigma(features)) for role, features in features_by_role.items()}
        for role, value in sigmas.items():
            if not 0 < value < math.inf:
                raise InputError(
                    f"task.sigma=median: the median distance of {role}'s features is {value}; they have collapsed or "
                    "overflowed: lower opt.lr, or give a number"
                )
        return sigmas

    # ------------------------------------------------------------------------------------------------ facts

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        return dict.fromkeys(self.networks, (self.example_images(),))

    @abstractmethod
    def example_images(self) -> Tensor:
        """Return a few normalised pictures (n, 3, H, W) on the CPU, the same ones whatever the batch size."""

    def accuracies(self, split: str, hits: Mapping[str, Sequence[bool]]) -> dict[str, float]:
        """Return the reported network's percentage as "<split>/top1", and g's beside f's as "<split>/g_top1"."""
        names = {role: f"{split}/top1" if role == self.reported else f"{split}/{role}_top1" for role in hits}
        return {names[role]: 100 * sum(map(bool, role_hits)) / len(role_hits) for role, role_hits in hits.items()}


@contextmanager
def _buffers_kept(nets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Give every buffer, BatchNorm's running statistics above all, back as it was."""
    saved = [(buffer, buffer.clone()) for net in nets.values() for buffer in net.buffers()]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
