"""The training loop: phases, epochs, steps, evaluation, checkpoints."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from torch.optim import Optimizer

from adamp import NormProbe
from tasks.base import Batch, InputError, LoopState, Shard, Task
from tasks.engine import checkpoint, numerics, probing, state, steps
from tasks.engine.config import Train, check_division
from tasks.engine.distributed import World
from tasks.engine.evaluate import evaluate
from tasks.engine.faults import read
from tasks.engine.meters import FiniteWatch, Meter
from tasks.engine.optim import (
    OptimizerFactory,
    Rule,
    apply_schedules,
    build_optimizer,
    check_rules,
    first_lr,
    parameter_groups,
)  # fmt: skip
from tasks.engine.outcomes import Diverged, Stopped
from tasks.engine.phases import Best, Phase, Position
from tasks.engine.progress import Progress
from tasks.engine.records import RunRecord, Sink
from tasks.engine.signals import NOTHING, SAVE, STOP, requests


@dataclass
class Trainer:
    """Trains a task through its phases.

    Resumes by itself from the checkpoint in `folder`: weights and metrics are bitwise those of a run that was never
    stopped, provided the number of processes is the same.

    Args:
        task: What is trained.
        phases: In order.
        train: Options.
        rules: Parameter rules, see `parameter_groups`.
        folder: The run's folder.
        world: The processes.
        name: Identity of the run; a checkpoint of another run is refused.
        record: The run's files, on process 0.
        sinks: Loggers that follow, on process 0.
        probed: Network role -> names of the parameters whose norms are probed; a role left out probes every weight
            with more than one dimension.
    """

    task: Task
    phases: Sequence[Phase]
    train: Train
    rules: Sequence[Rule]
    folder: Path
    world: World
    name: str = "run"
    record: RunRecord | None = None
    sinks: Sequence[Sink] = ()
    probed: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Place the networks and check what can be checked before the first step."""
        check_division(self.train, self.world.size)
        check_rules(self.task.networks, self.rules)
        self.bare = {role: net.to(self.world.device) for role, net in self.task.networks.items()}
        if self.train.channels_last:
            for net in self.bare.values():
                net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.nets: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.probes: dict[str, NormProbe] = {}
        self.averages = state.moving_averages(self.bare, self.train.ema_decay)
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.train.precision == "fp16")  # type: ignore[attr-defined]
        self.at, self.best, self.scores = Position(), Best(), {}  # type: ignore[var-annotated]
        self.meter, self.watch = Meter(), FiniteWatch(self.world.device)
        self.guard = numerics.Guard(self.train.nonfinite, self.world)
        self.loop_states: list[LoopState] = [{} for _ in range(self.train.accumulation)]
        self.notes: list[str] = []
        self.notices: dict[str, int] | None = None  # over all processes, once the run is done
        self.saved_at = time.monotonic()
        shard = self.world.shard(self.train.accumulation)
        self.epoch_steps = len(self.task.train_batches(0, shard)) // self.train.accumulation
        if self.epoch_steps == 0:
            raise InputError(
                f"train.batch_size is {self.train.batch_size}, more than the training set holds; choose a smaller one"
            )

    # ------------------------------------------------------------------------------------------------ the run

    def fit(self) -> dict[str, float]:
        """Train to the end, resuming if the folder holds a checkpoint, and return the last scores.

        Raises:
            InputError: Something the user gave is wrong, or the disk refuses.
            Diverged: The loss is not finite.
            Stopped: A signal asked to stop; a checkpoint was saved.
        """
        for _ in self.epochs():
            pass
        return dict(self.scores)

    def epochs(self) -> Iterator[int]:
        """Do what `fit` does, one epoch at a time: yields the number of the phase after each."""
        with requests() as self.asked:
            found = state.resume(self)
            self.progress = Progress(
                self._total_steps(), done=self.at.step, batch_size=self.train.batch_size,
                shown=self.world.main and self.train.progress,
            )  # fmt: skip
            for note in self.notes:
                self.progress.say(note)
            try:
                yield from self._phases(found)
            finally:
                self.progress.close()

    def _phases(self, found: checkpoint.State | None) -> Iterator[int]:
        while self.at.phase < len(self.phases):
            phase = self.phases[self.at.phase]
            self._enter(phase, found)
            if self.at.step == 0 and found is None:
                self._write(probing.read(self.probes, layers=True))
            found = None
            while self.at.epoch < phase.epochs and not self._out_of_steps():
                self._train_epoch(phase)
                self._end_epoch(phase)
                yield self.at.phase
            if self._out_of_steps():
                break
            self.at = Position(self.at.phase + 1, 0, 0, self.at.step)
        self._save()
        self._test()
        self.notices = self._gather_notices()

    def _gather_notices(self) -> dict[str, int]:
        counts = self.world.gather(self.task.notices()) or []
        return {key: sum(each.get(key, 0) for each in counts) for key in sorted(set().union(*counts))}

    def _enter(self, phase: Phase, found: checkpoint.State | None) -> None:
        """Make a phase's optimizers, wrappers and probes; then, when resuming inside it, put their state back."""
        if phase.start_from == "best" and found is None:
            state.load_best(self)
        pattern = re.compile(phase.trainable)
        for role, net in self.bare.items():
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(bool(pattern.search(f"{role}.{name}")))
        factory = phase.opt or (None if self.optimizers else self._factory_before())
        if factory is not None:
            self.optimizers = {
                role: build_optimizer(factory, parameter_groups(role, net, self.rules))
                for role, net in self.bare.items()
            }
            self.probes = probing.attach(self.bare, self.optimizers, self.train, self.probed)
        # Wrapping and compiling may draw random numbers, so the generators are set after them.
        self.nets = {role: self.world.wrap(net) for role, net in self.bare.items()}
        if self.train.compile:
            self.nets = {role: torch.compile(net) for role, net in self.nets.items()}  # type: ignore[misc]
        self.fresh = True
        if found is not None:
            state.put_back_after_wrapping(self, found)
        elif self.at.step == 0:
            checkpoint.seed_generators(self.train.seed, self.world.rank)

    def _factory_before(self) -> OptimizerFactory:
        factories = [phase.opt for phase in self.phases[: self.at.phase + 1] if phase.opt is not None]
        if not factories:
            raise InputError("phases: the first phase has no optimizer")
        return factories[-1]

    def _train_epoch(self, phase: Phase) -> None:
        accumulation = self.train.accumulation
        shard = self.world.shard(accumulation)
        epoch = self._epochs_before() + self.at.epoch
        batches = read(self.task.train_batches(epoch, shard, self.at.batch))
        for net in self.bare.values():
            net.train()
        while self.at.batch < self.epoch_steps and not self._out_of_steps():
            progress = self.at.epoch + self.at.batch / self.epoch_steps
            for optimizer in self.optimizers.values():
                apply_schedules(optimizer, phase.schedule or {}, epoch=progress, epochs=phase.epochs)
            steps.take(self, [next(batches) for _ in range(accumulation)])
            self.at.batch += 1
            self.at.step += 1
            if self.train.check_every and self.at.step % self.train.check_every == 0:
                numerics.check_same_weights(self.bare, self.world, step=self.at.step)
            self.progress.step()
            if self.at.step % self.train.log_every == 0 and self.at.batch < self.epoch_steps:
                self._log()
            self._answer()

    def _end_epoch(self, phase: Phase) -> None:
        """Evaluate, write the epoch's line and keep the best weights."""
        last = self.at.epoch + 1 == phase.epochs or self._out_of_steps()
        self._check_weights()
        scores: dict[str, float] = {}
        if last or (self.at.epoch + 1) % self.train.eval_epochs == 0:
            scores = self._evaluate(self.task.eval_batches, saving=True)
        self._log(scores, epoch_end=True)
        if self.at.batch == self.epoch_steps:  # else the run ends here, by max_steps
            self.at = Position(self.at.phase, self.at.epoch + 1, 0, self.at.step)
        if scores:
            self.scores = scores
            self._keep_best(scores)
        self._answer()

    # ------------------------------------------------------------------------------------------------ scores, lines

    def _evaluate(self, splits: Callable[[Shard], Mapping[str, Iterable[Batch]]], *, saving: bool) -> dict[str, float]:
        """Score the networks, and their moving averages under "<split>_ema" names."""
        self.world.share_buffers(self.bare)
        scores: dict[str, float] = {}
        averaged = {role: net.module for role, net in self.averages.items()}
        for nets, suffix in ((self.bare, ""), (averaged, "_ema")):
            found = evaluate(
                self.task, splits, nets, self.world, seed=self.train.seed + 1_000_003 * (self.at.step + 1),
                place=partial(steps.place, self), autocast=partial(steps.autocast, self),
                stop=lambda: self.asked.pending == STOP,
            ) if nets else {}  # fmt: skip
            if found is None:
                if saving:
                    self._save()
                self._stop()
            scores |= {re.sub("^([^/]+)", rf"\1{suffix}", key): value for key, value in found.items()}
        return scores

    def _test(self) -> None:
        """Score the splits kept for the end with the best weights; stopped here, a run comes back to here."""
        if not self.task.test_batches(self.world.shard()):
            return
        if self.best.score is not None:
            state.load_best(self)
        scores = self._evaluate(self.task.test_batches, saving=False)  # what is saved are the last weights
        self.scores |= scores
        self._write(scores)
        self.progress.say("best weights  " + "  ".join(f"{key} {value:.4g}" for key, value in scores.items()))

    def _log(self, scores: Mapping[str, float] | None = None, *, epoch_end: bool = False) -> None:
        self._check_finite()
        lr, decay = first_lr(next(iter(self.optimizers.values())))
        values: dict[str, float] = {**self.meter.read(self.world), "lr": lr, **decay}
        loss = values.get("train/loss")
        values |= probing.read(self.probes, layers=epoch_end)
        if self.guard.policy is not None:
            values["train/refused"] = self.guard.refused
        self._write({**values, **(scores or {})})
        self.progress.show(self.at.step, epoch=self.epoch, loss=loss, lr=lr)
        if self.record is not None:
            self.record.time(
                {
                    "step": self.at.step, "seconds": round(self.progress.seconds(), 2),
                    "examples_per_s": round(self.progress.rate(self.at.step), 1),
                }
            )  # fmt: skip
        if scores:
            shown = "  ".join(f"{key} {value:.4g}" for key, value in scores.items())
            self.progress.say(f"epoch {self.epoch:.4g}/{sum(p.epochs for p in self.phases)}  {shown}")

    def _write(self, values: Mapping[str, float]) -> None:
        line = {"step": self.at.step, "epoch": round(self.epoch, 6), **values}
        if self.record is not None:
            self.record.log(line)
        for sink in self.sinks:
            sink.log(line)

    @property
    def epoch(self) -> float:
        """Epochs trained so far, fractional, over all phases."""
        return self._epochs_before() + self.at.epoch + self.at.batch / self.epoch_steps

    def _epochs_before(self) -> int:
        return sum(phase.epochs for phase in self.phases[: self.at.phase])

    def _total_steps(self) -> int:
        total = sum(phase.epochs for phase in self.phases) * self.epoch_steps
        return min(total, self.train.max_steps or total)

    def _out_of_steps(self) -> bool:
        return self.train.max_steps is not None and self.at.step >= self.train.max_steps

    # ------------------------------------------------------------------------------------------------ saving

    def _answer(self) -> None:
        """Save when it is time or a signal asked for it; stop when one asked for that. Collective."""
        due = self.world.main and time.monotonic() - self.saved_at >= 60 * self.train.checkpoint_minutes
        request = self.world.highest(max(self.asked.pending, SAVE if due else NOTHING))
        if request == NOTHING:
            return
        self.asked.saving = False
        self._save()
        if request == STOP:
            self._stop()

    def _stop(self) -> NoReturn:
        number = self.asked.number if self.asked.pending == STOP else 0
        preempted = self.world.highest(int(number == signal.SIGUSR2))  # another process may have heard SIGTERM first
        raise Stopped(signal.SIGUSR2 if preempted else self.world.highest(number))

    def _save(self) -> None:
        self._check_weights()
        state.save(self, "last")
        self.saved_at = time.monotonic()

    def _keep_best(self, scores: Mapping[str, float]) -> None:
        """Save the weights when the task's monitored score (of the averaged weights, if kept) is the best so far."""
        monitor = self.task.monitor
        key = re.sub("^([^/]+)", r"\1_ema", monitor.lstrip("-")) if self.averages else monitor.lstrip("-")
        if key not in scores:
            raise RuntimeError(f"the task monitors {key!r} and scores only {sorted(scores)}")
        if self.best.beaten_by(scores[key], monitor=monitor):
            self.best = Best(scores[key], math.ceil(self.epoch))
            state.save(self, "best")

    def _check_finite(self) -> None:
        bad = self.watch.bad_step(self.world)
        if bad is not None:
            raise self.diverged(bad)

    def _check_weights(self) -> None:
        """Refuse to score or save weights that are not finite, or not those of the other processes."""
        self._check_finite()
        if (bad := numerics.finite_weights(self.bare, self.world)) is not None:
            raise self.diverged(self.at.step, f"the weight {bad} is not finite")
        numerics.check_same_weights(self.bare, self.world, step=self.at.step)

    def diverged(self, step: int, what: str = "the loss is not finite") -> Diverged:
        """Return the error of this run, not finite at a step."""
        kept = checkpoint.latest(self.folder / "checkpoints")
        lr, _ = first_lr(next(iter(self.optimizers.values())))
        return Diverged.at(step, what, epoch=(step - 1) / self.epoch_steps, lr=lr, kept=kept)
