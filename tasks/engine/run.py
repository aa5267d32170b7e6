"""One run from its specification to its last line: record, task, trainer, loggers, report."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from adamp import scale_invariant_parameters
from tasks.base import Task
from tasks.engine.config import check_division
from tasks.engine.dead_workers import was_reading
from tasks.engine.distributed import World, process_group
from tasks.engine.errors import ANOTHER, Diverged, RunFailed, Stopped, translate_errors
from tasks.engine.group_overrides import Marks, convert_networks, override_by_marks
from tasks.engine.loggers import RunLogger
from tasks.engine.optim import Rule
from tasks.engine.provenance import now, usable_cores
from tasks.engine.record_schema import ModelFacts
from tasks.engine.reproducibility import rounding_facts, seed_generators, set_reproducibility
from tasks.engine.run_record import RunRecord
from tasks.engine.run_spec import RunSpec
from tasks.engine.trainer import Trainer

log = logging.getLogger(__name__)

Names = dict[str, list[str]]  # network role -> names of some of its parameters


def run(spec: RunSpec) -> dict[str, float]:
    """Run, resume or skip one run, and return its last scores.

    Raises:
        InputError: A user's value is wrong.
        RunFailed: The loss is not finite, or the machine failed the run; recorded with the status "failed".
        Stopped: A signal asked to stop; the same call resumes.
    """
    train = spec.train
    if train.threads is not None:
        torch.set_num_threads(max(1, min(train.threads, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))))
    set_reproducibility(train)
    with process_group(train.device, timeout_minutes=train.timeout_minutes) as world:
        check_division(train, world.size)
        record = world.run_on_rank0(
            lambda: RunRecord(
                spec.folder, name=spec.name, config=spec.config, processes=world.size, argv=spec.argv
            )
        )  # fmt: skip
        try:
            if world.broadcast_object(record is not None and record.finished):
                scores = world.broadcast_object(record.entries["scores"] if record is not None else None)
                if record is not None:
                    spec.print_summary(record.entries, "was finished before")
                return dict(scores)
            with translate_errors():
                return _run(spec, world, record)
        finally:
            if record is not None:
                record.close()


def _run(spec: RunSpec, world: World, record: RunRecord | None) -> dict[str, float]:
    seed_generators(spec.train.seed)  # the same weights on every process
    task = spec.make_task()
    convert_networks(task.networks, spec.normalise, eps=spec.normalise_eps)
    recorded = record.entries.get("model") if record is not None else None
    scale_invariant, marks = scale_invariant_names(spec, task, world, recorded=recorded and recorded["scale_invariant"])
    facts = world.run_on_rank0(lambda: data_facts(task, record))
    if record is not None and facts is not None:
        rounding = rounding_facts(spec.train, world.device)
        record.update(data=facts, model=model_facts(task, scale_invariant), monitor=task.monitor, numerics=rounding)
    loggers: Sequence[RunLogger] = spec.make_loggers() if record is not None else ()
    trainer = Trainer(
        task, spec.make_phases(), spec.train, parameter_rules(spec, task, scale_invariant, marks), spec.folder, world,
        name=f"{spec.experiment}/{spec.name}", record=record, loggers=loggers, probed=scale_invariant,
    )  # fmt: skip
    if record is not None:
        for logger in loggers:
            logger.start(record.entries, spec.folder)
        _print_header(spec, world, record.entries, trainer)
    try:
        with report_own_failure(world), translate_errors():
            scores = trainer.fit()
    except BaseException as error:
        if record is not None:
            record_outcome(spec, record, loggers, trainer, error)
        raise
    if record is not None:
        record_outcome(spec, record, loggers, trainer, None)
        spec.print_summary(record.entries, "finished")
    return scores


@contextmanager
def report_own_failure(world: World) -> Iterator[None]:
    """Print an error that this process alone met, e.g. as it read a batch: process 0 learns only that it has ended."""
    try:
        yield
    except Exception as error:
        is_own = isinstance(error, RunFailed) and not str(error).startswith(ANOTHER)
        if not world.is_main and (is_own or was_reading(error)):
            print(f"process {world.rank} failed: {error}", file=sys.stderr, flush=True)
        raise


def data_facts(task: Task, record: RunRecord | None) -> dict[str, Any]:
    """Return the facts about the data, once they are those that the run began with."""
    facts = task.describe()
    if record is not None:
        record.check_data(facts)
    return facts


def record_outcome(
    spec: RunSpec, record: RunRecord, loggers: Sequence[RunLogger], trainer: Trainer, error: BaseException | None
) -> None:
    """Record the final status, write the report and close the loggers."""
    state, status = trainer.state, "finished"
    if error is not None:
        status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
    try:
        record.update(
            status=status, ended=now(), error=None if error is None else str(error) or type(error).__name__,
            steps=state.progress.step, epochs=round(trainer.epoch, 4), scores=state.scores, best=vars(state.best),
            checkpoint="checkpoints/last.pt", diverged_at=error.step if isinstance(error, Diverged) else None,
            notices=trainer.task.notices(),
            refused_updates=state.non_finite.skipped,
        )  # fmt: skip
        if spec.write_report is not None and state.progress.step > 0:  # else there is nothing to draw
            spec.write_report(spec.folder)
    except Exception as problem:
        # A failing report or a full disk must not hide what ended the run, nor fail a finished run
        log.warning("the run's last record or picture could not be written: %s", problem)
    for logger in loggers:
        logger.finish(record.entries, spec.folder)


def scale_invariant_names(spec: RunSpec, task: Task, world: World, *, recorded: Names | None) -> tuple[Names, Marks]:
    """Return network role -> names of its scale-invariant parameters, and their marks.

    Both are found by rescaling. The names of a record are kept, and their marks are found only if overrides need them.
    """
    names, marks = recorded, {}
    if world.is_main and (names is None or {"scale_invariant", "filter_invariant"} & spec.overrides_by_property.keys()):
        for role, inputs in task.example_inputs().items():
            marks[role] = scale_invariant_parameters(task.networks[role], inputs)
        if names is None:
            names = {role: sorted(marks_of_role) for role, marks_of_role in marks.items()}
    names, marks = world.broadcast_object((names, marks))
    return dict(names), marks


def parameter_rules(spec: RunSpec, task: Task, scale_invariant: Names, marks: Marks) -> Sequence[Rule]:
    """Return the parameter rules, overrides by property included."""
    if not spec.overrides_by_property:
        return spec.rules
    return override_by_marks(
        spec.rules, spec.overrides_by_property, networks=task.networks, scale_invariant=scale_invariant, marks=marks
    )


def model_facts(task: Task, scale_invariant: Names) -> ModelFacts:
    sizes = {role: {n: p.numel() for n, p in net.named_parameters()} for role, net in task.networks.items()}
    total = sum(sum(named.values()) for named in sizes.values())
    share = None
    if scale_invariant:
        share = sum(sizes[role][name] for role, names in scale_invariant.items() for name in names) / total
    return {"parameters": total, "scale_invariant_share": share, "scale_invariant": scale_invariant}


def _print_header(spec: RunSpec, world: World, record: Mapping[str, Any], trainer: Trainer) -> None:
    data, model = record["data"], record["model"]
    share = model["scale_invariant_share"]
    print(f"run      {spec.experiment}/{spec.name}")
    print(f"folder   {spec.folder}")
    processes = f"{world.size} processes" if world.size > 1 else "1 process"
    print(f"device   {world.device.type}, {processes}; {record['hardware']['machine']}")
    sizes = f"{data.get('train_examples', '?')} training and {data.get('val_examples', '?')} validation examples"
    print(f"data     {data.get('name', '?')}: {sizes}")
    if "baseline" in data:
        print(f"baseline {data['baseline']}")
    invariant = f", {100 * share:.2f} % scale-invariant" if share is not None else ""
    print(f"network  {model['parameters']:,} parameters{invariant}")
    epochs = sum(phase.epochs for phase in trainer.phases)
    print(
        f"length   {epochs} epochs x {trainer.epoch_steps} steps of {spec.train.batch_size} examples",
        flush=True,
    )
