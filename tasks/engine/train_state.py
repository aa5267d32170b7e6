"""The state of training: everything that decides the next step, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adamp import NormProbe
from tasks.base import LoopState
from tasks.engine.config import Train
from tasks.engine.distributed import World
from tasks.engine.meters import Meter
from tasks.engine.non_finite import NonFinitePolicy


@dataclass
class Progress:
    """The position in a run.

    Attributes:
        phase: Index of the phase.
        epoch: Epochs of this phase that are trained and evaluated.
        batch: Steps taken in the epoch after those; equal to the epoch's length while it waits for its evaluation.
        step: Steps taken in all: global batches, each of which a task may turn into several updates.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0

    def fits(self, epochs: Sequence[int], epoch_steps: int) -> bool:
        """Return whether this is a position of a run of so many epochs a phase, all of `epoch_steps` steps."""
        if not 0 <= self.phase <= len(epochs):
            return False
        phase_epochs = epochs[self.phase] if self.phase < len(epochs) else 0
        steps = (sum(epochs[: self.phase]) + self.epoch) * epoch_steps + self.batch
        in_phase = 0 <= self.epoch <= phase_epochs and 0 <= self.batch <= epoch_steps
        return in_phase and not (self.epoch == phase_epochs and self.batch) and steps == self.step


@dataclass
class Best:
    """The best score so far and the epoch that reached it (counted from 1, over all phases)."""

    score: float | None = None
    epoch: int = 0

    def is_beaten_by(self, score: float, *, monitor: str) -> bool:
        """Return whether a score is better: greater, or lower for a monitor prefixed with "-". NaN never is."""
        if self.score is None:
            return not math.isnan(score)
        return score < self.score if monitor.startswith("-") else score > self.score


@dataclass
class TrainState:
    """Everything that decides the next step, with the random generators beside it.

    The train step, evaluation, checkpointing and the non-finite policy work on this and never on the trainer.

    Attributes:
        modules: Role -> network, neither wrapped nor compiled.
        averages: Role -> moving average of the network's weights; empty without `train.ema_decay`.
        scaler: Loss scaling for fp16.
        non_finite: Treatment of non-finite updates, and its counts.
        loop_states: What the task keeps from batch to batch, one per micro-batch.
        optimizers: Role -> optimizer of the phase.
        probes: Role -> norm probe on it.
        meter: Means since the last line of metrics.
        progress: Position in the run.
        best: Best score so far.
        scores: Last scores.
    """

    modules: dict[str, nn.Module]
    averages: dict[str, AveragedModel]
    scaler: torch.amp.GradScaler  # type: ignore[name-defined]
    non_finite: NonFinitePolicy
    loop_states: list[LoopState]
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    probes: dict[str, NormProbe] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    progress: Progress = field(default_factory=Progress)
    best: Best = field(default_factory=Best)
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def initial(cls, networks: Mapping[str, nn.Module], train: Train, world: World) -> TrainState:
        """Return the state before the first step, with the networks on the device; phases add the optimizers."""
        modules = {role: net.to(world.device) for role, net in networks.items()}
        if train.channels_last:
            for net in modules.values():
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            modules=modules,
            averages=moving_averages(modules, train.ema_decay),
            scaler=torch.amp.GradScaler(world.device.type, enabled=train.precision == "fp16"),  # type: ignore[attr-defined]
            non_finite=NonFinitePolicy(train.nonfinite, world, loss_scaling=train.precision == "fp16"),
            loop_states=[{} for _ in range(train.accumulation)],
        )


def moving_averages(modules: Mapping[str, nn.Module], decay: float | None) -> dict[str, AveragedModel]:
    """Return an exponential moving average of each network, buffers included; empty without a decay."""
    if decay is None:
        return {}
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return {role: MovingAverage(net, multi_avg_fn=average, use_buffers=True) for role, net in modules.items()}


class MovingAverage(AveragedModel):
    """An average of a network's weights and floating-point buffers; integer buffers are copied.

    torch averages integers too and rounds down after each update: a table of indices would drift.
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the network."""
        super().update_parameters(model)
        for average, buffer in zip(self.module.buffers(), model.buffers(), strict=True):
            if not (buffer.is_floating_point() or buffer.is_complex()):
                average.copy_(buffer)
