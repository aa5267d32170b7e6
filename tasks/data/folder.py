"""ImageNet's official layout, train/<class>/*.JPEG and val/<class>/*.JPEG, as torchvision's `ImageFolder`."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from tasks.base import InputError
from tasks.data.files import existing_folder, is_macos_junk, quoted
from tasks.data.identity import Part
from tasks.data.images import CroppedImageSet, Split, Triple, UnreadableImageError
from tasks.data.published import verified_name
from tasks.data.quick_view import quick_view

# What Pillow raises for damaged files of the formats that ImageFolder accepts.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip

DECODINGS = ("full", "quick")

# ILSVRC 2012, its channel statistics and its terms
IMAGENET_COUNTS = {"train": 1_281_167, "val": 50_000, "classes": 1000}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_LICENCE = "ImageNet terms of access: research only, not redistributable"


class Listing(Protocol):
    """The pictures of one split, numbered in the order of `ImageFolder`, wherever they are stored.

    Attributes:
        labels: Class numbers, (N,).
    """

    labels: NDArray[np.int64]

    def location(self, index: int) -> str:
        """Return where a picture lies, for messages."""

    def file(self, index: int) -> bytes:
        """Return a picture's path from the folder of the split."""

    def open(self, index: int) -> Path | IO[bytes]:
        """Return what Pillow opens; OSError where it cannot be read."""


class ImageFolderSet(CroppedImageSet):
    """Pictures in class folders, seen as ImageNet is: random crop for training, centre crop for validation.

    The class number is the position of the folder's name in sorted order; pictures are numbered in the order
    of torchvision's `ImageFolder`. Decoding is Pillow's, and so is the antialiased bilinear resizing.

    ImageNet, whole or in part, is known by its class names, such as n01440764, or by its numbers of pictures and
    classes. Any other set needs a name of its own.

    Args:
        root: Folder that holds `train` and `val`; option `data_root`.
        name: What records call the set. ImageNet with other numbers than ILSVRC 2012's is called "imagenet_subset" or
            "imagenet_unverified".
        image_size: Side of the pictures handed out, in pixels.
        resize_ratio: Short side after resizing for evaluation, over `image_size`; 256/224 in the papers.
        crop_scale: Area fractions of the random training crop.
        mean: Channel means, in [0, 1]; None: ImageNet's, or those of 1,000 training pictures of another set.
        std: Channel standard deviations; None as for `mean`.
        licence: Terms of the pictures, for the record; None: ImageNet's, or "not stated" for another set.
        interpolation: "bilinear" or "bicubic", for both views.
        max_corrupt: Unreadable pictures a run may meet in each split; None allows 0.1 % of it, at least 10.
        decode: How training pictures are decoded. "full" decodes and resizes with Pillow, as torchvision's transforms
            do. "quick" draws the same crops and decodes no more than they need: see `tasks.data.quick_view`.
            Evaluation is Pillow's with either.

    Raises:
        InputError: if the folders are missing, empty, or differ in their classes between train and val, or another set
            than ImageNet is called so.
    """

    def __init__(
        self,
        root: str | None,
        *,
        name: str = "imagenet",
        image_size: int = 224,
        resize_ratio: float = 256 / 224,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        mean: Triple | None = None,
        std: Triple | None = None,
        licence: str | None = None,
        interpolation: str = "bilinear",
        max_corrupt: int | None = None,
        decode: str = "full",
    ) -> None:
        if decode not in DECODINGS:
            raise InputError(f"data.decode={decode}: must be one of {', '.join(DECODINGS)}")
        self.decode = decode
        super().__init__(
            image_size=image_size, resize_ratio=resize_ratio, crop_scale=crop_scale, interpolation=interpolation,
            max_corrupt=max_corrupt,
        )  # fmt: skip
        self.root, self.classes, self._splits = self._open(root)
        self.num_examples = {split: len(listing.labels) for split, listing in self._splits.items()}
        counts = {**self.num_examples, "classes": self.num_classes}
        is_imagenet = counts == IMAGENET_COUNTS or all(re.fullmatch(r"n\d{8}", each) for each in self.classes)
        if name == "imagenet" and not is_imagenet:
            raise InputError(
                f"data.name=imagenet: {self.root} holds {self.num_classes} classes such as {quoted(self.classes[0])}, "
                "none of ImageNet's; give the set a name of its own, data.name=NAME, and its terms, data.licence=TERMS"
            )
        self.name = verified_name(name, counts, IMAGENET_COUNTS) if name == "imagenet" else name
        self.licence = licence or (IMAGENET_LICENCE if is_imagenet else "not stated; set data.licence")
        if mean is None or std is None:
            own_mean, own_std = (IMAGENET_MEAN, IMAGENET_STD) if is_imagenet else self.channel_statistics()
            mean, std = mean or own_mean, std or own_std
        self.mean, self.std = mean, std

    def location(self, split: Split, index: int) -> str:
        return self._splits[split].location(index)

    def _open(self, root: str | None) -> tuple[Path, tuple[str, ...], dict[Split, Listing]]:
        """Return the folder, the classes and the pictures of each split."""
        path = check_root(root)
        classes = check_classes(path)
        return path, classes, {split: _Folders(path / split, classes) for split in ("train", "val")}

    def _divide(self, kept: Sequence[int], held: Sequence[int]) -> None:
        train = self._splits["train"]
        self._splits = {"train": _Part(train, kept), "val": _Part(train, held)}

    def identity(self) -> Sequence[Part]:
        files = [map(listing.file, range(len(listing.labels))) for listing in self._splits.values()]
        return [self.classes, *files]

    def label(self, split: Split, index: int) -> int:
        return int(self._splits[split].labels[index])

    def train_example(self, index: int) -> tuple[Tensor, int]:
        if self.decode == "full":
            return super().train_example(index)
        try:
            with Image.open(self._splits["train"].open(index)) as image:
                return quick_view(image, self._view), self.label("train", index)
        except DECODE_ERRORS as error:
            raise UnreadableImageError(f"{self.location('train', index)}: {error}") from error

    def describe(self) -> dict[str, Any]:
        facts = super().describe()
        return facts if self.decode == "full" else {**facts, "decode": self.decode}

    def _decode(self, split: Split, index: int) -> Image.Image:
        try:
            with Image.open(self._splits[split].open(index)) as image:
                image.load()
                return image if image.mode == "RGB" else image.convert("RGB")  # which copies what is RGB
        except DECODE_ERRORS as error:
            raise UnreadableImageError(f"{self.location(split, index)}: {error}") from error


