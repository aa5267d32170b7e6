"""Image classification as in the three papers: cross-entropy, single-crop top-1 and top-5.

Shapes: B examples, S side in pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.checks import check_fractions
from tasks.data import ImageSet
from tasks.data.image_batches import ChannelNormaliser, ImageBatches
from tasks.data.loader import Augment, Mix
from tasks.precision import widen
from tasks.ranking import label_ranks


class ImageNet(Task):
    """A classifier on any `ImageSet`: ImageNet itself, or the smaller set that stands in for it.

    Args:
        data: The pictures.
        model: Builds the network from `num_classes`; called once.
        batch_size: Global training batch, over all processes and micro-batches.
        seed: Fixes the order of the data and its augmentation.
        label_smoothing: Share of the target spread evenly over all K classes, in training only.
        augment: Makes, from the data's `image_size`, `mean` and `std`, what changes each training picture after crop
            and mirror image; see `tasks.data.augment`.
        mix: Mixes the examples of each training batch, e.g. `tasks.data.CutMix`.
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process.
        validation: Share of the training pictures that are scored instead of the published validation split, for
            choosing hyperparameters; null scores the published one. See `ImageSet.hold_out`.
    """

    monitor = "val/top1"

    def __init__(
        self,
        data: ImageSet,
        model: Callable[..., nn.Module],
        *,
        batch_size: int,
        seed: int,
        label_smoothing: float = 0.0,
        augment: Callable[..., Augment] | None = None,
        mix: Mix | None = None,
        num_workers: int = 0,
        eval_batch_size: int = 250,
        validation: float | None = None,
    ) -> None:
        check_fractions({"task.label_smoothing": label_smoothing})
        if validation is not None:
            data.hold_out(validation)
        self.data = data
        self.batches = ImageBatches(
            data, batch_size=batch_size, seed=seed, num_workers=num_workers, eval_batch_size=eval_batch_size
        )
        self.normalise = ChannelNormaliser(data.mean, data.std)
        self.networks = {"model": model(num_classes=data.num_classes)}
        self.label_smoothing = label_smoothing
        self._augment = augment and augment(data.image_size, data.mean, std=data.std)
        self._mix = mix

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        return self.batches.train(epoch, shard, start, augment=self._augment, mix=self._mix)

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {"val": self.batches.evaluation(shard)}

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, labels, *mixed = batch  # (B, 3, S, S) uint8, (B,), and (B,), () from a mix
        logits = nets["model"](self.normalise(images))  # (B, K)
        loss, top1 = self._loss_and_top1(logits, labels)
        if not mixed:
            yield Update(loss, log={"train/top1": top1})
            return
        others, share = mixed
        other_loss, other_top1 = self._loss_and_top1(logits, others)
        # Under a name of its own: it is not comparable with the accuracy on pictures that are whole.
        log = {"train/mixed_top1": share * top1 + (1 - share) * other_top1}
        yield Update(share * loss + (1 - share) * other_loss, log=log)

    def _loss_and_top1(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return loss, 100 * (label_ranks(logits.detach(), labels) == 0).float().mean()

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return each example's loss (float64), whether its class is first, and whether among five."""
        images, labels = batch
        logits = widen(nets["model"](self.normalise(images)))  # (B, K)
        loss = F.cross_entropy(logits, labels, reduction="none").double()
        ranks = label_ranks(logits, labels)
        return loss.cpu(), (ranks == 0).cpu(), (ranks < 5).cpu()

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return mean loss and percentages over all records; sums are exact, so their order is free."""
        losses = [value for loss, _, _ in records for value in loss.tolist()]
        if not losses:
            raise InputError(f"{self.data.name}: no readable image in the {split} split")
        scores = {
            f"{split}/loss": math.fsum(losses) / len(losses),
            f"{split}/top1": 100 * sum(int(first.sum()) for _, first, _ in records) / len(losses),
        }
        if self.data.num_classes > 5:  # with five classes or fewer it is always 100
            scores[f"{split}/top5"] = 100 * sum(int(five.sum()) for _, _, five in records) / len(losses)
        return scores

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        return {"model": (self.normalise(self.batches.examples()),)}

    def describe(self) -> dict[str, Any]:
        return self.data.describe()

    def notices(self) -> dict[str, int]:
        return self.batches.notices()

    def faulty_examples(self) -> dict[str, list[Any]]:
        return self.batches.faulty_examples()

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        self.batches.add_faulty_examples(faulty)
