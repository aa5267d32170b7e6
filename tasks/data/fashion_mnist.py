"""Fashion-MNIST as a stand-in for ImageNet: product photographs, 28x28 grey, 10 balanced classes.

Three sets, three names. `fashion_mnist_20k` lies in this repository: the first 1,000 training pictures of each class
and all 10,000 test pictures. `fashion_mnist_10k` is read from the same files, and validates on the first 100 test
pictures of each class alone. `fashion_mnist` is the full 60,000 + 10,000 that `make data` prepares.
Reference: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset", arXiv:1708.07747.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.data.files import parse_json, read_whole
from tasks.data.identity import Part
from tasks.data.idx import decompress, parse_idx
from tasks.data.images import BILINEAR, ImageSet, RandomView, Split, split_training_pictures
from tasks.data.published import verified_name

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# The published file names: what the authors call the test set is our validation split.
FILES: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "val": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
COUNTS = {
    "fashion_mnist": {"train": 60_000, "val": 10_000},
    "fashion_mnist_20k": {"train": 10_000, "val": 10_000},
    "fashion_mnist_10k": {"train": 10_000, "val": 1_000},
}
EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist_20k"


def read_manifest(root: Path) -> dict[str, Any]:
    """Return `manifest.json` of a prepared folder.

    Raises:
        InputError: if it is missing or not the JSON object that the preparation writes.
    """
    path = root / "manifest.json"
    try:
        manifest = parse_json(read_whole(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); run `make data`") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete the folder and run `make data`") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise InputError(f"{path}: lists no files; delete the folder and run `make data`")
    return manifest


class FashionMnist(ImageSet):
    """Fashion-MNIST, grey repeated to three channels and enlarged bilinearly.

    Args:
        name: `fashion_mnist_10k` or `fashion_mnist_20k`, from this repository, or `fashion_mnist`, all of it.
        root: Folder with the four idx files and `manifest.json`; None is the folder of `make data` for
            `fashion_mnist`, else the repository's own.
        image_size: Side of the pictures handed out, in pixels.
        crop_scale: Area fractions of the random crop; ImageNet's 0.08 would leave 8 of 28 pixels per side.

    Raises:
        InputError: if the set has not been prepared, or a file is damaged.
    """

    def __init__(
        self,
        name: str = "fashion_mnist_10k",
        root: str | None = None,
        *,
        image_size: int = 64,
        crop_scale: tuple[float, float] = (0.5, 1.0),
    ) -> None:
        folder = folder_of(name, root)
        if not image_size >= 1:
            raise InputError(f"data.image_size={image_size}: must be at least 1")
        self.classes = CLASSES
        self.image_size = image_size
        # Of the 60,000 training pictures; those of the 10,000 in the repository differ by less than 0.002.
        self.mean = (0.2860, 0.2860, 0.2860)
        self.std = (0.3530, 0.3530, 0.3530)
        self.licence = "MIT (Zalando SE)"
        self._view = RandomView(image_size, crop_scale)
        manifest = read_manifest(folder)
        self._source = f"{manifest.get('source')}, version {manifest.get('package_version')}"
        if name == "fashion_mnist_10k":
            self._source += "; validation on the first 100 test pictures of each class"
        self._images: dict[Split, Tensor] = {}
        self._labels: dict[Split, list[int]] = {}
        for split in FILES:
            images, labels = read_pictures(name, split, root)
            self._images[split] = torch.from_numpy(images.copy()).unsqueeze(1)  # (N, 1, 28, 28)
            self._labels[split] = labels.tolist()
        self.num_examples = {split: len(labels) for split, labels in self._labels.items()}
        self.name = verified_name(name, self.num_examples, COUNTS[name])

    def train_example(self, index: int) -> tuple[Tensor, int]:
        view = self._view(self._images["train"][index])
        return view.expand(3, -1, -1), self._labels["train"][index]

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        size = [self.image_size, self.image_size]
        image = v2.functional.resize(self._images["val"][index], size, BILINEAR, antialias=True)
        return image.expand(3, -1, -1), self._labels["val"][index]

    def identity(self) -> Sequence[Part]:
        return [part for split in self._images for part in (self._images[split], self._labels[split])]

    def _divide(self, kept: Sequence[int], held: Sequence[int]) -> None:
        self._images, self._labels = split_training_pictures(
            self._images["train"], self._labels["train"], kept=kept, held=held
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "source": self._source}


def folder_of(name: str, root: str | None = None) -> Path:
    """Return the folder that holds a set's files; arguments as for `FashionMnist`.

    Raises:
        InputError: if there is no set of this name, or no folder.
    """
    if name not in COUNTS:
        raise InputError(f"data.name={name}: must be one of {', '.join(COUNTS)}")
    default = cache_folder() / "fashion_mnist" if name == "fashion_mnist" else EMBEDDED
    folder = Path(root).expanduser() if root else default
    if not folder.is_dir():
        hint = "run `make data` to prepare it" if name == "fashion_mnist" else "check data.root"
        raise InputError(f"data={name}: {folder} does not exist; {hint}")
    return folder


def read_pictures(name: str, split: Split, root: str | None = None) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a split's pictures (N, 28, 28) and labels (N,) of a set; arguments as for `FashionMnist`.

    Raises:
        InputError: if the set has not been prepared, or a file is damaged.
    """
    folder = folder_of(name, root)
    images, labels = read_split(folder, split, read_manifest(folder))
    if (name, split) == ("fashion_mnist_10k", "val"):
        chosen = first_of_each_class(labels, COUNTS[name][split] // len(CLASSES))
        return images[chosen], labels[chosen]
    return images, labels


def first_of_each_class(labels: NDArray[np.uint8], count: int) -> NDArray[np.intp]:
    """Return the positions of the first `count` examples of each class, or of all it has, in file order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(len(CLASSES))]))


def read_split(folder: Path, split: Split, manifest: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a split's pictures (N, 28, 28) and labels (N,), checked against the manifest and each other.

    Raises:
        InputError: naming the file that is missing, damaged, or does not match its partner.
    """
    arrays = []
    for file_name in FILES[split]:
        entry = manifest["files"].get(file_name)
        if not isinstance(entry, dict) or "sha256" not in entry:
            raise InputError(f"{folder / 'manifest.json'}: has no sha256 of {file_name}")
        arrays.append(parse_idx(decompress(folder / file_name, sha256=entry["sha256"]), str(folder / file_name)))
    return check_split(*arrays, name=str(folder / FILES[split][0]))


def check_split(
    images: NDArray[np.uint8], labels: NDArray[np.uint8], *, name: str
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the pair unchanged if it is N pictures of 28x28 and N labels below 10, else raise InputError."""
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise InputError(f"{name}: holds an array of shape {images.shape}, not pictures of 28x28")
    if labels.shape != images.shape[:1]:
        raise InputError(f"{name}: {len(images)} pictures, but labels of shape {labels.shape}")
    if len(labels) == 0 or labels.max() >= len(CLASSES):
        raise InputError(f"{name}: its labels are empty or go beyond {len(CLASSES) - 1}")
    return images, labels
