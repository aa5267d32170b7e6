"""Scenes for detection, made of real pictures: cut-outs of Fashion-MNIST's products on two colour photographs.

They are composed, and say so; what they exercise is what COCO does: several classes and sizes in a picture, overlap,
textured background. Boxes are exact, since each is that of a cut-out's mask. Training and validation share neither
products nor columns of the photographs.
Shapes: H W pixels of a cut-out, S side of a scene.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from tasks.base import InputError
from tasks.checks import check_at_least
from tasks.data.cache import cache_folder, locked
from tasks.data.fashion_mnist import CLASSES, read_pictures
from tasks.data.images import Split
from tasks.detection.coco import CocoSet

_logger = logging.getLogger("tasks.detection")
SIDE = 256
SEEDS: dict[Split, int] = {"train": 1, "val": 2}
COLUMN = 384  # of the photographs' 640: training sees the columns left of it, validation the others
FOREGROUND = 12  # a product's pixels are brighter
PHOTOS = ("china.jpg", "flower.jpg")
VERSION = 1  # of this recipe: other pixels, other number


class FashionScenes(CocoSet):
    """Pictures of 256x256 with two to seven products of ten classes; made at first use, in COCO's layout.

    Args:
        root: Folder of the sets that are made; None is `$ADAMP_DATA`, or ~/.cache/adamp/data.
        train_examples: Scenes to train on.
        val_examples: Scenes to evaluate on.

    Raises:
        InputError: A count is below 1, or the folder cannot be written.
    """

    def __init__(self, root: str | None = None, *, train_examples: int = 800, val_examples: int = 160) -> None:
        check_at_least(1, {"data.train_examples": train_examples, "data.val_examples": val_examples})
        cache = Path(root).expanduser() if root else cache_folder()
        folder = prepare(cache, train_examples=train_examples, val_examples=val_examples)
        super().__init__(
            str(folder), name="fashion_scenes", folders={"train": "train", "val": "val"}, categories="file",
            mean=(0.421, 0.408, 0.362), std=(0.327, 0.251, 0.265),  # of the training scenes, rounded
            licence="MIT (Zalando SE) and CC BY 2.0 (the photographs: danielbuechele, vultilion)",
        )  # fmt: skip


def prepare(cache: Path, *, train_examples: int, val_examples: int) -> Path:
    """Make the scenes unless they are there, and return their folder, which appears by one rename.

    Raises:
        InputError: The folder cannot be written.
    """
    # Other versions of Pillow may resample to other pixels: their scenes are another set of files.
    target = cache / f"fashion_scenes-{VERSION}-{train_examples}-{val_examples}-pillow{PIL.__version__}"
    if (target / "manifest.json").is_file():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            locked(cache / "fashion_scenes"),
            tempfile.TemporaryDirectory(prefix=".fashion_scenes-", dir=cache) as temporary,
        ):
            if (target / "manifest.json").is_file():  # by the process that held the lock
                return target
            _logger.info("making the scenes of fashion_scenes in %s, once", target)
            work = Path(temporary) / "built"
            counts: dict[Split, int] = {"train": train_examples, "val": val_examples}
            digests = {split: write_split(work, split, count=count) for split, count in counts.items()}
            facts = {"annotations_sha256": digests, "pillow": PIL.__version__, "version": VERSION}
            (work / "manifest.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            work.rename(target)
    except OSError as error:
        raise InputError(
            f"{cache}: cannot hold fashion_scenes ({error.strerror}); set ADAMP_DATA to a folder"
        ) from None
    return target


def write_split(folder: Path, split: Split, *, count: int) -> str:
    """Write a split's scenes and its annotation file below `folder`, and return the file's sha256."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (scene, objects) in enumerate(scenes(split, count=count), start=1):
        name = f"{number:06d}.jpg"
        Image.fromarray(scene).save(folder / split / name, quality=92)
        images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
        for label, (x, y, width, height) in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": number, "category_id": label + 1, "iscrowd": 0,
                    "bbox": [x, y, width, height], "area": width * height,
                }
            )  # fmt: skip
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations" / f"instances_{split}.json").write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


Placed = tuple[int, tuple[int, int, int, int]]  # label; x, y, width, height


def scenes(split: Split, *, count: int) -> Iterator[tuple[NDArray[np.uint8], list[Placed]]]:
    """Yield scenes (S, S, 3) and their objects, the same ones every time; more scenes begin with the same ones."""
    random = np.random.RandomState(SEEDS[split])
    pictures, labels = read_pictures("fashion_mnist_10k", split)
    photos = _photos(split)
    for _ in range(count):
        scene = _background(photos, random)
        placed: list[Placed] = []
        for _ in range(random.randint(2, 8)):
            item = random.randint(len(labels))
            colours, mask = cut_out(pictures[item], random)
            box = _place(mask.shape, [each for _, each in placed], random)
            if box is None:
                continue
            x, y, width, height = box
            scene[y : y + height, x : x + width][mask] = colours[mask]
            placed.append((int(labels[item]), box))
        yield scene, placed


def _photos(split: Split) -> list[Image.Image]:
    from sklearn.datasets import load_sample_image  # takes a second, which later runs need not spend

    side = slice(None, COLUMN) if split == "train" else slice(COLUMN, None)
    return [Image.fromarray(load_sample_image(name)[:, side]) for name in PHOTOS]


def _background(photos: list[Image.Image], random: np.random.RandomState) -> NDArray[np.uint8]:
    photo = photos[random.randint(len(photos))]
    side = random.randint(180, min(420, *photo.size) + 1)
    left, top = random.randint(photo.width - side + 1), random.randint(photo.height - side + 1)
    part = photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    return np.array(part)


def cut_out(picture: NDArray[np.uint8], random: np.random.RandomState) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a product in random colours, size and angle, (H, W, 3), and its mask (H, W), which touches all four sides.

    Args:
        picture: (28, 28) uint8.
        random: Draws colours, size, angle and mirror image.
    """
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(picture > FOREGROUND, np.ones((3, 3))))
    parts, number = ndimage.label(mask)
    if number > 1:
        mask = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    tint, offset = random.uniform(0.35, 1.0, 3), random.uniform(0, 40, 3)
    side = round(28 * random.uniform(1.3, 4.0))
    angle, mirrored = random.uniform(-20, 20), random.uniform() < 0.5
    turned = []
    for values in (60 + 0.75 * picture, 255.0 * mask):
        large = Image.fromarray(values.astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
        array = np.array(large.rotate(angle, Image.Resampling.BILINEAR, expand=True))
        turned.append(array[:, ::-1] if mirrored else array)
    grey, mask = turned[0], turned[1] >= 128
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    colours = grey[part][..., None] * tint + offset
    return np.clip(colours, 0, 255).astype(np.uint8), mask[part]


def _place(
    shape: tuple[int, ...], others: list[tuple[int, int, int, int]], random: np.random.RandomState
) -> tuple[int, int, int, int] | None:
    """Return a place (x, y, width, height) that overlaps no box by 15 % of the smaller, or None after ten tries."""
    height, width = shape
    for _ in range(10):
        x, y = random.randint(SIDE - width + 1), random.randint(SIDE - height + 1)
        if all(_overlap((x, y, width, height), other) < 0.15 for other in others):
            return x, y, width, height
    return None


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    across = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    down = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(across, 0) * max(down, 0) / min(one[2] * one[3], other[2] * other[3])