class _Part:
    """Some pictures of a listing, under numbers of their own."""

    def __init__(self, whole: Listing, numbers: Sequence[int]) -> None:
        self._whole, self._numbers = whole, np.asarray(numbers, dtype=np.int64)
        self.labels: NDArray[np.int64] = whole.labels[self._numbers]

    def location(self, index: int) -> str:
        return self._whole.location(int(self._numbers[index]))

    def file(self, index: int) -> bytes:
        return self._whole.file(int(self._numbers[index]))

    def open(self, index: int) -> Path | IO[bytes]:
        return self._whole.open(int(self._numbers[index]))


class _Folders:
    """The pictures of one split, in arrays: a list of a million strings would be copied into every worker."""

    def __init__(self, folder: Path, classes: tuple[str, ...]) -> None:
        names: list[bytes] = []
        labels: list[int] = []
        for label, class_name in enumerate(classes):
            paths = list_images(folder / class_name)
            if not paths:
                raise InputError(f"data_root: {folder / class_name} holds no pictures ({', '.join(IMG_EXTENSIONS)})")
            names += [os.fsencode(path) for path in paths]
            labels += [label] * len(paths)
        self._folders = [folder / class_name for class_name in classes]
        self._names: NDArray[np.bytes_] = np.array(names)
        self.labels: NDArray[np.int64] = np.array(labels, dtype=np.int64)

    def location(self, index: int) -> str:
        return str(self.open(index))

    def file(self, index: int) -> bytes:
        return os.fsencode(self._folders[self.labels[index]].name) + b"/" + bytes(self._names[index])

    def open(self, index: int) -> Path:
        return self._folders[self.labels[index]] / os.fsdecode(bytes(self._names[index]))


def list_images(folder: Path) -> list[str]:
    """Return the pictures below a folder relative to it, in `ImageFolder`'s order.

    Links to folders are followed, but no folder is entered twice: a link to a folder above itself would
    otherwise be walked until the system's limit on links.
    """
    walked: list[tuple[str, list[str]]] = []
    entered = {os.path.realpath(folder)}
    for current, subfolders, files in os.walk(folder, followlinks=True):
        subfolders.sort()
        for name in list(subfolders):
            real = os.path.realpath(Path(current, name))
            if real in entered:
                subfolders.remove(name)
            entered.add(real)
        walked.append((current, sorted(filter(_is_image, files))))
    images: list[str] = []
    for current, names in sorted(walked):
        prefix = os.path.relpath(current, folder)
        images += names if prefix == "." else [f"{prefix}/{name}" for name in names]
    return images


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS) and not is_macos_junk(name)


def check_root(root: str | None) -> Path:
    """Return the data folder as a path, or raise InputError saying how to name it."""
    path = existing_folder("data_root", root, "the folder that holds train/ and val/", example="/path/to/imagenet")
    for split in ("train", "val"):
        if not (path / split).is_dir() and split == "val" and (path / "test").is_dir():
            raise InputError(
                f"data_root={root}: has no folder val/ but test/; if its pictures are to choose the best checkpoint, "
                f"link it: ln -s test {path / 'val'}"
            )
        if not (path / split).is_dir():
            raise InputError(
                f"data_root={root}: has no folder {split}/; expected train/<class>/*.JPEG, val/<class>/*.JPEG"
            )
    return path


def check_classes(root: Path) -> tuple[str, ...]:
    """Return the sorted class folders, the same in train and val, or raise InputError naming what differs."""
    classes: dict[str, set[str]] = {}
    for split in ("train", "val"):
        try:
            classes[split] = {entry.name for entry in os.scandir(root / split) if entry.is_dir()}
        except OSError as error:
            raise InputError(f"data_root={root}: {split}/ cannot be read ({error.strerror})") from error
        if not classes[split]:
            raise InputError(f"data_root={root}: {split}/ has no class folders; expected {split}/<class>/*.JPEG")
    for one, other in (("train", "val"), ("val", "train")):
        missing = sorted(classes[one] - classes[other])
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise InputError(f"data_root={root}: {len(missing)} class folders of {one}/ are not in {other}/: {names}")
    return tuple(sorted(classes["train"]))
