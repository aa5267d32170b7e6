"""The interface of labelled image sets: uint8 pictures by number, training and evaluation views, facts.

Shapes: C channels (always 3 on the way out), H W pixels of a stored picture, S side of a picture handed out.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2

from tasks.base import InputError
from tasks.checks import check_at_least
from tasks.data.identity import Part, data_digest

Split = Literal["train", "val"]
Triple = tuple[float, float, float]
SPLITS: tuple[Split, ...] = ("train", "val")
BILINEAR = v2.InterpolationMode.BILINEAR
INTERPOLATIONS = {"bilinear": BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


class UnreadableImageError(Exception):
    """A stored picture that cannot be decoded; the loader counts it and goes on."""


class ImageSet(ABC):
    """A training and a validation split of labelled pictures, all of one size once transformed.

    Attributes:
        name: What tables and records call this set. Each set has a name of its own, so that no score of one
            is ever tabulated beside a score of another.
        classes: Class names; a label is a position in this list.
        image_size: Side S of the pictures handed out, in pixels.
        mean: Channel means of the training pictures, in [0, 1].
        std: Channel standard deviations of the training pictures, in [0, 1].
        licence: Terms under which the pictures are distributed.
        num_examples: Pictures in each split.
        max_corrupt: Unreadable pictures a run may meet in each split before it gives up.
    """

    name: str
    classes: tuple[str, ...]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    num_examples: dict[str, int]
    max_corrupt: int | None = None

    INTERPOLATION: ClassVar[str] = "bilinear, antialiased"

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    @abstractmethod
    def train_example(self, index: int) -> tuple[Tensor, int]:
        """Return picture `index` of the training split, augmented, and its label.

        Randomness comes from the global CPU generators, which the loader seeds before each call.

        Returns:
            (3, S, S) uint8 and a class number.

        Raises:
            UnreadableImageError: if the stored picture cannot be decoded.
        """

    @abstractmethod
    def eval_example(self, index: int) -> tuple[Tensor, int]:
        """Return picture `index` of the validation split and its label, not augmented; as `train_example`."""

    def hold_out(self, share: float) -> None:
        """Make a share of the training pictures the validation split, instead of the published one.

        For choosing hyperparameters: what the papers report is scored on the published split, which must not choose
        them. The same pictures are held out whatever the run's seed, they are seen without augmentation, and the set
        gets a name of its own.

        Args:
            share: Part of the training pictures, in (0, 1).

        Raises:
            InputError: The share leaves one of the splits empty, or this set cannot be divided.
        """
        total = self.num_examples["train"]
        num = round(share * total) if 0 < share < 1 else 0
        if not 0 < num < total:
            raise InputError(
                f"task.validation={share}: must be a share of the {total} training pictures that leaves some to each"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
        held, kept = sorted(order[:num]), sorted(order[num:])
        self._divide(kept, held)
        self.name = f"{self.name}_held_out_{share:g}"
        self.num_examples = {"train": len(kept), "val": len(held)}

    def _divide(self, kept: Sequence[int], held: Sequence[int]) -> None:
        """Let go of the validation split; keep some training pictures, and make the others that split."""
        raise InputError(f"task.validation: the set {self.name} has no way to hold out training pictures")

    def location(self, split: Split, index: int) -> str:
        """Return where picture `index` of a split lies, in words for a warning."""
        return f"{self.name} {split} image {index}"

    def identity(self) -> Sequence[Part]:
        """Return what tells this set from another of its name and size, for `data_digest`; empty where nothing can."""
        return ()

    def describe(self) -> dict[str, Any]:
        """Return facts for the record of a run."""
        parts = self.identity()
        return {
            **({"digest": data_digest(*parts)} if parts else {}),
            "name": self.name,
            "train_examples": self.num_examples["train"],
            "val_examples": self.num_examples["val"],
            "classes": self.num_classes,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "licence": self.licence,
            "interpolation": self.INTERPOLATION,
        }


class Synthetic(ImageSet):
    """Noise of the real shapes, for dry runs and for timing; it measures no optimizer.

    A pool of 16 pictures is drawn once and handed out in turn, so that a timing measures the device and not
    the generator of noise.

    Args:
        image_size: Side of the pictures, in pixels.
        num_classes: Classes; labels go round.
        train_examples: Pictures in the training split.
        val_examples: Pictures in the validation split.
    """

    POOL = 16

    def __init__(
        self,
        *,
        image_size: int = 224,
        num_classes: int = 1000,
        train_examples: int = 1_281_167,
        val_examples: int = 50_000,
    ) -> None:
        sizes = {
            "image_size": image_size, "num_classes": num_classes, "train_examples": train_examples,
            "val_examples": val_examples,
        }  # fmt: skip
        check_at_least(1, {f"data.{option}": value for option, value in sizes.items()})
        self.name = "synthetic"
        self.classes = tuple(f"class {k}" for k in range(num_classes))
        self.image_size = image_size
        self.mean = (0.5, 0.5, 0.5)
        self.std = (0.2887, 0.2887, 0.2887)  # of a uniform variable on [0, 1]: 1 / sqrt(12)
        self.licence = "none (random numbers)"
        self.num_examples = {"train": train_examples, "val": val_examples}
        generator = torch.Generator().manual_seed(0)
        shape = (self.POOL, 3, image_size, image_size)
        self._pool = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def train_example(self, index: int) -> tuple[Tensor, int]:
        return self._pool[index % self.POOL], index % self.num_classes

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        return self.train_example(index)


class RandomView:
    """A random part of a picture, resized and mirrored half of the time: the training view of every set.

    The part is that of torchvision's `RandomResizedCrop`: its area a uniform fraction from `crop_scale`, its
    aspect ratio log-uniform in 3/4-4/3. Cropping before resizing keeps the cost that of one small resize.

    Args:
        size: Side of the view, in pixels.
        crop_scale: Smallest and largest fraction of the area to keep.
        interpolation: How the part is resized.
    """

    def __init__(
        self, size: int, crop_scale: tuple[float, float], *, interpolation: v2.InterpolationMode = BILINEAR
    ) -> None:
        low, high = crop_scale
        if not 0 < low <= high <= 1:
            raise InputError(f"data.crop_scale={list(crop_scale)}: must be two fractions, 0 < smallest <= largest <= 1")
        self.side, self.interpolation = size, interpolation.value
        self._interpolation = interpolation
        self._scale, self._ratio = [low, high], [3 / 4, 4 / 3]

    def __call__(self, image: Any) -> Any:
        """Return a view of `image`, a PIL image or a uint8 tensor (C, H, W), as the same kind."""
        image = self.resize(image, self.draw_box(image))
        return v2.functional.horizontal_flip(image) if random.random() < 0.5 else image

    def draw_box(self, image: Any) -> tuple[int, int, int, int]:
        """Draw the part to show: top, left, height, width. Of a PIL image the header is enough."""
        # The first version's draw is the second's, bit for bit, in a third of the time: 0.06 ms of 5 ms per picture.
        return RandomResizedCrop.get_params(image, self._scale, self._ratio)

    def resize(self, image: Any, box: tuple[int, int, int, int]) -> Any:
        """Return a part of `image` at the size of the view."""
        return v2.functional.resized_crop(
            image, *box, size=[self.side, self.side], interpolation=self._interpolation, antialias=True
        )


class CroppedImageSet(ImageSet):
    """Stored pictures, seen as ImageNet is: random crop for training, resized short side and centre crop otherwise.

    Resizing is Pillow's, with antialiasing.

    Args:
        image_size: Side of the pictures handed out, in pixels.
        resize_ratio: Short side after resizing for evaluation, over `image_size`; 256/224 in the papers.
        crop_scale: Area fractions of the random training crop.
        interpolation: "bilinear" or "bicubic", for both views.
        max_corrupt: Unreadable pictures a run may meet in each split; None allows 0.1 % of it, at least 10.

    Raises:
        InputError: An option is out of its range.
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize_ratio: float,
        crop_scale: tuple[float, float],
        interpolation: str = "bilinear",
        max_corrupt: int | None,
    ) -> None:
        check_at_least(1, {"data.image_size": image_size, "data.resize_ratio": resize_ratio})
        if interpolation not in INTERPOLATIONS:
            raise InputError(f"data.interpolation={interpolation}: must be one of {', '.join(INTERPOLATIONS)}")
        if max_corrupt is not None:
            check_at_least(0, {"data.max_corrupt": max_corrupt})
        self.image_size, self.max_corrupt = image_size, max_corrupt
        self._interpolation_name, self._interpolation = interpolation, INTERPOLATIONS[interpolation]
        self._view = RandomView(image_size, crop_scale, interpolation=self._interpolation)
        self._short_side = round(image_size * resize_ratio)

    @abstractmethod
    def label(self, split: Split, index: int) -> int:
        """Return what a picture is labelled with: its class, or its number where a task looks the class up."""

    @abstractmethod
    def _decode(self, split: Split, index: int) -> Image.Image:
        """Return a stored picture as RGB, or raise UnreadableImageError."""

    def train_example(self, index: int) -> tuple[Tensor, int]:
        return v2.functional.pil_to_tensor(self._view(self._decode("train", index))), self.label("train", index)

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        return self._centre_view("val", index), self.label("val", index)

    def _centre_view(self, split: Split, index: int) -> Tensor:
        """Return the middle of a picture, (3, S, S) uint8: short side resized, centre cropped."""
        image = v2.functional.resize(
            self._decode(split, index), [self._short_side], self._interpolation, antialias=True
        )
        return v2.functional.pil_to_tensor(v2.functional.center_crop(image, [self.image_size, self.image_size]))

    def channel_statistics(self, num_images: int = 1000) -> tuple[Triple, Triple]:
        """Return the mean and standard deviation of each channel, in [0, 1], of the centres of training pictures.

        Args:
            num_images: Pictures to decode, evenly spread over the training split; fewer if it has fewer. Those that
                cannot be decoded are left out.

        Raises:
            InputError: None of them can be decoded.
        """
        total = self.num_examples["train"]
        num_images = min(num_images, total)
        sums, squares, num_pixels = np.zeros(3), np.zeros(3), 0
        for index in (i * total // num_images for i in range(num_images)):
            try:
                pixels = self._centre_view("train", index).numpy().reshape(3, -1) / 255  # float64
            except UnreadableImageError:
                continue
            sums, squares, num_pixels = sums + pixels.sum(1), squares + (pixels**2).sum(1), num_pixels + pixels.shape[1]
        if not num_pixels:
            raise InputError(f"{self.name}: none of {num_images} training pictures can be decoded; check data_root")
        mean = sums / num_pixels
        std = np.sqrt(np.maximum(squares / num_pixels - mean**2, 1e-4))  # of pictures of one colour too: not 0
        return _rounded(mean), _rounded(std)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "interpolation": f"{self._interpolation_name}, antialiased (Pillow)"}


def _rounded(values: NDArray[np.float64]) -> Triple:
    red, green, blue = (round(float(value), 4) for value in values)
    return red, green, blue


def split_training_pictures(
    images: Tensor, labels: Sequence[int], *, kept: Sequence[int], held: Sequence[int]
) -> tuple[dict[Split, Tensor], dict[Split, list[int]]]:
    """Return pictures (N, ...) and labels (N,) in two splits: those that are kept for training, and those held out."""
    parts: dict[Split, Sequence[int]] = {"train": kept, "val": held}
    return (
        {split: images[torch.as_tensor(numbers)] for split, numbers in parts.items()},
        {split: [labels[i] for i in numbers] for split, numbers in parts.items()},
    )
