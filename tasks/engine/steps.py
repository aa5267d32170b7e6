"""One optimizer step: micro-batches, backward, clipping, the optimizer, and what a step that is not finite does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tasks.base import Batch, StepContext, Update
from tasks.engine.meters import placed
from tasks.engine.optim import gradient_norm, scaled_rates

if TYPE_CHECKING:
    from tasks.engine.loop import Trainer

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def take(trainer: Trainer, batches: Sequence[Batch]) -> None:
    """Take every optimizer step that the task asks for on one global batch, cut into micro-batches."""
    trainer.guard.begin(trainer)
    streams: list[Any] = [None] * len(batches)
    while True:
        last: Update | None = None
        for i, batch in enumerate(batches):
            with _context(trainer, sync=i == len(batches) - 1):
                if streams[i] is None:
                    context = StepContext(trainer.loop_states[i], trainer.world.gather_rows)
                    streams[i] = trainer.task.updates(trainer.nets, place(trainer, batch), context)
                update: Update | None = next(streams[i], None)
                if update is None:
                    continue
                last = update
                _backward(trainer, update, len(batches))
        if last is None:
            break
        _apply(trainer, last.network, lr_scale=last.lr_scale)
    trainer.guard.end(trainer)


def place(trainer: Trainer, batch: Batch) -> Batch:
    """Move a batch to the device."""
    return placed(batch, trainer.world.device, channels_last=trainer.train.channels_last)


def autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    """Make the context of the run's precision."""
    if trainer.train.precision == "fp32":
        return nullcontext()
    return torch.autocast(trainer.world.device.type, dtype=DTYPES[trainer.train.precision])


def _context(trainer: Trainer, *, sync: bool) -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(autocast(trainer))
    if not sync:
        for net in trainer.nets.values():
            wrapped = getattr(net, "_orig_mod", net)  # below torch.compile
            if isinstance(wrapped, DistributedDataParallel):
                stack.enter_context(wrapped.no_sync())
    return stack


def _backward(trainer: Trainer, update: Update, parts: int) -> None:
    add = trainer.guard.hold if trainer.guard.policy else trainer.meter.add
    if not trainer.guard.policy:
        trainer.watch.see(update.loss, trainer.at.step + 1)
    add(f"train/{_prefix(update.network)}loss", update.loss)
    for name, value in update.log.items():
        add(name, value)
    with torch.autocast(trainer.world.device.type, enabled=False):
        loss = trainer.guard.scaled(update.loss / parts)
        trainer.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]


def _apply(trainer: Trainer, role: str, *, lr_scale: float) -> None:
    """Unscale, clip and step one network's optimizer; leave the step out where the guard refuses it."""
    net, optimizer, train = trainer.bare[role], trainer.optimizers[role], trainer.train
    trainer.scaler.unscale_(optimizer)
    if trainer.fresh:
        trainer.world.check_equal(gradient_norm(net), f"the gradient of {role!r}")
        trainer.fresh = False
    if trainer.guard.policy is None or trainer.guard.accepts(net, trainer.meter):
        if train.clip_value is not None:
            nn.utils.clip_grad_value_(net.parameters(), train.clip_value)
        if train.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(net.parameters(), train.clip_norm)
            trainer.meter.add(f"train/{_prefix(role)}grad_norm", norm)
        with scaled_rates(optimizer, lr_scale):
            trainer.scaler.step(optimizer)
        if role in trainer.averages:
            trainer.averages[role].update_parameters(net)
    trainer.scaler.update()
    for each in trainer.optimizers.values():
        each.zero_grad(set_to_none=True)


def _prefix(role: str) -> str:
    return "" if role == "model" else f"{role}_"
