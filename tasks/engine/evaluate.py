"""Evaluation: unpadded shards, records gathered in data order and scored once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.base import Batch, Shard, Task
from tasks.engine.dead_workers import WaitsTooLong, read_batches
from tasks.engine.distributed import World, in_data_order
from tasks.engine.reproducibility import generator_states, seed_generators, set_generator_states


def share_faulty_examples(task: Task, world: World) -> dict[str, list[Any]]:
    """Give every process, and return, the faulty examples that any has met. Collective.

    Raises:
        InputError: All together are more than the user allows; raised on every process.
    """
    if world.size > 1:
        for faulty in world.broadcast_object(world.gather_objects(task.faulty_examples())):
            task.add_faulty_examples(faulty)
    return task.faulty_examples()


def evaluate(
    task: Task,
    splits: Callable[[Shard], Mapping[str, Iterable[Batch]]],
    modules: Mapping[str, nn.Module],
    world: World,
    *,
    seed: int,
    place: Callable[[Any], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Callable[[], bool],
    read: Callable[[Iterable[Batch]], Iterable[Batch]] = read_batches,
) -> dict[str, float] | None:
    """Score the networks on every split. Collective.

    Random draws (an attack's random start) come from a separate stream, so an evaluation, finished or stopped, does not
    change training. Runs under `no_grad`, not `inference_mode`, so that an attack can enable gradients.

    Args:
        task: Predicts and scores.
        splits: `task.eval_batches` or `task.test_batches`.
        modules: Networks, not wrapped: a wrapped one would wait for processes that have fewer batches.
        world: The processes.
        seed: Of the evaluation's random stream.
        place: Moves a batch to the device.
        autocast: Makes the precision context.
        stop: Polled between batches; True gives up.
        read: Yields the batches; it may end a wait with `WaitsTooLong`.

    Returns:
        The scores of all splits on every process, or None when some process was asked to stop.
    """
    modes = {name: net.training for name, net in modules.items()}
    states = generator_states(world.device)
    seed_generators(seed, world.rank)
    scores: dict[str, float] = {}
    try:
        for net in modules.values():
            net.eval()
        for split, batches in splits(world.shard()).items():
            records, state, stopped = [], {}, False  # type: ignore[var-annotated]
            with torch.no_grad():
                try:
                    for batch in read(batches):
                        if stopped := stop():
                            break
                        with autocast():
                            records.append(task.predict(modules, place(batch), state))
                except WaitsTooLong:
                    if world.size > 1 or not stop():  # the others wait elsewhere
                        raise
                    return None
            if world.all_reduce_max(int(stopped)):
                return None
            ordered = in_data_order(world.gather_objects(records) or [])
            scores |= world.broadcast_object(world.run_on_rank0(partial(task.score, split, ordered)))
    finally:
        for name, net in modules.items():
            net.train(modes[name])
        set_generator_states(states, world.device)
    return scores
