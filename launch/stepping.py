"""Training steps of a planned run, one at a time, with the time that each part of a step takes.

The same task, networks, parameter rules, optimizers and probes as `tasks.engine` makes, but in the hands of a script
that measures: no schedule, no checkpoints, no lines of metrics, one process.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamp import NormProbe, scale_invariant_parameters
from tasks.base import Batch, InputError, Shard, StepContext, Task
from tasks.engine.config import Train
from tasks.engine.group_overrides import convert_networks, override_by_marks
from tasks.engine.nested import to_device
from tasks.engine.norm_logging import VARIANT, attach_probes
from tasks.engine.optim import build_optimizer, parameter_groups
from tasks.engine.reproducibility import seed_generators
from tasks.engine.run_spec import RunSpec
from tasks.engine.train_step import DTYPES

PARTS = ("data", "forward", "backward", "optimizer")


class Laps:
    """Durations between marks: of the device's own clock on CUDA, of this process's CPU time or of the wall elsewhere.

    Args:
        device: Where the work is done.
        wall: On a CPU: read the wall clock, as a prediction needs, and not CPU time, which other work does not disturb.
    """

    def __init__(self, device: torch.device, *, wall: bool = False) -> None:
        self._cuda = device.type == "cuda"
        self._read = time.perf_counter if wall else time.process_time
        self._marks: list[tuple[str, Any]] = []
        self.mark("")

    def mark(self, part: str) -> None:
        """End a part of the step; what follows belongs to the next mark."""
        if self._cuda:  # in the device's queue, so nothing has to wait for it
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, self._read()))

    def seconds(self) -> dict[str, float]:
        """Return part -> seconds since the first mark; on CUDA it waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
        found = dict.fromkeys(PARTS, 0.0)
        for (_, begun), (part, ended) in zip(self._marks, self._marks[1:], strict=False):
            found[part] += begun.elapsed_time(ended) / 1000 if self._cuda else ended - begun
        return found


@dataclass
class Stepper:
    """A planned run, ready to take steps.

    Attributes:
        task: The task.
        train: The engine's options.
        device: Where it runs.
        optimizers: Of each network.
        probes: Of each network, sampling every step they are attached to.
        shard: How a global batch is cut.
        wall: See `Laps`.
        last: The last batch, on the device.
    """

    task: Task
    train: Train
    device: torch.device
    optimizers: Mapping[str, Optimizer]
    probes: Mapping[str, NormProbe]
    shard: Shard
    wall: bool = False
    last: Batch = None
    context: StepContext = field(default_factory=StepContext)

    def __post_init__(self) -> None:
        """Start on the data."""
        self._batches = self._forever()

    def _forever(self) -> Iterator[Batch]:
        epoch = 0
        while True:
            yield from self.task.train_batches(epoch, self.shard)
            epoch += 1

    def step(self, *, parts: int = 1, probed: bool = False) -> dict[str, float]:
        """Take the optimizer steps of one global batch, or of `parts` micro-batches of it; return seconds of each part.

        Args:
            parts: Micro-batches whose gradients are added up before a step.
            probed: Sample the probes at this step; their time counts as the optimizer's.
        """
        handles = [self.probes[role].attach(self._optimizer(role)) for role in self.probes] if probed else []
        laps = Laps(self.device, wall=self.wall)
        for part in range(parts):
            self.last = to_device(next(self._batches), self.device, channels_last=self.train.channels_last)
            laps.mark("data")
            self._updates(laps, apply=part == parts - 1, share=parts)
        for handle in handles:
            handle.remove()
        return laps.seconds()

    def _updates(self, laps: Laps, *, apply: bool, share: int) -> None:
        updates = self.task.updates(self.task.networks, self.last, self.context)
        while True:
            with self.autocast():
                update = next(updates, None)
            laps.mark("forward")
            if update is None:
                return
            (update.loss / share).backward()
            laps.mark("backward")
            if apply:
                net, optimizer = self.task.networks[update.network], self.optimizers[update.network]
                if self.train.clip_value is not None:
                    nn.utils.clip_grad_value_(net.parameters(), self.train.clip_value)
                if self.train.clip_norm is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), self.train.clip_norm)
                optimizer.step()
                for each in self.optimizers.values():
                    each.zero_grad(set_to_none=True)
            laps.mark("optimizer")

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the forward pass at the run's precision."""
        if self.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.train.precision])

    def _optimizer(self, role: str) -> Optimizer:
        return self.optimizers[role.removesuffix(VARIANT)]


def prepare(plan: RunSpec, *, device: torch.device, examples: int | None = None, wall: bool = False) -> Stepper:
    """Make a planned run's task, networks, optimizers and probes on a device.

    Args:
        plan: The run.
        device: Where it will run.
        examples: Examples in a micro-batch, about: the smallest cut of the global batch with at least as many. None
            takes what the run's own accumulation gives.
        wall: See `Laps`.

    Raises:
        InputError: The run has no optimizer, or what its task refuses.
    """
    train = plan.train
    seed_generators(train.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    task = plan.make_task()
    convert_networks(task.networks, plan.normalise, eps=plan.normalise_eps)
    rules = _rules(plan, task)
    for net in task.networks.values():
        net.to(device).train()
        if train.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    factory = next((phase.opt for phase in plan.make_phases() if phase.opt is not None), None)
    if factory is None:
        raise InputError("phases: the first phase has no optimizer")
    optimizers = {
        role: build_optimizer(factory, parameter_groups(role, net, rules)) for role, net in task.networks.items()
    }
    every = Train(**{**vars(train), "probe_every": 1, "oscillation_window": 0}) if train.probe_every else train
    probes = {}
    # The engine's own rule but for one thing: every matrix is probed, where a run leaves out what is not
    # scale-invariant, such as the classifier. Finding that out takes a forward pass a parameter.
    for role in task.networks if train.probe_every else ():
        made = attach_probes({role: task.networks[role]}, optimizers, every, {})
        for name, probe in made.items():
            probes[name] = probe
            if probe._handle is not None:
                probe._handle.remove()
    parts = train.accumulation if examples is None else _cut(train.batch_size, examples)
    return Stepper(task, train, device, optimizers, probes, Shard(accumulation_steps=parts), wall)


def _rules(plan: RunSpec, task: Task) -> Sequence[Mapping[str, Any]]:
    """Return the parameter rules, overrides by property included, as the engine does."""
    overrides = plan.overrides_by_property
    if not overrides:
        return plan.rules
    examples = task.example_inputs() if {"scale_invariant", "filter_invariant"} & overrides.keys() else {}
    marks = {role: scale_invariant_parameters(task.networks[role], inputs) for role, inputs in examples.items()}
    names = {role: sorted(marks_of_role) for role, marks_of_role in marks.items()}
    return override_by_marks(plan.rules, overrides, networks=task.networks, scale_invariant=names, marks=marks)


def _cut(batch_size: int, examples: int) -> int:
    """Return the largest number of equal parts of a batch with at least so many examples each."""
    return max(
        n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n >= min(examples, batch_size)
    )


def batch_length(batch: Batch) -> int:
    """Return the examples in a batch: the first length of its first tensor."""
    if isinstance(batch, Tensor):
        return len(batch)
    values = batch.values() if isinstance(batch, Mapping) else batch
    return next((batch_length(v) for v in values if isinstance(v, Tensor | Mapping | tuple | list)), 1)
