"""Labelled 32x32 pictures: CIFAR-10 as its authors distribute it, and Fashion-MNIST padded to the same size.

Reference: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from tasks.base import InputError
from tasks.data.fashion_mnist import FashionMnist
from tasks.data.files import read_whole
from tasks.data.identity import Part
from tasks.data.images import ImageSet, Split, split_training_pictures

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FILES: dict[Split, tuple[str, ...]] = {
    "train": tuple(name for name, _ in datasets.CIFAR10.train_list),
    "val": tuple(name for name, _ in datasets.CIFAR10.test_list),
}
MD5 = dict([*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list])  # as published
FOLDER = datasets.CIFAR10.base_folder


class Cifar10(ImageSet):
    """CIFAR-10 from its "python version": 50,000 training pictures and, as validation split, the 10,000 test pictures.

    Training pictures are padded with zeros, cropped at random and mirrored half of the time.

    Args:
        root: The folder `cifar-10-batches-py` or the one that holds it.
        crop_padding: Zeros on each side before the random crop, in pixels.
        verify: Compare each file with its published md5. A set that was not compared is called cifar10_unverified.

    Raises:
        InputError: naming the file that is missing, differs from the published one, or is no batch of pictures.
    """

    INTERPOLATION: ClassVar[str] = "none"

    def __init__(self, root: str | None, *, crop_padding: int = 4, verify: bool = True) -> None:
        folder = _folder(root)
        self.name = "cifar10" if verify else "cifar10_unverified"
        self.classes = CLASSES
        self.image_size = 32
        # Of the 50,000 training pictures, for the record: the networks here take pictures in [0, 1] as they are.
        self.mean = (0.4914, 0.4822, 0.4465)
        self.std = (0.2470, 0.2435, 0.2616)
        self.licence = "none stated by the authors; they ask to be cited"
        self._view = shifted_view(crop_padding)
        self._images: dict[Split, Tensor] = {}
        self._labels: dict[Split, list[int]] = {}
        for split, names in FILES.items():
            batches = [read_batch(folder / name, md5=MD5[name] if verify else None) for name in names]
            self._images[split] = torch.from_numpy(np.concatenate([images for images, _ in batches]))
            self._labels[split] = [label for _, labels in batches for label in labels]
        self.num_examples = {split: len(labels) for split, labels in self._labels.items()}

    def train_example(self, index: int) -> tuple[Tensor, int]:
        return self._view(self._images["train"][index]), self._labels["train"][index]

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        return self._images["val"][index], self._labels["val"][index]

    def identity(self) -> Sequence[Part]:
        return [part for split in self._images for part in (self._images[split], self._labels[split])]

    def _divide(self, kept: Sequence[int], held: Sequence[int]) -> None:
        self._images, self._labels = split_training_pictures(
            self._images["train"], self._labels["train"], kept=kept, held=held
        )


class PaddedFashionMnist(FashionMnist):
    """Fashion-MNIST with two zeros on each side, 28 -> 32 pixels, grey repeated to three channels.

    Args:
        name: As for `FashionMnist`.
        root: As for `FashionMnist`.
        crop_padding: Further zeros on each side before a random crop, in pixels; 0 leaves the items centred.

    Raises:
        InputError: if the set has not been prepared, or a file is damaged.
    """

    INTERPOLATION: ClassVar[str] = "none, two zeros on each side"

    def __init__(self, name: str = "fashion_mnist_10k", root: str | None = None, *, crop_padding: int = 0) -> None:
        super().__init__(name, root, image_size=32)
        self._view = shifted_view(crop_padding)

    def train_example(self, index: int) -> tuple[Tensor, int]:
        image = F.pad(self._images["train"][index], (2, 2, 2, 2))
        return self._view(image).expand(3, -1, -1), self._labels["train"][index]

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        return F.pad(self._images["val"][index], (2, 2, 2, 2)).expand(3, -1, -1), self._labels["val"][index]


def shifted_view(crop_padding: int) -> v2.Compose:
    """Return the usual training view of 32x32 pictures: zero padding, random crop, mirror image half of the time."""
    if not crop_padding >= 0:
        raise InputError(f"data.crop_padding={crop_padding}: must be at least 0")
    return v2.Compose([v2.RandomCrop(32, padding=crop_padding), v2.RandomHorizontalFlip()])


def _folder(root: str | None) -> Path:
    if not root:
        raise InputError(f"data_root is not given: set it to the folder that holds {FOLDER}")
    base = Path(root).expanduser()
    for folder in (base / FOLDER, base):
        if (folder / FILES["val"][0]).exists():
            return folder
    raise InputError(
        f"data_root={root}: neither it nor its subfolder {FOLDER} holds the files of CIFAR-10's python version "
        f"(no {FILES['val'][0]} there)"
    )


def read_batch(path: Path, *, md5: str | None) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the pictures (N, 3, 32, 32) and labels of one batch file.

    Args:
        path: A pickled dict whose "data" is (N, 3072) uint8, red first, rows in order, and "labels" a list.
        md5: Expected digest of the file; None does not check.

    Raises:
        InputError: if the file is missing, has another digest, or is no such dict.
    """
    try:
        content = read_whole(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check data_root") from error
    if md5 is not None and (digest := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise InputError(
            f"{path}: damaged, {len(content)} bytes with md5 {digest} where {md5} is published; get CIFAR-10 again and "
            "check data_root"
        )
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a broken pickle can fail in any way
        raise InputError(f"{path}: no readable CIFAR-10 batch ({error}); check data_root") from error
    return _checked(batch, path)


def _checked(batch: Any, path: Path) -> tuple[NDArray[np.uint8], list[int]]:
    """Return a loaded batch's pictures and labels, or raise InputError if it is not what its name says."""
    # Python 2 wrote plain strings; copies written by Python 3 may have bytes.
    named = (
        {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in batch.items()}
        if isinstance(batch, Mapping)
        else {}
    )
    images, labels = named.get("data"), named.get("labels")
    if not (
        isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 2 and images.shape[1] == 3072
    ):
        raise InputError(f"{path}: holds no data of N x 3072 bytes; check data_root")
    if not (isinstance(labels, list) and len(labels) == len(images) > 0):
        raise InputError(f"{path}: holds no labels for its {len(images)} pictures; check data_root")
    if not all(isinstance(label, int) and 0 <= label < len(CLASSES) for label in labels):
        raise InputError(f"{path}: a label is not a class number from 0 to {len(CLASSES) - 1}; check data_root")
    return images.reshape(-1, 3, 32, 32), labels


def _latin1(text: str, encoding: str) -> bytes:
    """Return text as bytes: how Python 3 writes bytes in the old protocols."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text encoded as {encoding}")
    return codecs.encode(text, "latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Loads numbers, strings, lists, dicts and numpy arrays. Anything else could run code of the file's choice."""

    _ARRAY = np.empty(0, np.uint8)
    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _latin1,
        # Looked up by what numpy itself would write, since its private modules have moved between versions.
        ("multiarray", "_reconstruct"): _ARRAY.__reduce__()[0],
        ("numeric", "_frombuffer"): _ARRAY.__reduce_ex__(5)[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array needs; refuse every other name."""
        key = module.removeprefix("numpy.core.").removeprefix("numpy._core."), name
        if key not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a batch does not need")
        return self.ALLOWED[key]
