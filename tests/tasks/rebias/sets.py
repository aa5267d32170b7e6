"""Small sets in the published layouts, made on the spot, and small networks for them."""

from __future__ import annotations

import csv
import gzip
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from tasks.data.digits import DigitSet
from tasks.data.idx import format_idx
from tasks.data.imagenet9 import CLASS_OF, SYNSETS
from tasks.rebias import BiasedMnist, simple_convnet
from tasks.rebias.networks import FeatureClassifier
from tests.tasks.data.pictures import picture

# The 21 of the 42 synsets that ImageNet-A has.
HARD = (
    *SYNSETS["dog"], *SYNSETS["bird"], *SYNSETS["insect"], "n02486410", "n02492035", "n02123394", "n01641577",
    "n01669191", "n02655020",
)  # fmt: skip
SMALL = partial(simple_convnet, width=0.125)
TINY = {"f": partial(SMALL, kernel_size=7), "g": partial(SMALL, kernel_size=1)}


def glyphs(count: int, *, seed: int, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, size, size) of ten different strokes, shifted by up to two pixels, and uneven labels (N,)."""
    draw = np.random.RandomState(seed)
    labels = np.sort(np.concatenate([np.arange(10), draw.randint(0, 10, count - 10)])).astype(np.uint8)
    images = np.zeros((count, size, size), np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 + draw.randint(0, 3, 2)
        image[row : row + 2 + label, column : column + 4] = 200
        image[row : row + 3, column : column + 12 - label] = 90
    order = draw.permutation(count)
    return images[order], labels[order]


def write_mnist(folder: Path, *, train: int = 200, test: int = 100, pack: bool = False) -> Path:
    """Write the four idx files of so many glyphs into a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = glyphs(count, seed=seed)
        for name, array in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            content = format_idx(array)
            if pack:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


class Glyphs(DigitSet):
    """120 + 60 glyphs of 12x12 pixels."""

    def __init__(self) -> None:
        self.name, self.licence, self.source = "glyphs", "none", "made up"
        self.images, self.labels = {}, {}
        for split, count, seed in (("train", 120, 0), ("test", 60, 1)):
            images, labels = glyphs(count, seed=seed, size=18)
            self.images[split] = torch.from_numpy(images)
            self.labels[split] = torch.from_numpy(labels.astype(np.int64))


def without_norm(num_classes: int, *, kernel_size: int) -> FeatureClassifier:
    """Return a network without batch statistics: with them half a batch is another computation."""
    convolution = nn.Conv2d(3, 6, kernel_size, padding=kernel_size // 2)
    return FeatureClassifier(
        nn.Sequential(convolution, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 6, num_classes=num_classes
    )


def biased_mnist(**options: object) -> BiasedMnist:
    """Return the task on glyphs with the smallest networks."""
    torch.manual_seed(0)
    return BiasedMnist(Glyphs(), **{**TINY, "rho": 0.9, "batch_size": 12, "seed": 0, **options})  # type: ignore[arg-type]


def write_imagenet9(root: Path, *, train: int = 2, val: int = 2, size: int = 40) -> Path:
    """Write ImageNet's layout of the 42 synsets and a decoy, and return its root."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        for synset in ["n09999999", *sorted(CLASS_OF, reverse=True)]:  # not created in sorted order
            folder = root / split / synset
            folder.mkdir(parents=True)
            for item in reversed(range(count)):
                name = f"{synset}_{item}.JPEG" if split == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
                Image.fromarray(picture(number, width=size, height=size)).save(folder / name, quality=95)
                number += 1
    return root


def write_imagenet_a(root: Path) -> Path:
    """Write ImageNet-A's layout: the 21 synsets with a picture each, and a decoy."""
    for number, synset in enumerate(["n09999999", *HARD]):
        (root / synset).mkdir(parents=True)
        Image.fromarray(picture(number, width=40, height=40)).save(root / synset / f"0.00{number}_hard.jpg")
    return root


def write_clusters(path: Path, root: Path, *, shuffled: bool = False) -> Path:
    """Write a row for every validation picture below a root of `write_imagenet9`, in the upstream format."""
    classes = list(SYNSETS)
    names = sorted(f"{p.parent.name}/{p.name}" for p in (root / "val").rglob("*.JPEG"))
    rows = [
        {"path": name, "category": classes[CLASS_OF[name[:9]]],
         "cluster1": k % 3, "cluster2": k % 2, "cluster3": k // 40}
        for k, name in enumerate(name for name in names if name[:9] in CLASS_OF)
    ]  # fmt: skip
    if shuffled:
        rows = [rows[k] for k in np.random.RandomState(0).permutation(len(rows))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "category", "cluster1", "cluster2", "cluster3"])
        writer.writeheader()
        writer.writerows(rows)
    return path
