"""Batches, channel normalisation and example pictures of an image set, as the image tasks use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tasks.base import Shard
from tasks.checks import check_at_least
from tasks.data.images import ImageSet
from tasks.data.loader import Augment, Batches, CorruptImages, Mix, eval_batches, train_batches


class ChannelNormaliser:
    """Maps uint8 pictures to float32 of mean 0 and standard deviation 1 per channel, on the same device.

    Args:
        mean: Channel means, in [0, 1].
        std: Channel standard deviations, in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 of (B, 3, H, W) uint8."""
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        # In place, on a copy: two temporaries of a batch cost more than the arithmetic.
        return images.to(torch.float32, copy=True).sub_(self._mean).div_(self._std)


class ImageBatches:
    """The batches of a run on an image set, and its count of unreadable pictures.

    Args:
        data: The pictures.
        batch_size: Global training batch, over all processes and micro-batches.
        seed: Fixes the order of the data and its augmentation.
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process.

    Raises:
        InputError: A size is out of its range.
    """

    def __init__(
        self, data: ImageSet, *, batch_size: int, seed: int, num_workers: int = 0, eval_batch_size: int = 250
    ) -> None:
        check_at_least(1, {"train.batch_size": batch_size, "task.eval_batch_size": eval_batch_size})
        check_at_least(0, {"train.num_workers": num_workers})
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.corrupt = CorruptImages(data)

    def train(
        self, epoch: int, shard: Shard, start: int = 0, *, augment: Augment | None = None, mix: Mix | None = None
    ) -> Batches:
        """Return an epoch's training batches of a shard from a step on; see `tasks.data.train_batches`."""
        return train_batches(
            self.data, shard, batch_size=self.batch_size, seed=self.seed, epoch=epoch, start=start,
            corrupt=self.corrupt, num_workers=self.num_workers, augment=augment, mix=mix,
        )  # fmt: skip

    def evaluation(self, shard: Shard, view: ImageSet | None = None) -> Batches:
        """Return a shard's validation batches, of `view` where the set is to be seen with other labels."""
        return eval_batches(
            view or self.data, shard, batch_size=self.eval_batch_size, corrupt=self.corrupt,
            num_workers=self.num_workers,
        )  # fmt: skip

    def examples(self) -> Tensor:
        """Return up to eight training pictures (n, 3, S, S) uint8 on the CPU, the same ones whatever the options."""
        num = min(8, self.data.num_examples["train"])
        first = ImageBatches(self.data, batch_size=num, seed=0)  # its own count: this is no part of a run
        images, _ = next(iter(first.train(0, Shard())))
        return images.cpu()

    def faulty_examples(self) -> dict[str, list[Any]]:
        """Return the unreadable pictures met so far; see `Task.faulty_examples`."""
        return {"corrupt_images": self.corrupt.state()}

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        """Take those of another process; see `Task.add_faulty_examples`."""
        self.corrupt.add_state(faulty.get("corrupt_images", ()))

    def notices(self) -> dict[str, int]:
        """Return the number of unreadable pictures met so far, if any."""
        return {"corrupt_images": self.corrupt.count} if self.corrupt.count else {}
