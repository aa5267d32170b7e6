"""Which pictures come together in a training batch: any (the paper's), or a few of each of many classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.base import InputError, Shard
from tasks.data import CorruptImages, train_batches
from tasks.data.loader import Batches, _TrainBatches, derive_seed
from tasks.retrieval.sets import RetrievalSet

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
    pools, needed = [torch.tensor(found) for found in members.values()], batch_size // per_class
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

    def __init__(
        self, data: RetrievalSet, order: Tensor, *, batch_size: int, seed: int, epoch: int, shard: Shard, patience: int
    ) -> None:
        super().__init__(data, batch_size=batch_size, seed=seed, epoch=epoch, shard=shard, patience=patience)
        self._order = order


def sampled_batches(
    data: RetrievalSet,
    shard: Shard,
    *,
    sampler: str,
    images_per_class: int,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int,
    corrupt: CorruptImages,
    num_workers: int,
) -> Batches:
    """Return an epoch's training batches of a shard from step `start` on, as `tasks.data.train_batches` does.

    Args:
        data: The set.
        shard: This process's share.
        sampler: "random" or "balanced".
        images_per_class: For "balanced".
        batch_size: Global.
        seed: With `epoch` it fixes order and augmentation.
        epoch: Counted from 0.
        start: First step wanted.
        corrupt: Where unreadable pictures are reported.
        num_workers: Decoding processes.
    """
    if sampler == "random":
        return train_batches(
            data, shard, batch_size=batch_size, seed=seed, epoch=epoch, start=start, corrupt=corrupt,
            num_workers=num_workers,
        )  # fmt: skip
    order = balanced_order(
        data.train_labels, batch_size=batch_size, per_class=images_per_class, seed=derive_seed(seed, epoch)
    )
    source = _Ordered(
        data, order, batch_size=batch_size, seed=seed, epoch=epoch, shard=shard, patience=corrupt.limit("train")
    )
    numbers = range(start * shard.accumulation_steps, len(source))
    return Batches(source, numbers, split="train", corrupt=corrupt, num_workers=num_workers)
