"""Handwritten digits as grey pictures: MNIST from its idx files, or the small set that scikit-learn carries.

Shapes: N digits, H W pixels.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.data.files import read_whole
from tasks.data.identity import data_digest
from tasks.data.idx import parse_idx

# What the authors published, uncompressed: file, sha256.
MNIST_FILES = {
    "train": (
        ("train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        ("train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ),
    "test": (
        ("t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        ("t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
}
MNIST_SIZES = {"train": 60_000, "test": 10_000}
MNIST_FOLDERS = ("MNIST/raw", "raw", "")  # torchvision's layout, that of ReBias's code, the files alone


class DigitSet:
    """Grey pictures of the digits 0 to 9 in a training and a test split; a value above 0 belongs to the stroke.

    Attributes:
        name: What records call the set.
        images: Split -> (N, H, W) uint8.
        labels: Split -> (N,) int64, from 0 to 9.
        licence: Terms of the pictures.
        source: Where they come from.
    """

    name: str
    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    licence: str
    source: str

    def describe(self) -> dict[str, Any]:
        """Return facts for the record of a run."""
        return {
            "name": self.name,
            "train_examples": len(self.labels["train"]),
            "val_examples": len(self.labels["test"]),
            "classes": 10,
            "image_size": self.images["train"].shape[-1],
            "licence": self.licence,
            "source": self.source,
            "digest": data_digest(*self.images.values(), *self.labels.values()),
        }


class SmallDigits(DigitSet):
    """scikit-learn's 1,797 digits of 8x8 pixels: part of UCI's "Optical Recognition of Handwritten Digits".

    Their 17 grey levels become two at half of the highest. A fixed draw puts 360 of them into the test split.
    """

    NUM_TEST = 360

    def __init__(self) -> None:
        from sklearn.datasets import load_digits  # takes a second, which runs on other data need not spend

        digits = load_digits()
        images = 255 * (torch.from_numpy(digits.images) >= 8).to(torch.uint8)  # (N, 8, 8), were 0 to 16
        labels = torch.from_numpy(digits.target).long()
        order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
        parts = {"test": order[: self.NUM_TEST], "train": order[self.NUM_TEST :]}
        self.name = "small_digits"
        self.images = {split: images[part] for split, part in parts.items()}
        self.labels = {split: labels[part] for split, part in parts.items()}
        self.licence = "CC BY 4.0 (Alpaydin, Kaynak; UCI Machine Learning Repository)"
        self.source = "scikit-learn load_digits"


class MnistDigits(DigitSet):
    """MNIST from its four idx files, as they are or compressed with gzip.

    Files with the published 60,000 + 10,000 digits must have the published sha256. Files with other numbers are
    another set, which is named so: `name` with "_other" behind it.

    Args:
        root: Folder with the files, or with `MNIST/raw` or `raw` below it; None: where `make data` puts sets.
        name: What records call the set.

    Raises:
        InputError: if a file is missing, truncated, damaged, or does not match its partner.
    """

    def __init__(self, root: str | None = None, *, name: str = "mnist") -> None:
        folder = find_mnist(root)
        self.images, self.labels = {}, {}
        published = True
        for split, files in MNIST_FILES.items():
            arrays = []
            for file_name, digest in files:
                content = read_plain_or_gzip(folder / file_name)
                arrays.append(parse_idx(content, str(folder / file_name)))
                same = hashlib.sha256(content).hexdigest() == digest
                if len(arrays[-1]) == MNIST_SIZES[split] and not same:
                    raise InputError(
                        f"data_root: {folder / file_name} has the size of MNIST's file and another sha256 than the "
                        f"published {digest[:12]}...: it is damaged; fetch it again"
                    )
                published = published and same
            images, labels = check_digits(*arrays, name=str(folder / files[0][0]))
            self.images[split] = torch.from_numpy(images.copy())
            self.labels[split] = torch.from_numpy(labels.astype(np.int64))
        if self.images["train"].shape[1:] != self.images["test"].shape[1:]:
            raise InputError(f"data_root: {folder}: training and test digits differ in size")
        self.name = name if published else f"{name}_other"
        self.licence = "CC BY-SA 3.0 (LeCun, Cortes)" if published else "unknown"
        self.source = "published idx files" if published else "idx files that are not the published ones"


def find_mnist(root: str | None) -> Path:
    """Return the folder below `root` that holds the idx files, or raise InputError saying what was looked for."""
    base = Path(root).expanduser() if root else cache_folder() / "mnist"
    if not base.is_dir():
        problem = f"data_root={root}: does not exist" if root else f"data_root is not set, and {base} does not exist"
        raise InputError(f"{problem}; give the folder of MNIST's idx files, data_root=/path/to/mnist")
    first = MNIST_FILES["train"][0][0]
    for below in MNIST_FOLDERS:
        folder = base / below
        if (folder / first).exists() or (folder / f"{first}.gz").exists():
            return folder
    raise InputError(f"data_root={base}: no {first} (or {first}.gz) there, in MNIST/raw or in raw")


def read_plain_or_gzip(path: Path) -> bytes:
    """Return the content of a file or, where there is none, of the same name with .gz."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        return read_whole(path) if path.exists() else gzip.decompress(read_whole(packed))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"data_root: {packed}: not a complete gzip file ({error})") from error
    except OSError as error:
        raise InputError(f"data_root: {path}: cannot be read ({error.strerror or error})") from error


def check_digits(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pair unchanged if it is N square pictures and N labels below 10, else raise InputError."""
    if images.ndim != 3 or images.shape[1] != images.shape[2] or not images.size:
        raise InputError(f"data_root: {name}: holds an array of shape {images.shape}, not square pictures")
    if labels.shape != images.shape[:1]:
        raise InputError(f"data_root: {name}: {len(images)} pictures, but labels of shape {labels.shape}")
    if labels.max() > 9:
        raise InputError(f"data_root: {name}: a label is {labels.max()}, beyond 9")
    return images, labels
