"""COCO annotation files, read into arrays and validated once, so that every box can be trained on.

Shapes: N pictures, M boxes of all pictures together. Boxes are x0, y0, x1, y1 in pixels of the stored picture, with
the left edge of its first column at 0: COCO's x, y, width, height with the far corner added up.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.models.detection import SSD300_VGG16_Weights

from tasks.base import InputError
from tasks.data.files import is_whole, parse_json, quoted, read_whole, stays_inside

# COCO numbers its 80 categories from 1 to 90 with gaps; torchvision has their names in that numbering.
COCO: Mapping[int, str] = {
    number: name
    for number, name in enumerate(SSD300_VGG16_Weights.COCO_V1.meta["categories"])
    if name not in ("__background__", "N/A")
}
LARGEST_SIDE = 10**6  # of a picture, in pixels
SKIPPED = ("boxes_without_area", "boxes_outside_the_image", "annotations_without_image")


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says about the pictures of one split.

    Attributes:
        path: The file.
        categories: COCO id -> name, in the order of the labels 0..K-1: by id.
        image_ids: (N,) int64.
        file_names: (N,) bytes, relative to the split's folder.
        sizes: (N, 2) int64: width, height.
        first: (N + 1,) int64: boxes of picture i are first[i] to first[i + 1].
        boxes: (M, 4) float64.
        labels: (M,) int64.
        areas: (M,) float64, the areas of the masks where the file has them: the evaluator's small, medium and large.
        crowd: (M,) bool: a region of many objects, which the evaluator ignores.
        skipped: What was left out, and how often.
    """

    path: Path
    categories: Mapping[int, str]
    image_ids: NDArray[np.int64]
    file_names: NDArray[np.bytes_]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    skipped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.image_ids)

    def of(self, index: int) -> slice:
        """Return where the boxes of picture `index` are."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def name(self, index: int) -> str:
        """Return the file name of picture `index`."""
        return os.fsdecode(bytes(self.file_names[index]))

    def ground_truth(self) -> dict[str, Any]:
        """Return what an evaluator compares with, crowd regions included, in COCO's own format and numbering.

        Annotations are numbered from 1: pycocotools takes the number 0 for "nothing matched".
        """
        ids = list(self.categories)
        owner = np.repeat(self.image_ids, np.diff(self.first))
        annotations = [
            {
                "id": number + 1, "image_id": int(owner[number]), "category_id": ids[self.labels[number]],
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)], "area": float(self.areas[number]),
                "iscrowd": int(self.crowd[number]),
            }
            for number, (x0, y0, x1, y1) in enumerate(self.boxes)
        ]  # fmt: skip
        images = [
            {"id": int(i), "width": int(w), "height": int(h)}
            for i, (w, h) in zip(self.image_ids, self.sizes, strict=True)
        ]
        categories = [{"id": number, "name": name} for number, name in self.categories.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def read_annotations(path: Path, *, expected: Mapping[int, str] | None = None) -> Annotations:
    """Read an `instances_*.json` file.

    Boxes of no width or height, boxes outside their picture and annotations of pictures that the file does not list
    are left out and counted. What cannot be meant is refused.

    Args:
        path: The file.
        expected: Categories that it must have, e.g. `COCO`; None takes what it has.

    Raises:
        InputError: The file is missing, no JSON or of another form, or an entry is wrong; it names file and id.
    """
    try:
        content = parse_json(read_whole(path), constants=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check data_root") from None
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error})") from None
    lists: list[Any] = [
        content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")
    ]
    if not all(isinstance(entries, list) for entries in lists):
        raise InputError(f"{path}: must hold the lists images, annotations and categories")
    images, entries, named = lists
    if not images:
        raise InputError(f"{path}: lists no images")
    categories = _categories(path, named, expected)
    place, sizes = _images(path, images)
    return _collect(path, images, place, sizes=sizes, entries=entries, categories=categories)


def _categories(path: Path, named: Sequence[Any], expected: Mapping[int, str] | None) -> dict[int, str]:
    try:
        categories = {_whole(entry["id"]): _text(entry["name"]) for entry in named}
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: each of its categories must have a whole number as id, and a name") from None
    if not categories or len(categories) < len(named):
        raise InputError(f"{path}: has {len(named)} categories with {len(categories)} different ids")
    if expected is not None and categories != dict(expected):
        odd = sorted(categories.items() ^ expected.items())[0]
        raise InputError(
            f"{path}: its {len(categories)} categories are not COCO's {len(expected)} (first difference: {odd}); "
            "set data.categories=file to take them as they are"
        )
    return dict(sorted(categories.items()))


def _images(path: Path, images: Sequence[Any]) -> tuple[dict[int, int], NDArray[np.int64]]:
    """Return image id -> place in the list, and sizes (N, 2)."""
    place: dict[int, int] = {}
    sizes = np.empty((len(images), 2), dtype=np.int64)
    for index, entry in enumerate(images):
        try:
            number, width, height, name = _whole(entry["id"]), entry["width"], entry["height"], entry["file_name"]
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{path}: images[{index}] must have id, width, height and file_name") from None
        if number in place:
            raise InputError(f"{path}: image id {number} comes twice")
        if not (is_whole(width, low=1, high=LARGEST_SIDE) and is_whole(height, low=1, high=LARGEST_SIDE)):
            raise InputError(f"{path}: image id {number} has a size of {quoted(width)} x {quoted(height)}")
        if not isinstance(name, str) or not stays_inside(name):
            raise InputError(f"{path}: image id {number} has the file name {quoted(name)}")
        place[number] = index
        sizes[index] = width, height
    return place, sizes


def _collect(
    path: Path,
    images: Sequence[Any],
    place: Mapping[int, int],
    *,
    sizes: NDArray[np.int64],
    entries: Sequence[Any],
    categories: Mapping[int, str],
) -> Annotations:
    """Put the annotations in the order of their pictures."""
    label_of = {number: label for label, number in enumerate(categories)}
    skipped, ids = Counter[str](), set[Any]()
    rows: list[tuple[int, float, float, float, float, int, float, bool]] = []
    for index, entry in enumerate(entries):
        image, box, category, area, crowd = _fields(path, index, entry)
        if (known := entry.get("id")) is not None:
            if not isinstance(known, int | str) or known in ids:
                raise InputError(f"{path}: annotation id {quoted(known)} comes twice, or is no id")
            ids.add(known)
        if category not in label_of:
            raise InputError(f"{path}: annotation id {entry.get('id')} has category_id {category}, which is not listed")
        if image not in place:
            skipped["annotations_without_image"] += 1
            continue
        x, y, width, height = box
        w, h = sizes[place[image]]
        if not (width > 0 and height > 0):
            skipped["boxes_without_area"] += 1
        elif x >= w or y >= h or x + width <= 0 or y + height <= 0:
            skipped["boxes_outside_the_image"] += 1
        else:
            rows.append((place[image], x, y, x + width, y + height, label_of[category], area, crowd))
    order = sorted(range(len(rows)), key=lambda number: rows[number][0])  # stable: the file's order in each picture
    table = np.array([rows[number] for number in order], dtype=np.float64).reshape(-1, 8)
    counts = np.bincount(table[:, 0].astype(np.int64), minlength=len(images))
    return Annotations(
        path=path, categories=categories,
        image_ids=np.fromiter(place, dtype=np.int64, count=len(place)),
        file_names=np.array([os.fsencode(entry["file_name"]) for entry in images]), sizes=sizes,
        first=np.concatenate([[0], np.cumsum(counts)]), boxes=table[:, 1:5], labels=table[:, 5].astype(np.int64),
        areas=table[:, 6], crowd=table[:, 7].astype(bool), skipped=dict(skipped),
    )  # fmt: skip


def _fields(path: Path, index: int, entry: Any) -> tuple[int, list[float], int, float, bool]:
    """Return an annotation's image id, box, category id, area and whether it is a crowd."""
    try:
        image, category = _whole(entry["image_id"]), _whole(entry["category_id"])
        box = [float(value) for value in entry["bbox"]]
        # Some exports write null for what they do not know
        area = float(box[2] * box[3] if entry.get("area") is None else entry["area"])
        crowd = 0 if entry.get("iscrowd") is None else entry["iscrowd"]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        known = entry.get("id") if isinstance(entry, dict) else None
        which = f"annotation id {known}" if known is not None else f"annotations[{index}]"
        raise InputError(f"{path}: {which} must have image_id, category_id and a bbox of four numbers") from None
    if len(box) != 4 or not np.isfinite(box).all() or not np.isfinite(area):
        raise InputError(f"{path}: annotation id {entry.get('id')} has the bbox {box}; it must be four finite numbers")
    if isinstance(crowd, float | str) or crowd not in (0, 1):
        raise InputError(f"{path}: annotation id {entry.get('id')} has iscrowd {quoted(crowd)}; it must be 0 or 1")
    return image, box, category, area, bool(crowd)


def _whole(value: Any) -> int:
    """Return an id; some tools write them as text."""
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 20 else value
    if not is_whole(number, low=-(2**53)):
        raise ValueError
    return int(number)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value
