"""The training loop: phases, epochs, steps, evaluation, checkpoints."""

from __future__ import annotations

import logging
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

from tasks.base import Batch, InputError, Shard, Task
from tasks.engine import checkpoint, checkpointing
from tasks.engine.checkpointing import Checkpoints
from tasks.engine.config import Train, check_division
from tasks.engine.dead_workers import WaitsTooLong, read_batches
from tasks.engine.distributed import World
from tasks.engine.errors import Diverged, Stopped, end_of_wait
from tasks.engine.evaluate import evaluate, share_faulty_examples
from tasks.engine.loggers import RunLogger
from tasks.engine.nested import to_device
from tasks.engine.non_finite import first_non_finite_parameter
from tasks.engine.norm_logging import attach_probes, read_probes, trace_weights
from tasks.engine.optim import (
    OptimizerFactory,
    Rule,
    apply_schedules,
    build_optimizer,
    check_rules,
    parameter_groups,
    rate_and_decay,
)
from tasks.engine.phases import Phase
from tasks.engine.progress_bar import ProgressBar
from tasks.engine.reproducibility import check_same_weights, seed_generators
from tasks.engine.run_record import RunRecord
from tasks.engine.signals import NOTHING, SAVE, STOP, listen
from tasks.engine.train_state import Best, Progress, TrainState
from tasks.engine.train_step import autocast, train_step

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains a task through its phases.

    Resumes by itself from the checkpoint in `folder`: weights and metrics are bitwise those of a run that was never
    stopped, provided the number of processes is the same.

    Args:
        task: The task.
        phases: In order.
        train: Options.
        rules: Parameter rules, see `parameter_groups`.
        folder: The run's folder.
        world: The processes.
        name: Identity of the run; a checkpoint of another run is refused.
        record: The run's files, on process 0.
        loggers: Further loggers, on process 0.
        probed: Network role -> names of the parameters whose norms are probed; a role left out probes every weight
            with more than one dimension.
        networks: Trained instead of `task.networks`, which several trainers may share.

    Attributes:
        state: What decides the next step, and what a checkpoint holds.
        wrapped_modules: Role -> network of the phase's forward passes: wrapped for gradient averaging, compiled.
        epoch_steps: Steps per epoch.
        notices: Data problems of the whole run, once it is done.
    """

    task: Task
    phases: Sequence[Phase]
    train: Train
    rules: Sequence[Rule]
    folder: Path
    world: World
    name: str = "run"
    record: RunRecord | None = None
    loggers: Sequence[RunLogger] = ()
    probed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    networks: Mapping[str, nn.Module] | None = None

    def __post_init__(self) -> None:
        """Place the networks and check what can be checked before the first step."""
        check_division(self.train, self.world.size)
        networks = self.networks or self.task.networks
        check_rules(networks, self.rules)
        self.state = TrainState.initial(networks, self.train, self.world)
        self.wrapped_modules: dict[str, nn.Module] = {}
        self.checkpoints = Checkpoints(self.folder / "checkpoints", self.name, self.world, restart=self.train.restart)
        self.notices: dict[str, int] | None = None
        self._gradients_compared = False  # since the networks were wrapped
        self._saved_at = time.monotonic()
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
            InputError: A user's value is wrong, or a file cannot be written.
            Diverged: The loss is not finite.
            Stopped: A signal asked to stop; a checkpoint was saved.
        """
        for _ in self.epochs():
            pass
        return dict(self.state.scores)

    def epochs(self) -> Iterator[int]:
        """Do what `fit` does, one epoch at a time: yields the number of the phase after each."""
        with listen() as self.signals:
            resumed, notes = self._resume()
            self.progress_bar = ProgressBar(
                self._total_steps(), done=self.state.progress.step, batch_size=self.train.batch_size,
                visible=self.world.is_main and self.train.progress,
            )  # fmt: skip
            for note in notes:
                self.progress_bar.say(note)
            try:
                yield from self._phases(resumed)
            finally:
                self.progress_bar.close()

    def _resume(self) -> tuple[checkpoint.Contents | None, list[str]]:
        """Restore state and files from the folder's checkpoint; return its contents and what to tell the user."""
        contents = self.checkpoints.load_latest()
        if contents is None:
            if self.record is not None:
                self.record.open_metrics(0)
                self.record.begin_segment(0, threads=torch.get_num_threads())
            return None, []
        checkpointing.restore(self.state, contents, self.world)
        checkpointing.check_position(self.state, [phase.epochs for phase in self.phases], self.epoch_steps)
        self.task.add_faulty_examples(contents.get("faulty_examples", {}))
        step = self.state.progress.step
        if self.record is not None:
            self.record.open_metrics(contents["metrics_offset"])
            changes = self.record.begin_segment(step, threads=torch.get_num_threads())
            if not checkpointing.has_same_processes(contents, self.world) and not any(
                "processes" in c for c in changes
            ):
                changes.append(f"processes {len(contents['processes'])} -> {self.world.size}")
            if changes:
                log.warning("resumed at step %d with differences, so not bit for bit: %s", step, "; ".join(changes))
        return contents, [f"resumed at step {step}, epoch {self.epoch:.4g}"]

    def _phases(self, resumed: checkpoint.Contents | None) -> Iterator[int]:
        state = self.state
        while state.progress.phase < len(self.phases):
            phase = self.phases[state.progress.phase]
            self._enter(phase, resumed)
            if state.progress.step == 0 and resumed is None:
                self._write(read_probes(state.probes, layers=True))
            resumed = None
            while state.progress.epoch < phase.epochs and not self._out_of_steps():
                self._train_epoch(phase)
                self._end_epoch(phase)
                yield state.progress.phase
            if self._out_of_steps():
                break
            state.progress = Progress(state.progress.phase + 1, 0, 0, state.progress.step)
        if state.non_finite.took_none:
            raise self._diverged(
                state.progress.step, f"none of {state.non_finite.skipped} updates was finite, the last"
            )
        self._save()
        self._test()
        share_faulty_examples(self.task, self.world)
        self.notices = self.task.notices()

    def _enter(self, phase: Phase, resumed: checkpoint.Contents | None) -> None:
        """Make a phase's optimizers, wrappers and probes; when resuming inside it, restore their state."""
        state = self.state
        if phase.start_from == "best" and resumed is None:
            self.checkpoints.restore_best(state)
        # Freeze what the phase does not train
        pattern = re.compile(phase.trainable)
        for role, net in state.modules.items():
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(bool(pattern.search(f"{role}.{name}")))
        # New optimizers and probes, or those of the phase before
        factory = phase.opt or (None if state.optimizers else self._factory_before())
        if factory is not None:
            state.optimizers = {
                role: build_optimizer(factory, parameter_groups(role, net, self.rules))
                for role, net in state.modules.items()
            }
            state.probes = attach_probes(state.modules, state.optimizers, self.train, self.probed)
        # Wrapping and compiling may draw random numbers, so the generators are set after them
        self.wrapped_modules = {role: self.world.wrap(net) for role, net in state.modules.items()}
        if self.train.compile:
            self.wrapped_modules = {role: torch.compile(net) for role, net in self.wrapped_modules.items()}  # type: ignore[misc]
        self._gradients_compared = False
        if resumed is not None:
            checkpointing.restore_optimizers_and_rng(state, resumed, self.world)
        elif state.progress.step == 0:
            seed_generators(self.train.seed, self.world.rank)

    def _factory_before(self) -> OptimizerFactory:
        past_phases = self.phases[: self.state.progress.phase + 1]
        factories = [phase.opt for phase in past_phases if phase.opt is not None]
        if not factories:
            raise InputError("phases: the first phase has no optimizer")
        return factories[-1]

    def _train_epoch(self, phase: Phase) -> None:
        state, progress, train = self.state, self.state.progress, self.train
        shard = self.world.shard(train.accumulation)
        epoch_batches = self.task.train_batches(self._epochs_before() + progress.epoch, shard, progress.batch)
        batches = self._read(epoch_batches)
        for net in state.modules.values():
            net.train()
        while progress.batch < self.epoch_steps and not self._out_of_steps():
            epoch = progress.epoch + progress.batch / self.epoch_steps
            for optimizer in state.optimizers.values():
                apply_schedules(optimizer, phase.schedule or {}, epoch=epoch, epochs=phase.epochs)
            try:
                micro_batches = [next(batches) for _ in range(train.accumulation)]
            except WaitsTooLong:
                self._give_up_waiting(save=True)
            num_updates = train_step(
                state, self.task, self.wrapped_modules, micro_batches, train=train, world=self.world,
                compare_gradients=not self._gradients_compared,
            )  # fmt: skip
            self._gradients_compared |= num_updates > 0
            if state.non_finite.has_diverged:
                skips = state.non_finite.consecutive_skips
                raise self._diverged(progress.step + 1, f"{skips} updates in a row were not finite, the last")
            progress.batch += 1
            progress.step += 1
            if train.check_every and progress.step % train.check_every == 0:
                check_same_weights(state.modules, self.world, step=progress.step)
            self.progress_bar.step()
            if train.trace_every and (progress.step == 1 or progress.step % train.trace_every == 0):
                self._write(trace_weights(state.modules, state.optimizers))
            if progress.step % train.log_every == 0 and progress.batch < self.epoch_steps:
                self._log()
            self._handle_signals()

    def _end_epoch(self, phase: Phase) -> None:
        """Evaluate, write the epoch's line and keep the best weights."""
        progress = self.state.progress
        is_last = progress.epoch + 1 == phase.epochs or self._out_of_steps()
        self._check_weights()
        scores: dict[str, float] = {}
        if is_last or (progress.epoch + 1) % self.train.eval_epochs == 0:
            scores = self._evaluate(self.task.eval_batches, save_if_stopped=True)
        share_faulty_examples(self.task, self.world)
        self._log(scores, epoch_end=True)
        if progress.batch == self.epoch_steps:  # else the run ends here, by max_steps
            self.state.progress = Progress(progress.phase, progress.epoch + 1, 0, progress.step)
        if scores:
            self.state.scores = scores
            self._keep_best(scores)
        self._handle_signals()

    # ------------------------------------------------------------------------------------------------ scores, lines

    def _evaluate(
        self, splits: Callable[[Shard], Mapping[str, Iterable[Batch]]], *, save_if_stopped: bool
    ) -> dict[str, float]:
        """Score the networks, and their moving averages under "<split>_ema" names."""
        state = self.state
        self.world.broadcast_buffers(state.modules)
        self.world.broadcast_buffers(state.averages)
        scores: dict[str, float] = {}
        averaged = {role: net.module for role, net in state.averages.items()}
        for modules, suffix in ((state.modules, ""), (averaged, "_ema")):
            if not modules:
                continue
            seed = self.train.seed + 1_000_003 * (state.progress.step + 1)
            try:
                split_scores = evaluate(
                    self.task, splits, modules, self.world, seed=seed,
                    place=partial(to_device, device=self.world.device, channels_last=self.train.channels_last),
                    autocast=partial(autocast, self.train, self.world),
                    stop=lambda: self.signals.pending == STOP, read=self._read,
                )  # fmt: skip
            except WaitsTooLong:
                self._give_up_waiting(save=False)
            if split_scores is None:
                if save_if_stopped:
                    self._save()
                self._stop()
            scores |= {re.sub("^([^/]+)", rf"\1{suffix}", key): value for key, value in split_scores.items()}
        return scores

    def _test(self) -> None:
        """Score the splits kept for the end with the best weights; a run stopped here resumes here."""
        if not self.task.test_batches(self.world.shard()):
            return
        if self.state.best.score is not None:
            self.checkpoints.restore_best(self.state)
        # No checkpoint here: last.pt holds the last weights, not the best
        scores = self._evaluate(self.task.test_batches, save_if_stopped=False)
        self.state.scores |= scores
        self._write(scores)
        self.progress_bar.say("best weights  " + "  ".join(f"{key} {value:.4g}" for key, value in scores.items()))

    def _log(self, scores: Mapping[str, float] | None = None, *, epoch_end: bool = False) -> None:
        state = self.state
        self._check_losses()
        lr, decay = rate_and_decay(next(iter(state.optimizers.values())))
        values: dict[str, float] = {**state.meter.read(self.world), "lr": lr, **decay}
        loss = values.get("train/loss")
        values |= read_probes(state.probes, layers=epoch_end)
        if state.non_finite.counts_skips:
            values["train/refused"] = state.non_finite.skipped
            if note := state.non_finite.note_scaler_skips(state.scaler.get_scale()):
                self.progress_bar.say(note)
        self._write({**values, **(scores or {})})
        step = state.progress.step
        self.progress_bar.show(step, epoch=self.epoch, loss=loss, lr=lr)
        if self.record is not None:
            self.record.log_timing(
                {
                    "step": step, "seconds": round(self.progress_bar.seconds(), 2),
                    "examples_per_s": round(self.progress_bar.rate(step), 1),
                }
            )  # fmt: skip
        if scores:
            text = "  ".join(f"{key} {value:.4g}" for key, value in scores.items())
            self.progress_bar.say(f"epoch {self.epoch:.4g}/{sum(p.epochs for p in self.phases)}  {text}")

    def _write(self, values: Mapping[str, float]) -> None:
        line = {"step": self.state.progress.step, "epoch": round(self.epoch, 6), **values}
        if self.record is not None:
            self.record.log_metrics(line)
        for logger in self.loggers:
            logger.log(line)

    @property
    def epoch(self) -> float:
        """Epochs trained so far, fractional, over all phases."""
        return self._epochs_before() + self.state.progress.epoch + self.state.progress.batch / self.epoch_steps

    def _epochs_before(self) -> int:
        return sum(phase.epochs for phase in self.phases[: self.state.progress.phase])

    def _total_steps(self) -> int:
        total = sum(phase.epochs for phase in self.phases) * self.epoch_steps
        return min(total, self.train.max_steps or total)

    def _out_of_steps(self) -> bool:
        return self.train.max_steps is not None and self.state.progress.step >= self.train.max_steps

    # ------------------------------------------------------------------------------------------------ saving

    def _handle_signals(self) -> None:
        """Save when it is due or a signal asked for it; stop when a signal asked for that. Collective."""
        due = self.world.is_main and time.monotonic() - self._saved_at >= 60 * self.train.checkpoint_minutes
        request = self.world.all_reduce_max(max(self.signals.pending, SAVE if due else NOTHING))
        if request == NOTHING:
            return
        self.signals.saving = False
        self._save()
        if request == STOP:
            self._stop()

    def _read(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        return read_batches(batches, minutes=self.train.timeout_minutes, signals=self.signals)

    def _give_up_waiting(self, *, save: bool) -> NoReturn:
        """End a run whose next batch does not come. Not collective: the other processes may be within a step.

        Args:
            save: Whether the state is that of a step's end. It is saved if no other process is needed for that, and if
                loading draws no numbers in this process.

        Raises:
            Stopped: A signal asked for it.
            RunFailed: The time for a batch is over.
        """
        can_save = save and self.world.size == 1 and self.train.num_workers > 0
        raise end_of_wait(self.signals, self.train.timeout_minutes, save=self._save if can_save else None)

    def _stop(self) -> NoReturn:
        number = self.signals.number if self.signals.pending == STOP else 0
        # Preemption wins: another process may have received SIGTERM first
        preempted = self.world.all_reduce_max(int(number == signal.SIGUSR2))
        raise Stopped(signal.SIGUSR2 if preempted else self.world.all_reduce_max(number))

    def _save(self) -> None:
        self._check_weights()
        offset = self.record.metrics_offset() if self.record is not None else 0
        self.checkpoints.save_last(
            self.state, metrics_offset=offset, faulty_examples=share_faulty_examples(self.task, self.world)
        )  # fmt: skip
        self._saved_at = time.monotonic()

    def _keep_best(self, scores: Mapping[str, float]) -> None:
        """Save the weights when the task's monitored score (of the averaged weights, if kept) is the best so far."""
        monitor = self.task.monitor
        key = re.sub("^([^/]+)", r"\1_ema", monitor.lstrip("-")) if self.state.averages else monitor.lstrip("-")
        if key not in scores:
            raise RuntimeError(f"the task monitors {key!r} and scores only {sorted(scores)}")
        if self.state.best.is_beaten_by(scores[key], monitor=monitor):
            self.state.best = Best(scores[key], math.ceil(self.epoch))
            self.checkpoints.save_best(self.state)

    def _check_losses(self) -> None:
        step = self.state.non_finite.first_non_finite_step()
        if step is not None:
            raise self._diverged(step)

    def _check_weights(self) -> None:
        """Refuse to score or save weights that are not finite, or not those of the other processes."""
        self._check_losses()
        step, modules = self.state.progress.step, self.state.modules
        if (name := first_non_finite_parameter(modules, self.world)) is not None:
            raise self._diverged(step, f"the weight {name} is not finite")
        check_same_weights(modules, self.world, step=step)

    def _diverged(self, step: int, what: str = "the loss is not finite") -> Diverged:
        """Return the error of this run, not finite at a step."""
        last_checkpoint = checkpoint.latest(self.folder / "checkpoints")
        lr, _ = rate_and_decay(next(iter(self.state.optimizers.values())))
        return Diverged.at(step, what, epoch=(step - 1) / self.epoch_steps, lr=lr, last_checkpoint=last_checkpoint)
