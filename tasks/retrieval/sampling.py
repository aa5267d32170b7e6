"""Class-balanced sampling of training batches: a few pictures of each of many classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.base import InputError, Shard
from tasks.data.image_batches import ImageBatches
from tasks.data.loader import Batches, _TrainBatches, derive_seed

SAMPLERS = ("random", "balanced")


def balanced_order(labels: Sequence[int], *, batch_size: int, per_class: int, seed: int) -> Tensor:
    """Return an epoch's order in which each batch holds `per_class` pictures of batch_size / per_class classes.

    The classes of a batch differ; its pictures too, unless a class has too few: then they repeat. An epoch has as many
    whole batches as the set, and no care is taken that each picture comes once.

    Args:
        labels: Class of each training picture.
        batch_size: Pictures in a global batch.
        per_class: Pictures of a class in it.
        seed: Draws classes and pictures.

    Returns:
        Numbers of pictures, (batches * batch_size,).

    Raises:
        InputError: per_class does not divide the batch, or there are too few classes to fill it.
    """
    if not per_class >= 2 or batch_size % per_class:
        raise InputError(
            f"task.images_per_class={per_class}: must be at least 2 and divide train.batch_size={batch_size}"
        )
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    pools, needed = [torch.tensor(indices) for indices in members.values()], batch_size // per_class
    if needed > len(pools):
        raise InputError(
            f"train.batch_size={batch_size} with task.images_per_class={per_class} needs {needed} classes, and there "
            f"are {len(pools)}; raise task.images_per_class or lower train.batch_size"
        )
    generator = torch.Generator().manual_seed(seed)
    order = []
    for _ in range(len(labels) // batch_size):
        for number in torch.randperm(len(pools), generator=generator)[:needed].tolist():
            shuffled = pools[number][torch.randperm(len(pools[number]), generator=generator)]
            order.append(shuffled.repeat(-(-per_class // len(shuffled)))[:per_class])
    return torch.cat(order) if order else torch.empty(0, dtype=torch.int64)


class _Ordered(_TrainBatches):
    """Batches in a given order instead of a random permutation."""

    def __init__(self, batches: ImageBatches, order: Tensor, *, epoch: int, shard: Shard) -> None:
        super().__init__(
            batches.data, batch_size=batches.batch_size, seed=batches.seed, epoch=epoch, shard=shard,
            patience=batches.corrupt.limit("train"),
        )  # fmt: skip
        self._order = order


def balanced_batches(
    batches: ImageBatches, labels: Sequence[int], shard: Shard, *, per_class: int, epoch: int, start: int
) -> Batches:
    """Return an epoch's balanced training batches of a shard from a step on.

    Args:
        batches: The set, and the options of its batches.
        labels: Class of each training picture.
        shard: This process's share.
        per_class: Pictures of a class in a global batch.
        epoch: Counted from 0.
        start: First step wanted.

    Raises:
        InputError: As `balanced_order`.
    """
    seed = derive_seed(batches.seed, epoch)
    order = balanced_order(labels, batch_size=batches.batch_size, per_class=per_class, seed=seed)
    source = _Ordered(batches, order, epoch=epoch, shard=shard)
    return Batches(
        source, source.from_step(start), split="train", corrupt=batches.corrupt, num_workers=batches.num_workers
    )
