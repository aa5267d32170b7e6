"""Pictures averaged over squares of pixels and standardised, all in memory: CIFAR-10 and Fashion-MNIST.

Shapes: N pictures, C channels, S side in pixels after averaging.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import datasets

from tasks.base import InputError
from tasks.checks import check_at_least
from tasks.data.cache import cache_folder
from tasks.data.cifar import CLASSES, Cifar10
from tasks.data.fashion_mnist import FashionMnist
from tasks.data.identity import data_digest
from tasks.data.images import Split


class AveragedImages:
    """Pictures of two splits.

    Args:
        name: Of the set.
        splits: Split -> pictures (N, C, side, side) uint8 and labels (N,).
        factor: Pixels of a square's side; it must divide the pictures' side.
        licence: Of the set.

    Attributes:
        splits: Split -> pictures (N, C, S, S) float32, standardised with the training pictures' mean and deviation over
            all pixels of a channel, and labels (N,) int64.
        mean: Of the training pictures, (1, C, 1, 1), in units of 1 / 255 of a pixel's range.
        deviation: The same of their standard deviation.

    Raises:
        InputError: The factor does not divide the side.
    """

    def __init__(
        self, name: str, splits: Mapping[Split, tuple[Tensor, Tensor]], *, factor: int, licence: str, classes: int = 10
    ) -> None:
        self.name, self.factor, self.num_classes, self._licence = name, factor, classes, licence
        side = splits["train"][0].shape[-1]
        if not (factor >= 1 and side % factor == 0):
            raise InputError(f"data.factor is {factor}; it must divide the pictures' side of {side} pixels")
        self._digest = data_digest(*(part for images, labels in splits.values() for part in (images, labels)))
        averaged = {split: _average(images, factor) for split, (images, _) in splits.items()}
        train = averaged["train"].double()
        mean = train.mean(dim=(0, 2, 3), keepdim=True).float()
        deviation = train.std(dim=(0, 2, 3), keepdim=True).float()
        self.mean, self.deviation = mean, deviation
        self.splits: dict[Split, tuple[Tensor, Tensor]] = {
            split: ((averaged[split] - mean) / deviation, splits[split][1].long()) for split in splits
        }

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, S and S."""
        channels, height, width = self.splits["train"][0].shape[1:]
        return channels, height, width

    def pixels(self, images: Tensor) -> Tensor:
        """Return standardised pictures (B, C, S, S) as pixels in [0, 1]."""
        mean, deviation = self.mean.to(images), self.deviation.to(images)
        return ((images * deviation + mean) / 255).clamp(0, 1)

    def standardised(self, pixels: Tensor) -> Tensor:
        """Return pixels in [0, 1] as standardised pictures, the inverse of `pixels`."""
        return (255 * pixels - self.mean.to(pixels)) / self.deviation.to(pixels)

    def hold_out(self, share: float) -> None:
        """Make a share of the training pictures the validation split, instead of the published one.

        The same pictures are held out whatever the run's seed, and the set gets a name of its own.

        Args:
            share: Part of the training pictures, in (0, 1).

        Raises:
            InputError: The share leaves one of the splits empty.
        """
        images, labels = self.splits["train"]
        num = round(share * len(labels)) if 0 < share < 1 else 0
        if not 0 < num < len(labels):
            raise InputError(
                f"task.validation={share}: must be a share of the {len(labels)} training pictures that leaves some to "
                "each"
            )
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        held, kept = order[:num].sort().values, order[num:].sort().values
        self.splits = {"train": (images[kept], labels[kept]), "val": (images[held], labels[held])}
        self.name = f"{self.name}_held_out_{share:g}"

    def describe(self) -> dict[str, Any]:
        """Return the facts of `Task.describe`."""
        sizes = {f"{split}_examples": len(labels) for split, (_, labels) in self.splits.items()}
        return {
            "name": self.name, **sizes, "classes": self.num_classes, "image_size": self.shape[-1],
            "averaged_over": self.factor, "licence": self._licence, "digest": self._digest,
        }  # fmt: skip


def _average(images: Tensor, factor: int) -> Tensor:
    """Return the means of squares, (N, C, S, S) float32; a thousand pictures at a time, to spare memory."""
    return torch.cat([F.avg_pool2d(part.float(), factor) for part in images.split(1000)])


