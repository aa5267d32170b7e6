"""9-Class ImageNet: a network that should not judge by texture (AdamP paper, section D.2).

Shapes: b pictures of this process, S side in pixels, N pictures of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard
from tasks.data.image_batches import ChannelNormaliser, ImageBatches
from tasks.data.imagenet9 import TexturedSet
from tasks.data.images import ImageSet
from tasks.rebias.scores import cell_accuracy
from tasks.rebias.task import METHODS, Method, ReBias


class ImageNet9(ReBias):
    """ReBias on pictures whose texture often tells the class.

    Scores of f, in percent: "biased/top1" is plain accuracy on the validation pictures, "unbiased/top1" counts every
    cell of class and texture cluster alike, "imagenet_a/top1" is plain accuracy on ImageNet-A's part.

    Args:
        data: The pictures and their clusters.
        f: Builds the target network.
        g: Builds the biased network.
        batch_size: Global training batch; the last incomplete one of an epoch is dropped.
        seed: Fixes the order of the data and its augmentation.
        method: "rebias", "vanilla" (f alone) or "biased" (g alone).
        lambda_f: Weight of HSIC in f's loss.
        lambda_g: Weight of HSIC in g's loss.
        sigma: Bandwidth of both kernels, or "median".
        num_g_updates: Steps of g before each step of f.
        swap_inner_sigma: As `ReBias`.
        min_cell_count: Fewest pictures of a cell that counts.
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process.
    """

    def __init__(
        self,
        data: TexturedSet,
        f: Callable[..., nn.Module],
        g: Callable[..., nn.Module],
        *,
        batch_size: int,
        seed: int,
        method: Method = "rebias",
        lambda_f: float = 1.0,
        lambda_g: float = 1.0,
        sigma: float | Literal["median"] = "median",
        num_g_updates: int = 1,
        swap_inner_sigma: bool = False,
        min_cell_count: int = 10,
        num_workers: int = 0,
        eval_batch_size: int = 250,
    ) -> None:
        super().__init__(
            f, g, num_classes=data.num_classes, batch_size=batch_size, seed=seed, method=method, lambda_f=lambda_f,
            lambda_g=lambda_g, sigma=sigma, num_g_updates=num_g_updates, swap_inner_sigma=swap_inner_sigma,
        )  # fmt: skip
        self.monitor = "unbiased/top1"
        self.data, self.min_cell_count = data, min_cell_count
        try:  # now, and not after the first epoch
            cell_accuracy(data.val_labels, data.val_labels, data.clusterings, min_cell_count)
        except ValueError as error:
            raise InputError(f"task.min_cell_count={min_cell_count}: {error}") from error
        self.normalise = ChannelNormaliser(data.mean, data.std)
        sets: dict[str, ImageSet] = {"biased": data}
        if data.hard is not None:
            sets["imagenet_a"] = data.hard
        self._batches = {
            split: ImageBatches(
                pictures, batch_size=batch_size, seed=seed, num_workers=num_workers, eval_batch_size=eval_batch_size
            )
            for split, pictures in sets.items()
        }

    # ------------------------------------------------------------------------------------------------ data

    def batches(self, epoch: int, shard: Shard, start: int) -> BatchLoader:
        return self._batches["biased"].train(epoch, shard, start)

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return self.normalise(images), labels

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {
            split: batches.evaluation(shard, _Numbered(batches.data) if split == "biased" else None)
            for split, batches in self._batches.items()
        }

    # ------------------------------------------------------------------------------------------------ scores

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return labels (numbers of pictures in the split "biased") and each network's predicted classes."""
        images, labels = self.pictures(batch)
        return labels.cpu(), {role: nets[role](images)[0].argmax(1).cpu() for role in METHODS[self.method]}

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        labels = torch.cat([label for label, _ in records]).numpy() if records else np.empty(0)
        if not len(labels):
            raise InputError(f"{self._batches[split].data.name}: no readable image in the {split} split")
        predicted = {r: torch.cat([classes[r] for _, classes in records]).numpy() for r in METHODS[self.method]}
        if split != "biased":
            return self.accuracies(split, {role: classes == labels for role, classes in predicted.items()})
        clusterings = [clusters[labels] for clusters in self.data.clusterings]
        labels = self.data.val_labels[labels]
        scores = self.accuracies(split, {role: classes == labels for role, classes in predicted.items()})
        for role, classes in predicted.items():
            key = "unbiased/top1" if role == self.reported else f"unbiased/{role}_top1"
            scores[key] = 100 * cell_accuracy(labels, classes, clusterings, self.min_cell_count)
        return scores

    # ------------------------------------------------------------------------------------------------ facts

    def example_images(self) -> Tensor:
        """Return up to eight training pictures, at most 64 pixels of their corner: scale shows at any size."""
        return self.normalise(self._batches["biased"].examples())[..., :64, :64]

    def describe(self) -> dict[str, Any]:
        return self.data.describe()

    def notices(self) -> dict[str, int]:
        count = sum(batches.corrupt.count for batches in self._batches.values())
        return {"corrupt_images": count} if count else {}

    def faulty_examples(self) -> dict[str, list[Any]]:
        return {name: batches.corrupt.state() for name, batches in self._batches.items()}

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        for name, state in faulty.items():
            self._batches[name].corrupt.add_state(state)


class _Numbered(ImageSet):
    """Validation pictures labelled by their number: clusters are found by it, whichever cannot be read."""

    def __init__(self, pictures: ImageSet) -> None:
        self._pictures = pictures
        self.num_examples, self.image_size = pictures.num_examples, pictures.image_size

    def train_example(self, index: int) -> tuple[Tensor, int]:
        return self._pictures.train_example(index)

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        return self._pictures.eval_example(index)[0], index
