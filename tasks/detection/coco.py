"""Pictures with boxes in COCO's official layout: train2017/, val2017/ and annotations/instances_*.json.

The pictures' folders may lie in images/ too.

Shapes: n objects of one picture.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.base import InputError
from tasks.data.files import existing_folder
from tasks.data.folder import IMAGENET_MEAN, IMAGENET_STD
from tasks.data.identity import data_digest
from tasks.data.images import Split, UnreadableImageError
from tasks.data.published import verified_name
from tasks.detection.annotations import COCO, Annotations, read_annotations

_logger = logging.getLogger("tasks.detection")
# What Pillow raises for damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)
COCO_COUNTS = {"train": 118_287, "val": 5_000}  # pictures of COCO 2017
COCO_LICENCE = "COCO terms of use; the pictures are Flickr users' under licences of Creative Commons"


class CocoSet:
    """A training and a validation split of pictures with boxes.

    A training picture may be left out for having no box; validation pictures never are. Labels count from 0 in the
    order of the category ids; `category_ids` leads back.

    Args:
        root: Folder that holds the pictures' folders and `annotations/`; option `data_root`.
        name: What records call the set. COCO with other numbers of pictures than published is called "coco_subset" or
            "coco_unverified"; a set with other categories needs a name of its own.
        folders: Split -> folder of its pictures, in the root or its folder `images`; their boxes are in
            annotations/instances_FOLDER.json.
        categories: "coco" refuses a file without exactly COCO's 80 categories, "file" takes what it has.
        keep_empty: Train on pictures without a box too, as CenterNet's published code does. SSD learns nothing there.
        train_on_crowds: Take regions marked as crowds for ordinary objects, as CenterNet's published code does.
        mean: Channel means in [0, 1].
        std: Channel standard deviations.
        licence: Terms of the pictures, for the record; None: COCO's, or "not stated" for a set of other categories.
        max_corrupt: Unreadable pictures a run may meet in each split; None allows 0.1 % of it, at least 10.

    Raises:
        InputError: A folder or file is missing or wrong, or the splits differ in their categories.
    """

    def __init__(
        self,
        root: str | None,
        *,
        name: str = "coco",
        folders: Mapping[Split, str] | None = None,
        categories: str = "coco",
        keep_empty: bool = True,
        train_on_crowds: bool = False,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        licence: str | None = None,
        max_corrupt: int | None = None,
    ) -> None:
        if categories not in ("coco", "file"):
            raise InputError(f"data.categories={categories}: choose coco or file")
        if max_corrupt is not None and not max_corrupt >= 0:
            raise InputError(f"data.max_corrupt={max_corrupt}: must be 0 or more")
        self.mean, self.std, self.max_corrupt = tuple(mean), tuple(std), max_corrupt
        folders = folders or {"train": "train2017", "val": "val2017"}
        self.root, self._pictures = _check_root(root, folders)
        self.train_on_crowds = train_on_crowds
        files = {s: self.root / "annotations" / f"instances_{folder}.json" for s, folder in folders.items()}
        expected = COCO if categories == "coco" else None
        self.splits: dict[Split, Annotations] = {s: read_annotations(f, expected=expected) for s, f in files.items()}
        train, val = self.splits["train"], self.splits["val"]
        if train.categories != val.categories:
            raise InputError(f"{train.path} and {val.path} differ in their categories")
        self.name, self.licence = _name_and_licence(name, licence, self.splits)
        self.category_ids = tuple(train.categories)
        self.classes = tuple(train.categories.values())
        self._numbers: dict[Split, Any] = {"train": np.arange(len(train)), "val": np.arange(len(val))}
        if not keep_empty:
            owner = np.repeat(np.arange(len(train)), np.diff(train.first))
            self._numbers["train"] = np.unique(owner if train_on_crowds else owner[~train.crowd])
        self.num_examples: dict[str, int] = {split: len(numbers) for split, numbers in self._numbers.items()}
        for split, listed in self.splits.items():
            counted = len(listed.boxes) if split == "train" else int((~listed.crowd).sum())
            if not counted or not self.num_examples[split]:
                raise InputError(f"{listed.path}: has no box that could be used")
            for what, count in listed.skipped.items():
                _logger.warning("%s: left out %d %s", listed.path, count, what.replace("_", " "))

    @property
    def num_classes(self) -> int:
        """Number of classes, K, without a background."""
        return len(self.classes)

    @property
    def skipped(self) -> dict[str, int]:
        """What both annotation files hold that could not be used, and how often."""
        return dict(sum((Counter(each.skipped) for each in self.splits.values()), Counter()))

    def image(self, split: Split, index: int) -> Image.Image:
        """Return picture `index` of a split in RGB.

        Raises:
            UnreadableImageError: It is missing, damaged, or not of the size that its boxes refer to.
        """
        path, number = Path(self.location(split, index)), self._numbers[split][index]
        try:
            with Image.open(path) as stored:
                image = stored.convert("RGB")
        except _DECODE_ERRORS as error:
            raise UnreadableImageError(f"{path}: {error}") from error
        width, height = self.splits[split].sizes[number]
        if image.size != (width, height):
            raise UnreadableImageError(f"{path}: is {image.width} x {image.height}, not {width} x {height}")
        return image

    def objects(self, split: Split, index: int) -> tuple[Tensor, Tensor]:
        """Return the objects to train on: boxes (n, 4) float32, clipped to the picture, and labels (n,) int64."""
        annotations, number = self.splits[split], self._numbers[split][index]
        rows = annotations.of(number)
        boxes, labels = annotations.boxes[rows], annotations.labels[rows]
        if not self.train_on_crowds:
            boxes, labels = boxes[~annotations.crowd[rows]], labels[~annotations.crowd[rows]]
        limits = np.tile(annotations.sizes[number], 2)
        return torch.from_numpy(np.clip(boxes, 0, limits)).float(), torch.from_numpy(labels.copy())

    def image_id(self, split: Split, index: int) -> int:
        """Return the id of picture `index` in COCO's numbering."""
        return int(self.splits[split].image_ids[self._numbers[split][index]])

    def location(self, split: Split, index: int) -> str:
        """Return where picture `index` of a split lies."""
        return str(self._pictures[split] / self.splits[split].name(self._numbers[split][index]))

    def describe(self) -> dict[str, Any]:
        """Return facts for the record of a run."""
        files = [part for each in self.splits.values() for part in (each.file_names, each.labels, each.boxes)]
        return {
            "name": self.name,
            "train_examples": self.num_examples["train"],
            "val_examples": self.num_examples["val"],
            "train_boxes": len(self.splits["train"].boxes),
            "val_boxes": len(self.splits["val"].boxes),
            "classes": self.num_classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "licence": self.licence,
            "digest": data_digest(*files),
        }


