"""Gradient accumulation, clipping and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tasks.base import Batch, StepContext, Task, Update
from tasks.engine.config import Train
from tasks.engine.distributed import World
from tasks.engine.nested import to_device
from tasks.engine.optim import gradient_norm, scaled_learning_rates
from tasks.engine.train_state import TrainState

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def train_step(
    state: TrainState,
    task: Task,
    wrapped_modules: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    *,
    train: Train,
    world: World,
    compare_gradients: bool = False,
) -> int:
    """Take every optimizer step that the task requests on one global batch, and return their number.

    Args:
        state: Updated in place.
        task: Yields the losses.
        wrapped_modules: Role -> network for the forward pass: wrapped for gradient averaging, compiled.
        batches: The micro-batches.
        train: Options.
        world: The processes.
        compare_gradients: Check that the first gradient is the same on all processes.
    """
    state.non_finite.begin_step(state.modules, state.loop_states)
    num_updates = 0
    streams: list[Iterator[Update] | None] = [None] * len(batches)
    while True:
        # Forward and backward of every micro-batch; gradients are averaged over processes in the last one only
        last_update: Update | None = None
        for i, batch in enumerate(batches):
            with _forward_context(wrapped_modules, train, world, sync=i == len(batches) - 1):
                stream = streams[i]
                if stream is None:
                    moved = to_device(batch, world.device, channels_last=train.channels_last)
                    context = StepContext(state.loop_states[i], world.gather_rows, batches)
                    stream = streams[i] = task.updates(wrapped_modules, moved, context)
                update = next(stream, None)
                if update is not None:
                    last_update = update
                    _backward(state, update, len(batches), world=world)
        if last_update is None:
            break
        # One optimizer step from the accumulated gradient
        compare = compare_gradients and num_updates == 0
        _apply(state, last_update, train=train, world=world, compare_gradients=compare)
        num_updates += 1
    state.loop_states = state.non_finite.end_step(state.modules, state.loop_states)
    return num_updates


def autocast(train: Train, world: World) -> AbstractContextManager[Any]:
    """Return the context of the run's precision."""
    if train.precision == "fp32":
        return nullcontext()
    return torch.autocast(world.device.type, dtype=DTYPES[train.precision])


def _forward_context(
    wrapped_modules: Mapping[str, nn.Module], train: Train, world: World, *, sync: bool
) -> AbstractContextManager[Any]:
    stack = ExitStack()
    stack.enter_context(autocast(train, world))
    if not sync:
        for net in wrapped_modules.values():
            below_compile = getattr(net, "_orig_mod", net)
            if isinstance(below_compile, DistributedDataParallel):
                stack.enter_context(below_compile.no_sync())
    return stack


def _backward(state: TrainState, update: Update, accumulation_steps: int, *, world: World) -> None:
    non_finite, meter = state.non_finite, state.meter
    step = state.progress.step + 1
    non_finite.add_loss(f"train/{_prefix(update.network)}loss", update.loss, meter, step=step)
    for name, value in update.log.items():
        non_finite.add_metric(name, value, meter)
    with torch.autocast(world.device.type, enabled=False):
        loss = non_finite.scale(update.loss / accumulation_steps)
        state.scaler.scale(loss).backward()


def _apply(state: TrainState, update: Update, *, train: Train, world: World, compare_gradients: bool) -> None:
    """Unscale, clip and step one network's optimizer, unless the update is skipped as not finite."""
    role = update.network
    net, optimizer = state.modules[role], state.optimizers[role]
    # Undo the fp16 loss scale
    state.scaler.unscale_(optimizer)
    if compare_gradients:
        world.check_equal(gradient_norm(net), f"the gradient of {role!r}")
    if state.non_finite.accepts(net, state.meter):
        # Clip entries first, then the global norm
        if train.clip_value is not None:
            nn.utils.clip_grad_value_(net.parameters(), train.clip_value)
        if train.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(net.parameters(), train.clip_norm)
            state.meter.add(f"train/{_prefix(role)}grad_norm", norm)
        with scaled_learning_rates(optimizer, update.lr_scale):
            state.scaler.step(optimizer)
        # The scaler leaves out a step whose fp16 gradients overflow, and lowers its scale
        scale = state.scaler.get_scale()
        state.scaler.update()
        is_taken = state.scaler.get_scale() >= scale
        state.non_finite.count_scaled_step(is_taken=is_taken)
        if role in state.averages and is_taken:
            state.averages[role].update_parameters(net)
    else:
        state.scaler.update()
    # All networks: a loss may have sent gradients into the others too
    for each in state.optimizers.values():
        each.zero_grad(set_to_none=True)


def _prefix(role: str) -> str:
    return "" if role == "model" else f"{role}_"
