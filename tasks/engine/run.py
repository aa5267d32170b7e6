"""One run from its configuration to its last line: record, task, trainer, loggers, pictures."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from adamp import scale_invariant_parameters
from tasks.base import Task
from tasks.engine import numerics
from tasks.engine.checkpoint import seed_generators
from tasks.engine.config import check_division
from tasks.engine.distributed import World, joined
from tasks.engine.faults import explained
from tasks.engine.loop import Trainer
from tasks.engine.marks import convert_networks, marked_rules, normalised_parameters
from tasks.engine.optim import Rule
from tasks.engine.outcomes import Diverged, Stopped
from tasks.engine.plan import Plan
from tasks.engine.records import RunRecord, Sink, now, usable_cores

log = logging.getLogger(__name__)


def run(plan: Plan) -> dict[str, float]:
    """Run, resume or skip one run, and return its last scores.

    Raises:
        InputError: Something the user gave is wrong.
        RunFailed: The loss is not finite, or the machine failed the run; recorded with the status "failed".
        Stopped: A signal asked to stop; the same call resumes.
    """
    train = plan.train
    if train.threads is not None:
        torch.set_num_threads(max(1, min(train.threads, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))))
    numerics.set_policy(train)
    with joined(train.device, timeout_minutes=train.timeout_minutes) as world:
        check_division(train, world.size)
        record = world.on_main(
            lambda: RunRecord(
                plan.folder, name=plan.name, config=plan.config, processes=world.size, argv=plan.argv
            )
        )  # fmt: skip
        try:
            if world.share(record is not None and record.finished):
                scores = world.share(record.record["scores"] if record is not None else None)
                if record is not None:
                    plan.say_end(record.record, "was finished before")
                return dict(scores)
            with explained():
                return _run(plan, world, record)
        finally:
            if record is not None:
                record.close()


def _run(plan: Plan, world: World, record: RunRecord | None) -> dict[str, float]:
    seed_generators(plan.train.seed)  # the same weights on every process
    task = plan.make_task()
    convert_networks(task.networks, plan.normalise, eps=plan.normalise_eps)
    probed = _scale_invariant(task, world, record)
    if record is not None:
        rounding = numerics.policy(plan.train, world.device)
        record.update(data=task.describe(), model=_model_facts(task, probed), monitor=task.monitor, numerics=rounding)
    sinks: Sequence[Sink] = plan.make_sinks() if record is not None else ()
    trainer = Trainer(
        task, plan.make_phases(), plan.train, _rules(plan, task, world, probed or {}), plan.folder, world,
        name=f"{plan.experiment}/{plan.name}", record=record, sinks=sinks, probed=probed or {},
    )  # fmt: skip
    if record is not None:
        for sink in sinks:
            sink.start(record.record, plan.folder)
        _say_start(plan, world, record.record, trainer)
    try:
        with explained():
            scores = trainer.fit()
    except BaseException as error:
        if record is not None:
            _close(plan, record, sinks, trainer, error)
        raise
    if record is not None:
        _close(plan, record, sinks, trainer, None)
        plan.say_end(record.record, "finished")
    return scores


def _close(plan: Plan, record: RunRecord, sinks: Sequence[Sink], trainer: Trainer, error: BaseException | None) -> None:
    """Write the last word of a run, however it ended, and draw it."""
    status = "finished"
    if error is not None:
        status = "interrupted" if isinstance(error, Stopped | KeyboardInterrupt) else "failed"
    try:
        record.update(
            status=status, ended=now(), error=None if error is None else str(error) or type(error).__name__,
            steps=trainer.at.step, epochs=round(trainer.epoch, 4), scores=trainer.scores, best=vars(trainer.best),
            checkpoint="checkpoints/last.pt", diverged_at=error.step if isinstance(error, Diverged) else None,
            notices=trainer.task.notices() if trainer.notices is None else trainer.notices,
            refused_updates=trainer.guard.refused,
        )  # fmt: skip
        if plan.draw is not None and trainer.at.step > 0:  # before that there is only the error to look at
            plan.draw(plan.folder)
    except Exception as trouble:
        # A picture or a full disk must not hide what ended the run, nor turn a good run into a failed one.
        log.warning("the run's last record or picture could not be written: %s", trouble)
    for sink in sinks:
        sink.finish(record.record, plan.folder)


def _scale_invariant(task: Task, world: World, record: RunRecord | None) -> dict[str, list[str]] | None:
    """Return network role -> names of its scale-invariant parameters, found once a run by rescaling."""
    known = record.record.get("model", {}).get("scale_invariant") if record is not None else None
    if world.main and known is None:
        inputs = task.example_inputs()
        known = {role: sorted(scale_invariant_parameters(task.networks[role], batch)) for role, batch in inputs.items()}
    found: dict[str, list[str]] = world.share(known)
    return found


def _rules(plan: Plan, task: Task, world: World, invariant: Mapping[str, Sequence[str]]) -> Sequence[Rule]:
    """Return the parameter rules, with those that the marks stand for."""
    if not plan.marks:
        return plan.rules
    having = {"scale_invariant": invariant, "normalised": normalised_parameters(task.networks)}
    if "filter_invariant" in plan.marks:
        found = None
        if world.main:
            inputs = task.example_inputs()
            found = {
                role: sorted(scale_invariant_parameters(task.networks[role], batch, per_filter=True))
                for role, batch in inputs.items()
            }
        having["filter_invariant"] = world.share(found)
    return marked_rules(plan.rules, plan.marks, networks=task.networks, having=having)


def _model_facts(task: Task, probed: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    sizes = {role: {n: p.numel() for n, p in net.named_parameters()} for role, net in task.networks.items()}
    total = sum(sum(named.values()) for named in sizes.values())
    share = None
    if probed:
        share = sum(sizes[role][name] for role, names in probed.items() for name in names) / total
    return {"parameters": total, "scale_invariant_share": share, "scale_invariant": dict(probed or {})}


def _say_start(plan: Plan, world: World, record: Mapping[str, Any], trainer: Trainer) -> None:
    data, model = record["data"], record["model"]
    share = model["scale_invariant_share"]
    print(f"run      {plan.experiment}/{plan.name}")
    print(f"folder   {plan.folder}")
    many = f"{world.size} processes" if world.size > 1 else "1 process"
    print(f"device   {world.device.type}, {many}; {record['hardware']['machine']}")
    sizes = f"{data.get('train_examples', '?')} training and {data.get('val_examples', '?')} validation examples"
    print(f"data     {data.get('name', '?')}: {sizes}")
    if "baseline" in data:
        print(f"baseline {data['baseline']}")
    invariant = f", {100 * share:.2f} % scale-invariant" if share is not None else ""
    print(f"network  {model['parameters']:,} parameters{invariant}")
    epochs = sum(phase.epochs for phase in trainer.phases)
    print(
        f"length   {epochs} epochs x {trainer.epoch_steps} steps of {plan.train.batch_size} examples",
        flush=True,
    )