def _name_and_licence(name: str, licence: str | None, splits: Mapping[Split, Annotations]) -> tuple[str, str]:
    is_coco = splits["train"].categories == COCO
    if name == "coco" and not is_coco:
        raise InputError(
            f"data.name=coco: the categories of {splits['train'].path} are not COCO's; give the set a name of its own, "
            "data.name=NAME, and its terms, data.licence=TERMS"
        )
    if name == "coco":
        name = verified_name(name, {split: len(each) for split, each in splits.items()}, COCO_COUNTS)
    return name, licence or (COCO_LICENCE if is_coco else "not stated; set data.licence")


def _check_root(root: str | None, folders: Mapping[Split, str]) -> tuple[Path, dict[Split, Path]]:
    """Return the root and each split's folder of pictures, which may lie in images/."""
    inside = ", ".join(f"{folder}/" for folder in folders.values())
    what = f"the folder that holds {inside} and annotations/"
    path = existing_folder("data_root", root, what, example="/data/coco")
    pictures: dict[Split, Path] = {}
    for split, folder in folders.items():
        places = [place for place in (path / folder, path / "images" / folder) if place.is_dir()]
        if not places:
            raise InputError(f"data_root={root}: has no folder {folder}/ or images/{folder}/; expected {what}")
        pictures[split] = places[0]
    if not (path / "annotations").is_dir():
        raise InputError(f"data_root={root}: has no folder annotations/; expected {what}")
    return path, pictures
