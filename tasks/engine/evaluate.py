"""Evaluation: bare networks, unpadded shards, records gathered in data order and scored once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.base import Batch, Shard, Task
from tasks.engine.checkpoint import generator_states, seed_generators, set_generator_states
from tasks.engine.distributed import World, in_data_order
from tasks.engine.faults import read


def evaluate(
    task: Task,
    splits: Callable[[Shard], Mapping[str, Iterable[Batch]]],
    nets: Mapping[str, nn.Module],
    world: World,
    *,
    seed: int,
    place: Callable[[Any], Any],
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Score the networks on every split. Collective.

    Random draws inside (an attack's random start) come from a stream of their own, so evaluating, or being stopped
    while evaluating, changes nothing in training. Runs under `no_grad`, not `inference_mode`, so that an attack can
    switch gradients on.

    Args:
        task: Whose predictions and scores.
        splits: `task.eval_batches` or `task.test_batches`.
        nets: Bare networks: a wrapped one would wait for processes that have fewer batches.
        world: The processes.
        seed: Of the evaluation's own random stream.
        place: Moves a batch to the device.
        autocast: Makes the precision context.
        stop: Polled between batches; True gives up.

    Returns:
        The scores of all splits on every process, or None when some process was asked to stop.
    """
    modes = {name: net.training for name, net in nets.items()}
    states = generator_states(world.device)
    seed_generators(seed, world.rank)
    scores: dict[str, float] = {}
    try:
        for net in nets.values():
            net.eval()
        for split, batches in splits(world.shard()).items():
            records, state, stopped = [], {}, False  # type: ignore[var-annotated]
            with torch.no_grad():
                for batch in read(batches):
                    if stopped := stop():
                        break
                    with autocast():
                        records.append(task.predict(nets, place(batch), state))
            if world.highest(int(stopped)):
                return None
            ordered = in_data_order(world.gather(records) or [])
            scores |= world.share(world.on_main(partial(task.score, split, ordered)))
    finally:
        for name, net in nets.items():
            net.train(modes[name])
        set_generator_states(states, world.device)
    return scores