class AveragedFashionMnist(AveragedImages):
    """Fashion-MNIST, grey.

    Args:
        name: As for `FashionMnist`; null is all of it where `make data` has prepared it, else the part in this
            repository.
        root: As for `FashionMnist`.
        factor: Pixels of a square's side: 2 gives 14x14.
    """

    def __init__(self, name: str | None = None, root: str | None = None, *, factor: int = 2) -> None:
        if name is None:
            whole = root is None and (cache_folder() / "fashion_mnist" / "manifest.json").is_file()
            name = "fashion_mnist" if whole else "fashion_mnist_20k"
        source = FashionMnist(name, root)
        super().__init__(source.name, _parts(source), factor=factor, licence=source.licence)


class AveragedCifar10(AveragedImages):
    """CIFAR-10 from its official batches.

    Args:
        root: As for `Cifar10`.
        factor: Pixels of a square's side: 4 gives 8x8.
    """

    def __init__(self, root: str | None, *, factor: int = 4) -> None:
        source = Cifar10(root)
        super().__init__(source.name, _parts(source), factor=factor, licence=source.licence)


class AveragedFolder(AveragedImages):
    """CIFAR-10 as folders of pictures, `train/CLASS/*` and `test/CLASS/*`: a copy that no published digest covers.

    Args:
        root: The folder that holds them.
        factor: Pixels of a square's side.

    Raises:
        InputError: A folder is missing, or its pictures are not 32x32.
    """

    def __init__(self, root: str | None, *, factor: int = 4) -> None:
        if not root:
            raise InputError("data_root is not given: set it to the folder with train/CLASS and test/CLASS")
        splits: dict[Split, tuple[Tensor, Tensor]] = {
            "train": _read_folder(Path(root).expanduser() / "train"),
            "val": _read_folder(Path(root).expanduser() / "test"),
        }
        super().__init__(
            "cifar10_jpeg", splits, factor=factor, licence="none stated by the authors; they ask to be cited"
        )


class Directions(AveragedImages):
    """Gaussian pixels, labelled by the nearest of ten random directions: a toy that `unit_linear` can learn exactly.

    Args:
        num_examples: Pictures of each split, at least 2.
        side: Of a picture.
        seed: Draws directions and pictures.
        gain: The pictures' standard deviation: with a large one the loss tells small angles apart.
    """

    def __init__(self, *, num_examples: int = 4096, side: int = 8, seed: int = 0, gain: float = 8.0) -> None:
        check_at_least(2, {"data.num_examples": num_examples})
        check_at_least(1, {"data.side": side})
        generator = torch.Generator().manual_seed(seed)
        teachers = F.normalize(torch.randn(side * side, 10, generator=generator), dim=0)
        names: tuple[Split, Split] = ("train", "val")
        splits: dict[Split, tuple[Tensor, Tensor]] = {}
        for split in names:
            pixels = torch.randn(num_examples, side * side, generator=generator)
            images = (128 + 32 * pixels).round().clamp(0, 255).to(torch.uint8)
            splits[split] = (images.view(-1, 1, side, side), (pixels @ teachers).argmax(1))
        super().__init__("directions", splits, factor=1, licence="none")
        self.deviation = self.deviation / gain
        self.splits = {split: (gain * images, labels) for split, (images, labels) in self.splits.items()}


def _parts(source: FashionMnist | Cifar10) -> dict[Split, tuple[Tensor, Tensor]]:
    """Return split -> pictures and labels of a set that holds its pictures in memory."""
    parts: list[Any] = list(source.identity())
    splits: tuple[Split, Split] = ("train", "val")
    return {split: (parts[2 * i], torch.tensor(parts[2 * i + 1])) for i, split in enumerate(splits)}


def _read_folder(folder: Path) -> tuple[Tensor, Tensor]:
    try:
        found = datasets.ImageFolder(str(folder))
        if tuple(found.classes) != CLASSES:
            raise InputError(f"data_root: {folder} holds the classes {', '.join(found.classes)}, not CIFAR-10's")
        images = [np.asarray(image.convert("RGB")) for image, _ in found]
        pictures = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: pictures of several sizes
        raise InputError(f"data_root: {folder} cannot be read: {str(error).splitlines()[0]}") from None
    if pictures.shape[1:] != (3, 32, 32):
        raise InputError(f"data_root: {folder} holds pictures of {tuple(pictures.shape[2:])} pixels, not 32x32")
    return pictures, torch.tensor(found.targets)
