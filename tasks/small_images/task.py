"""Classification of small pictures that lie in memory. Shapes: B examples, K networks at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.base import Batch, InputError, LoopState, ManyUpdate, Record, Shard, StepContext, Task, Update
from tasks.small_images.data import AveragedImages


class SmallImages(Task):
    """A classifier of `AveragedImages`.

    Args:
        data: The pictures.
        model: Builds the network from `shape` and `num_classes`; called once.
        batch_size: Global batch, over all processes and micro-batches.
        seed: Draws the order of the pictures.
        epoch_steps: Steps of an epoch, after which the networks are scored: an epoch is not one pass over the data, so
            that runs on sets of different sizes have as many steps. Passes follow each other, each in an order of its
            own; what is left over of one is dropped.
        eval_batch_size: Pictures in one evaluation batch of one process.
        validation: Share of the training pictures that are scored instead of the published split, for choosing
            hyperparameters; None scores the published one.
    """

    monitor = "val/top1"

    def __init__(
        self,
        data: AveragedImages,
        model: Callable[..., nn.Module],
        *,
        batch_size: int,
        seed: int,
        epoch_steps: int = 200,
        eval_batch_size: int = 2500,
        validation: float | None = None,
    ) -> None:
        for name, value in (("epoch_steps", epoch_steps), ("eval_batch_size", eval_batch_size)):
            if not value >= 1:
                raise InputError(f"task.{name} is {value}; it must be at least 1")
        if validation is not None:
            data.hold_out(validation)
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.epoch_steps, self.eval_batch_size = epoch_steps, eval_batch_size
        self.networks = {"model": model(shape=data.shape, num_classes=data.num_classes)}

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Batches:
        return Batches(self, epoch, shard, start)

    def eval_batches(self, shard: Shard) -> Mapping[str, Sequence[Batch]]:
        images, labels = self.data.splits["val"]
        batches = list(zip(images.split(self.eval_batch_size), labels.split(self.eval_batch_size), strict=True))
        return {"val": batches[shard.index :: shard.count]}

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, labels = batch
        logits = nets["model"](images)  # (B, classes)
        top1 = 100 * (logits.detach().argmax(1) == labels).float().mean()
        yield Update(F.cross_entropy(logits, labels), log={"train/top1": top1})

    def many_updates(
        self, nets: Mapping[str, nn.Module], batch: Batch, contexts: Sequence[StepContext]
    ) -> Iterator[ManyUpdate]:
        images, labels = batch
        logits = nets["model"](images).view(len(labels), len(contexts), -1)  # (B, K, classes)
        every_label = labels.unsqueeze(1).expand(-1, len(contexts))  # (B, K)
        losses = F.cross_entropy(logits.flatten(0, 1), every_label.flatten(), reduction="none").view(every_label.shape)
        top1 = 100 * (logits.detach().argmax(2) == every_label).float().mean(0)
        yield ManyUpdate(losses.mean(0), log={"train/top1": top1})

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return the sum of the examples' losses (float64), how many are right, and how many there are."""
        images, labels = batch
        logits = nets["model"](images)
        losses = F.cross_entropy(logits, labels, reduction="none").double()
        return losses.sum().item(), int((logits.argmax(1) == labels).sum()), len(labels)

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        examples = sum(count for _, _, count in records)
        return {
            f"{split}/loss": math.fsum(loss for loss, _, _ in records) / examples,
            f"{split}/top1": 100 * sum(right for _, right, _ in records) / examples,
        }

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        return {"model": (self.data.splits["train"][0][:8],)}

    def describe(self) -> dict[str, Any]:
        return self.data.describe()


class Batches:
    """Training batches of one epoch, made as they are asked for.

    Args:
        task: Its data, batch and seed.
        epoch: Counted from 0.
        shard: This process's share.
        start: First step.
    """

    def __init__(self, task: SmallImages, epoch: int, shard: Shard, start: int) -> None:
        self._task, self._epoch, self._shard, self._start = task, epoch, shard, start
        self._pass_steps = len(task.data.splits["train"][1]) // task.batch_size

    def __len__(self) -> int:
        return (self._task.epoch_steps - self._start) * self._shard.accumulation_steps if self._pass_steps else 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        task, shard = self._task, self._shard
        images, labels = task.data.splits["train"]
        order, known = torch.empty(0, dtype=torch.int64), -1
        first = self._epoch * task.epoch_steps
        for step in range(first + self._start, first + task.epoch_steps):
            number, place = divmod(step, self._pass_steps)
            if number != known:
                generator = torch.Generator().manual_seed(1_000_003 * task.seed + number)
                order, known = torch.randperm(len(labels), generator=generator), number
            batch = order[place * task.batch_size : (place + 1) * task.batch_size]
            for part in batch.chunk(shard.count)[shard.index].chunk(shard.accumulation_steps):
                yield images[part], labels[part]
