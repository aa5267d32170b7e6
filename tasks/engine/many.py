"""Many runs in one process: runs that differ in their optimizers alone are trained at once, on the same batches.

Each run keeps all that is its own: the optimizer object, its schedule and parameter rules, probes, checkpoints and the
files of its record, which are those of the run alone. Only the forward and backward passes are shared, by a wide
network (`tasks.engine.wide`).
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tasks.base import Batch, InputError, ManyUpdate, Shard, StepContext, Task
from tasks.engine import checkpoint
from tasks.engine.config import check_division
from tasks.engine.dead_workers import WaitsTooLong, read_batches
from tasks.engine.distributed import process_group
from tasks.engine.errors import Diverged, Stopped, end_of_wait, translate_errors
from tasks.engine.group_overrides import convert_networks
from tasks.engine.nested import to_device
from tasks.engine.norm_logging import read_probes
from tasks.engine.optim import apply_schedules, evaluates_other_weights, scaled_learning_rates
from tasks.engine.phases import Phase
from tasks.engine.progress_bar import ProgressBar
from tasks.engine.provenance import usable_cores
from tasks.engine.reproducibility import (
    generator_states,
    rounding_facts,
    seed_generators,
    set_generator_states,
    set_reproducibility,
)
from tasks.engine.run import data_facts, model_facts, parameter_rules, record_outcome, scale_invariant_names
from tasks.engine.run_record import RunRecord
from tasks.engine.run_spec import RunSpec
from tasks.engine.signals import NOTHING, SAVE, STOP, listen
from tasks.engine.train_state import Best, Progress
from tasks.engine.trainer import Trainer
from tasks.engine.wide import Part, SharedForward, WideNetwork

# What runs of one process may differ in; everything else decides data, order or network
OWN_KEYS = ("opt", "opt_name", "schedule", "opt_groups", "marks", "recipe", "tag")
# Options of `train` that only a run by itself has, and their values in a run of many
ALONE = {
    "accumulation": 1, "precision": "fp32", "compile": False, "ema_decay": None, "nonfinite": None,
    "channels_last": False,
}  # fmt: skip
NORM_BATCHES = 20  # for the statistics of batch norm at weights that are scored and not trained


def group_key(spec: RunSpec) -> str:
    """Return what runs must share to be trained in one process, as text."""
    shared = {key: value for key, value in spec.config.items() if key not in OWN_KEYS}
    return json.dumps(shared, sort_keys=True, default=str)


def check_trainable_at_once(spec: RunSpec) -> None:
    """Refuse a run that only the usual loop can train.

    Raises:
        InputError: An option is set that runs of many networks do not have.
    """
    for key, value in ALONE.items():
        if (chosen := getattr(spec.train, key)) != value:
            raise InputError(
                f"train.{key} is {chosen}; many networks at once are trained with {value} alone: use launcher=local"
            )
    if spec.config.get("gpus", 1) != 1:
        raise InputError(f"gpus is {spec.config['gpus']}; many networks at once are trained in one process")
    if spec.config.get("phases"):
        raise InputError("phases: many networks at once are trained in one phase; use launcher=local")


class Member(Trainer):
    """One of the runs: everything of a trainer but its forward and backward passes."""

    def saved_position(self) -> dict[str, int] | None:
        """Return phase and step of the folder's last checkpoint, None where there is none."""
        contents = self.checkpoints.load_latest()
        return None if contents is None else {"phase": contents["at"]["phase"], "step": contents["step"]}

    def can_go_back(self, step: int) -> bool:
        """Whether the checkpoint before the last is of this step, or for step 0 whether there is only the last."""
        previous = self.folder / "checkpoints" / "last.previous.pt"
        if not previous.exists():
            return step == 0
        return bool(checkpoint.load(previous, run=self.name)["step"] == step)

    def go_back(self) -> None:
        """Put the checkpoint before the last in its place, or begin anew where there is none."""
        last = self.folder / "checkpoints" / "last.pt"
        previous = last.with_name("last.previous.pt")
        previous.replace(last) if previous.exists() else last.unlink()

    @property
    def has_begun(self) -> bool:
        """Whether an earlier start has written lines of metrics."""
        path = self.folder / "metrics.jsonl"
        return path.exists() and path.stat().st_size > 0

    def begin(self) -> None:
        """Restore state and files from the last checkpoint, and make optimizer and probes; or write a first line."""
        contents, _ = self._resume()
        if not self.is_done:
            self._enter(self.phase, contents)
            self.leave_evaluation()
        if contents is None:
            self._write(read_probes(self.state.probes, layers=True))

    @property
    def phase(self) -> Phase:
        """The only phase."""
        return self.phases[0]

    @property
    def is_done(self) -> bool:
        """Whether all steps are taken and scored."""
        return self.state.progress.phase > 0

    def schedule(self, epoch: float) -> None:
        """Set rates and decays for the next step."""
        for optimizer in self.state.optimizers.values():
            apply_schedules(optimizer, self.phase.schedule or {}, epoch=epoch, epochs=self.phase.epochs)

    def step(self, role: str, *, lr_scale: float) -> None:
        """Clip this network's gradient and step its optimizer."""
        net, train = self.state.modules[role], self.train
        if train.clip_value is not None:
            nn.utils.clip_grad_value_(net.parameters(), train.clip_value)
        if train.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(net.parameters(), train.clip_norm)
            self.state.meter.add(f"train/{'' if role == 'model' else role + '_'}grad_norm", norm)
        optimizer = self.state.optimizers[role]
        with scaled_learning_rates(optimizer, lr_scale):
            optimizer.step()

    def enter_evaluation(self) -> None:
        """Let optimizers that score other weights than they train put these in place."""
        switched = [each for each in self.state.optimizers.values() if evaluates_other_weights(each)]
        for optimizer in switched:
            optimizer.eval()  # type: ignore[attr-defined]
        if switched:
            self._estimate_batch_norm()

    def leave_evaluation(self) -> None:
        """Put the weights that are trained back."""
        for optimizer in self.state.optimizers.values():
            if evaluates_other_weights(optimizer):
                optimizer.train()  # type: ignore[attr-defined]

    @torch.no_grad()
    def _estimate_batch_norm(self) -> None:
        """Take batch norm's statistics again: the running ones are those of the weights that are trained."""
        norms = [
            module
            for net in self.state.modules.values()
            for module in net.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_batches_tracked is not None
        ]
        counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        before = [(norm.momentum, int(count)) for norm, count in zip(norms, counts, strict=True)]
        for net in self.state.modules.values():
            net.train()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        batches = read_batches(self.task.train_batches(self.state.progress.epoch, self.world.shard(), 0))
        for batch in itertools.islice(batches, NORM_BATCHES) if norms else ():
            placed = to_device(batch, self.world.device, channels_last=False)
            for _ in self.task.updates(self.state.modules, placed, StepContext(dict(self.state.loop_states[0]))):
                pass  # the forward pass alone
        for norm, count, (momentum, batches_before) in zip(norms, counts, before, strict=True):
            norm.momentum = momentum
            count.fill_(batches_before)

    def end_epoch(self, scores: Mapping[str, float]) -> None:
        """Write the epoch's line."""
        progress = self.state.progress
        self._check_weights()
        self._log(scores, epoch_end=True)
        if progress.batch == self.epoch_steps:
            self.state.progress = Progress(progress.phase, progress.epoch + 1, 0, progress.step)
        if scores:
            self.state.scores = dict(scores)
            self._keep_best(scores)

    def end(self) -> None:
        """Leave the phase, with a last checkpoint."""
        if not self._out_of_steps():
            self.state.progress = Progress(1, 0, 0, self.state.progress.step)
        self.notices = self.task.notices()
        self._save()

    def log(self) -> None:
        """Write a line of metrics."""
        self._log()

    def save(self) -> None:
        """Write a checkpoint."""
        self._save()

    def diverged_at(self, step: int) -> Diverged:
        """Return the error of this run."""
        return self._diverged(step)

    def _keep_best(self, scores: Mapping[str, float]) -> None:
        # The score alone: best.pt of every network at every evaluation would take as long as the training
        monitor = self.task.monitor
        if self.state.best.is_beaten_by(scores[monitor.lstrip("-")], monitor=monitor):
            self.state.best = Best(scores[monitor.lstrip("-")], -(-int(self.state.progress.step) // self.epoch_steps))


@dataclass
class Losses:
    """Losses of all networks since the last line of metrics, as sums that the members' meters share.

    Attributes:
        first_bad: (number of networks,), the first step whose loss is not finite; 0 for none.
        sums: Name -> (number of networks,).
    """

    first_bad: Tensor
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, values: Tensor, members: Mapping[int, Member]) -> None:
        """Add one value per network; each member's meter holds its entry of the sum."""
        if name in self.sums:
            self.sums[name].add_(values.detach())
        else:
            self.sums[name] = values.detach().double().clone()
            for index, member in members.items():
                if name in member.state.meter.sums:  # of a checkpoint
                    self.sums[name][index] += member.state.meter.sums[name]
                member.state.meter.sums[name] = self.sums[name][index]
        for member in members.values():
            member.state.meter.counts[name] = member.state.meter.counts.get(name, 0) + 1

    def note(self, losses: Tensor, step: int) -> None:
        """Note the step where a loss is not finite for the first time."""
        bad = ~torch.isfinite(losses.detach()) & (self.first_bad == 0)
        self.first_bad.masked_fill_(bad, step)


class ManyTrainer:
    """Trains the members together, to the end, a signal, or until all have diverged.

    Args:
        task: Shared by all.
        wide: Role -> all networks.
        members: In the order of the wide networks' parts.
        on_diverged: Called with the index and the error of a run that diverged; the others go on.
    """

    def __init__(
        self,
        task: Task,
        wide: Mapping[str, WideNetwork],
        members: Sequence[Member],
        *,
        on_diverged: Callable[[int, Diverged], None],
    ) -> None:
        self.task, self.wide, self.on_diverged = task, wide, on_diverged
        self.active = dict(enumerate(members))
        self.count, first = len(members), members[0]
        self.train, self.world, self.epoch_steps = first.train, first.world, first.epoch_steps
        self.epochs = first.phase.epochs
        self.modules = {role: network.module for role, network in wide.items()}
        self.losses = Losses(torch.zeros(self.count, dtype=torch.int64, device=self.world.device))
        self._saved_at = time.monotonic()

    def fit(self) -> None:
        """Train, resuming if the folders hold checkpoints.

        Raises:
            InputError: A file cannot be written, or the checkpoints are of different steps.
            Stopped: A signal asked to stop; checkpoints were saved.
        """
        with listen() as self.signals:
            self._resume()
            if not self.active:
                return
            done = self.progress.step
            self.bar = ProgressBar(
                self._last_step(), done=done, batch_size=self.train.batch_size * self.count,
                visible=self.train.progress,
            )  # fmt: skip
            for member in self.active.values():
                member.signals = self.signals
                member.progress_bar = ProgressBar(1, done=0, batch_size=self.train.batch_size, visible=False)
            if done:
                self.bar.say(f"resumed {len(self.active)} networks at step {done}")
            try:
                while self.active and not self._is_done():
                    self._train_epoch()
                for member in self.active.values():
                    member.end()
            finally:
                self.bar.close()

    # -------------------------------------------------------------------------------------------------- position

    def _resume(self) -> None:
        saved = {index: member.saved_position() for index, member in self.active.items()}
        # Those that are not trained to their end
        steps = {i: at["step"] if at else 0 for i, at in saved.items() if not (at and at["phase"])}
        earliest = min(steps.values(), default=0)
        # A process that is killed while it saves leaves some runs a checkpoint ahead
        ahead = [self.active[index] for index, step in steps.items() if step > earliest]
        begun = earliest > 0 or all(self.active[index].has_begun for index in steps)
        for member in ahead:  # before any of them goes back
            if not (begun and member.can_go_back(earliest)):
                raise InputError(
                    f"{member.folder} holds no checkpoint of step {earliest}, where the runs that are trained "
                    "with it are\nGo on with it alone by launcher=local, or move its folder away."
                )
        for member in ahead:
            member.go_back()
        for index, member in list(self.active.items()):
            member.begin()
            if member.is_done:  # only its record was not finished
                del self.active[index]

    @property
    def progress(self) -> Progress:
        """The position of all."""
        return next(iter(self.active.values())).state.progress

    def _last_step(self) -> int:
        total = self.epochs * self.epoch_steps
        return min(total, self.train.max_steps or total)

    def _is_done(self) -> bool:
        return self.progress.epoch >= self.epochs or self._out_of_steps()

    def _out_of_steps(self) -> bool:
        return self.train.max_steps is not None and self.progress.step >= self.train.max_steps

    # -------------------------------------------------------------------------------------------------- training

    def _train_epoch(self) -> None:
        epoch = self.progress.epoch
        batches = self._read(self.task.train_batches(epoch, self.world.shard(), self.progress.batch))
        for module in self.modules.values():
            module.train()
        while self.progress.batch < self.epoch_steps and not self._out_of_steps():
            try:
                batch = next(batches)
            except WaitsTooLong:
                save = self._save if self.train.num_workers > 0 else None  # else loading has drawn numbers here
                raise end_of_wait(self.signals, self.train.timeout_minutes, save=save) from None
            self._train_step(batch)
            progress = self.progress
            if progress.step % self.train.log_every == 0 and progress.batch < self.epoch_steps:
                self._log(Member.log)
                if not self.active:
                    return
            self._handle_signals()
        is_last = epoch + 1 == self.epochs or self._out_of_steps()
        scores: Mapping[int, Mapping[str, float]] = {}
        if is_last or (epoch + 1) % self.train.eval_epochs == 0:
            try:
                evaluated = self._evaluate()
            except WaitsTooLong:
                raise end_of_wait(self.signals, self.train.timeout_minutes, save=None) from None
            if evaluated is None:
                self._save()
                raise Stopped(self.signals.number)
            scores = evaluated
        self._log(lambda member: member.end_epoch(scores.get(self._index(member), {})))
        if self.active:
            self.bar.show(self.progress.step, epoch=epoch + 1, loss=None, lr=0.0)
            self._handle_signals()

    def _index(self, member: Member) -> int:
        return next(index for index, other in self.active.items() if other is member)

    def _train_step(self, batch: Batch) -> None:
        progress = self.progress
        epoch, step = progress.epoch + progress.batch / self.epoch_steps, progress.step + 1
        for member in self.active.values():
            member.schedule(epoch)
        for update in self._updates(to_device(batch, self.world.device, channels_last=False)):
            for network in self.wide.values():
                network.zero_grad()
            torch.autograd.backward(update.losses.sum())
            prefix = "" if update.network == "model" else f"{update.network}_"
            self.losses.note(update.losses, step)
            self.losses.add(f"train/{prefix}loss", update.losses, self.active)
            for name, values in update.log.items():
                self.losses.add(name, values, self.active)
            for member in self.active.values():
                member.step(update.network, lr_scale=update.lr_scale)
        for member in self.active.values():
            member.state.progress.batch += 1
            member.state.progress.step += 1
        self.bar.step()

    def _updates(self, batch: Batch) -> Iterator[ManyUpdate]:
        members = [self.active.get(index) for index in range(self.count)]
        states = [member.state.loop_states[0] if member is not None else {} for member in members]
        contexts = [StepContext(state) for state in states]
        at_once = self.task.many_updates(self.modules, batch, contexts)
        if at_once is not None:
            yield from at_once
            return
        # One network after another, in step: the first computes the outputs of all
        shared, nets = self._parts()
        streams = [self.task.updates(parts, batch, context) for parts, context in zip(nets, contexts, strict=True)]
        for updates in zip(*streams, strict=True):
            first = updates[0]
            yield ManyUpdate(
                torch.stack([update.loss for update in updates]), first.network,
                {name: torch.stack([update.log[name] for update in updates]) for name in first.log}, first.lr_scale,
            )  # fmt: skip
            for forward in shared:
                forward.forget()

    def _parts(self) -> tuple[list[SharedForward], list[dict[str, nn.Module]]]:
        """Return shared forward passes and, for each network, role -> what stands for it."""
        shared = {role: SharedForward(module, self.count) for role, module in self.modules.items()}
        nets: list[dict[str, nn.Module]] = [
            {role: Part(forward, index) for role, forward in shared.items()} for index in range(self.count)
        ]
        return list(shared.values()), nets

    def _alone(self) -> list[Mapping[str, nn.Module]]:
        """Return each network by itself, in evaluation mode."""
        members = [self.active.get(index) for index in range(self.count)]
        return [
            {} if member is None else {role: net.eval() for role, net in member.state.modules.items()}
            for member in members
        ]

    def _read(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        return read_batches(batches, minutes=self.train.timeout_minutes, signals=self.signals)

    # ---------------------------------------------------------------------------------------------- scores, lines

    def _evaluate(self) -> dict[int, dict[str, float]] | None:
        """Score all networks on every split, with random draws of their own as in a run alone; None: asked to stop."""
        device, seed = self.world.device, self.train.seed + 1_000_003 * (self.progress.step + 1)
        random_states = generator_states(device)
        seed_generators(seed)
        scores: dict[int, dict[str, float]] = {index: {} for index in self.active}
        try:
            for member in self.active.values():
                member.enter_evaluation()
            for module in self.modules.values():
                module.eval()
            splits: Mapping[str, Iterable[Batch]] = self.task.eval_batches(Shard())
            for split, batches in splits.items():
                records: dict[int, list[Any]] = {index: [] for index in self.active}
                states: dict[int, dict[str, Any]] = {index: {} for index in self.active}
                with torch.no_grad():
                    for batch in self._read(batches):
                        if self.signals.pending == STOP:
                            return None
                        nets = self._alone() if self.task.predicts_alone else self._parts()[1]
                        placed = to_device(batch, device, channels_last=False)
                        for index in self.active:
                            records[index].append(self.task.predict(nets[index], placed, states[index]))
                for index in self.active:
                    scores[index] |= self.task.score(split, records[index])
        finally:
            for member in self.active.values():
                member.leave_evaluation()
            for module in self.modules.values():
                module.train()
            set_generator_states(random_states, device)
        return scores

    def _log(self, write: Callable[[Member], None]) -> None:
        """Let every run write a line; one whose loss or weights are not finite leaves the others here."""
        bad = self.losses.first_bad.tolist()
        for index, member in list(self.active.items()):
            try:
                if bad[index]:
                    raise member.diverged_at(bad[index])
                write(member)
            except Diverged as error:
                del self.active[index]
                self.on_diverged(index, error)
                self.bar.say(f"{member.name} diverged at step {error.step}")
        self.losses.sums = {}

    # ----------------------------------------------------------------------------------------------------- saving

    def _handle_signals(self) -> None:
        due = time.monotonic() - self._saved_at >= 60 * self.train.checkpoint_minutes
        request = max(self.signals.pending, SAVE if due else NOTHING)
        if request == NOTHING or not self.active:
            return
        self.signals.saving = False
        self._save()
        if request == STOP:
            raise Stopped(self.signals.number)

    def _save(self) -> None:
        bad = self.losses.first_bad.tolist()
        for index, member in self.active.items():
            if not bad[index]:  # else it has diverged, which its next line says
                member.save()
        self._saved_at = time.monotonic()


def run_many(specs: Sequence[RunSpec]) -> dict[str, BaseException | None]:
    """Run or resume runs of one group together, and return name -> None or the error that ended the run.

    Runs that are finished are left out, and so are their networks.

    Raises:
        InputError: A user's value is wrong, or the runs differ in more than their optimizers.
        RunFailed: The machine failed all runs; recorded with the status "failed".
        Stopped: A signal asked to stop; the same call resumes.
    """
    outcomes: dict[str, BaseException | None] = {spec.name: None for spec in specs}
    specs = [spec for spec in specs if spec.finished() is None]
    if not specs:
        return outcomes
    for spec in specs:
        check_trainable_at_once(spec)
    if len({group_key(spec) for spec in specs}) > 1:
        raise InputError("many networks at once: the runs differ in more than their optimizers; use launcher=many")
    train = specs[0].train
    if train.threads is not None:
        torch.set_num_threads(max(1, min(train.threads, usable_cores())))
    set_reproducibility(train)
    with process_group(train.device, timeout_minutes=train.timeout_minutes) as world, ExitStack() as stack:
        check_division(train, world.size)
        records = []
        for spec in specs:
            record = RunRecord(spec.folder, name=spec.name, config=spec.config, argv=spec.argv)
            stack.callback(record.close)
            records.append(record)
        with translate_errors():
            return outcomes | _run_many(specs, records, world)


def _run_many(specs: Sequence[RunSpec], records: Sequence[RunRecord], world: Any) -> dict[str, BaseException | None]:
    train, seconds = specs[0].train, time.monotonic()
    seed_generators(train.seed)
    task = specs[0].make_task()
    if task.test_batches(world.shard()):
        raise InputError(
            "many networks at once: the task scores a split with the best weights, which only runs alone keep; use "
            "launcher=local"
        )
    convert_networks(task.networks, specs[0].normalise, eps=specs[0].normalise_eps)
    names, marks = scale_invariant_names(specs[0], task, world, recorded=None)
    wide = {role: WideNetwork(net.to(world.device), len(specs)) for role, net in task.networks.items()}
    for role, inputs in task.example_inputs().items():
        wide[role].check(to_device(inputs, world.device, channels_last=False))
    members = []
    for index, (spec, record) in enumerate(zip(specs, records, strict=True)):
        record.update(
            data=data_facts(task, record), model=model_facts(task, names), monitor=task.monitor,
            numerics={**rounding_facts(spec.train, world.device), "networks_at_once": len(specs)},
        )  # fmt: skip
        loggers = spec.make_loggers()
        for logger in loggers:
            logger.start(record.entries, spec.folder)
        networks = {role: network.members[index] for role, network in wide.items()}
        members.append(
            Member(
                task,
                spec.make_phases(),
                spec.train,
                parameter_rules(spec, task, names, marks),
                spec.folder,
                world,
                name=f"{spec.experiment}/{spec.name}",
                record=record,
                loggers=loggers,
                probed=names,
                networks=networks,
            )
        )
    facts = records[0].entries["data"]
    print(
        f"{specs[0].experiment}, seed {train.seed}: {len(specs)} networks at once on {facts.get('name', '?')}, "
        f"{members[0].phase.epochs * members[0].epoch_steps} steps of {train.batch_size} examples",
        flush=True,
    )
    outcomes: dict[str, BaseException | None] = {spec.name: None for spec in specs}

    def on_diverged(index: int, error: Diverged) -> None:
        outcomes[specs[index].name] = error
        record_outcome(specs[index], records[index], members[index].loggers, members[index], error)

    trainer = ManyTrainer(task, wide, members, on_diverged=on_diverged)
    try:
        with translate_errors():
            trainer.fit()
    except BaseException as error:
        for index in trainer.active:
            record_outcome(specs[index], records[index], members[index].loggers, members[index], error)
        raise
    ended = [index for index, spec in enumerate(specs) if outcomes[spec.name] is None]
    for index in ended:
        record_outcome(specs[index], records[index], members[index].loggers, members[index], None)
    scores = [members[index].state.scores.get(task.monitor.lstrip("-")) for index in ended]
    known = [score for score in scores if score is not None]
    span = f"{task.monitor.lstrip('-')} {min(known):.4g} to {max(known):.4g}" if known else "no scores"
    print(f"    finished in {time.monotonic() - seconds:.0f} s of process {os.getpid()}: {span}", flush=True)
    return outcomes
