"""Deterministic detection batches, fixed by (seed, epoch): stacked pictures, the boxes of all in one tensor.

Shapes: B pictures, S their side, N objects of all of them together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.base import Shard
from tasks.data.images import UnreadableImageError
from tasks.data.loader import (
    Batches,
    CorruptImages,
    Loaded,
    MicroBatches,
    check_batch_size,
    derive_seed,
    forked_generators,
    seed_generators,
)
from tasks.detection.coco import CocoSet
from tasks.detection.views import View


class _TrainBatches(MicroBatches):
    """Training micro-batches of augmented views.

    Images (B, 3, S, S) uint8, or float32 where colours are jittered, boxes (N, 4), labels (N,), and the picture in the
    batch that each belongs to (N,).
    """

    def __init__(
        self, data: CocoSet, view: View, *, batch_size: int, seed: int, epoch: int, shard: Shard, patience: int
    ) -> None:
        super().__init__(data.num_examples["train"], batch_size=batch_size, seed=seed, epoch=epoch, shard=shard)
        self._data, self._view, self._patience = data, view, patience

    def __getitem__(self, number: int) -> Loaded:
        _, indices = self.locate(number)
        unreadable: list[tuple[int, str]] = []
        with forked_generators():
            views = [self._load(index, unreadable) for index in indices]
        images, boxes, labels = zip(*views, strict=True)
        counts = torch.tensor([len(each) for each in labels])
        owner = torch.arange(len(images)).repeat_interleave(counts)
        return unreadable, (torch.stack(images), torch.cat(boxes), torch.cat(labels), owner)

    def _load(self, index: int, unreadable: list[tuple[int, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return a view of picture `index` with its boxes and labels, or of the next readable one."""
        num = self._data.num_examples["train"]
        for attempt in range(min(self._patience + 1, num)):
            candidate = (index + attempt) % num
            seed_generators(derive_seed(self._seed, self._epoch, index))
            try:
                image = self._data.image("train", candidate)
            except UnreadableImageError as error:
                unreadable.append((candidate, str(error)))
                continue
            boxes, labels = self._data.objects("train", candidate)
            view, objects = self._view.train(image, boxes, labels=labels)
            return view, *objects
        # More than allowed are unreadable: the main process raises on the report, this picture is never used.
        size = self._view.size
        return torch.zeros(3, size, size, dtype=torch.uint8), torch.empty(0, 4), torch.empty(0, dtype=torch.int64)


class _EvalBatches(Dataset[Loaded]):
    """Item i: validation batch i, without the pictures that cannot be read.

    Images (B, 3, H, W) uint8, their numbers in the split (B,), and what maps boxes back to the stored picture (B, 4).
    """

    def __init__(self, data: CocoSet, view: View, *, batch_size: int) -> None:
        self._data, self._view, self._batch_size = data, view, batch_size

    def __len__(self) -> int:
        return -(-self._data.num_examples["val"] // self._batch_size)

    def __getitem__(self, number: int) -> Loaded:
        unreadable: list[tuple[int, str]] = []
        views: list[tuple[Tensor, int, Tensor]] = []
        first = number * self._batch_size
        for index in range(first, min(first + self._batch_size, self._data.num_examples["val"])):
            try:
                view, back = self._view.test(self._data.image("val", index))
                views.append((view, index, back))
            except UnreadableImageError as error:
                unreadable.append((index, str(error)))
        if not views:
            return unreadable, (torch.zeros(0, 3, 32, 32), torch.empty(0, dtype=torch.int64), torch.empty(0, 4))
        images, numbers, backs = zip(*views, strict=True)
        return unreadable, (torch.stack(images), torch.tensor(numbers), torch.stack(backs))


def train_batches(data: CocoSet, view: View, *, batch_size: int, shard: Shard, start: int, **more: Any) -> Batches:
    """Return an epoch's batches of a shard from step `start` on; the last incomplete global batch is dropped.

    Args:
        data: The set.
        view: Augmentation and resizing.
        batch_size: Over all processes and micro-batches.
        shard: This process's share.
        start: First step wanted.
        more: seed, epoch, corrupt (`CorruptImages`) and num_workers.

    Raises:
        InputError: The batch does not divide evenly, or exceeds the training split.
    """
    check_batch_size(batch_size, shard, data.num_examples["train"], of=f"images of {data.name}")
    corrupt: CorruptImages = more["corrupt"]
    source = _TrainBatches(
        data, view, batch_size=batch_size, seed=more["seed"], epoch=more["epoch"], shard=shard,
        patience=corrupt.limit("train"),
    )  # fmt: skip
    return Batches(source, source.from_step(start), split="train", corrupt=corrupt, num_workers=more["num_workers"])


def eval_batches(
    data: CocoSet, view: View, *, batch_size: int, shard: Shard, corrupt: CorruptImages, num_workers: int
) -> Batches:
    """Return validation batches index, index + count, ... of `batch_size` pictures, the last one shorter."""
    source = _EvalBatches(data, view, batch_size=batch_size)
    numbers = range(shard.index, len(source), shard.count)
    return Batches(source, numbers, split="val", corrupt=corrupt, num_workers=num_workers)
