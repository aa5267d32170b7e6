"""Small sets in COCO's official layout, made on the spot: coloured rectangles on grey, with exact boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CATEGORIES = {1: "red", 7: "green", 90: "blue"}  # ids with gaps, as COCO's
COLOURS = {1: (220, 30, 30), 7: (30, 200, 40), 90: (40, 60, 230)}


def annotation(number: int, image: int, category: int, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0, **more}


def rectangles(count: int, *, seed: int, width: int = 64, height: int = 64) -> list[list[tuple[int, tuple[int, ...]]]]:
    """Return each picture's (category, x y width height): one or two, in different halves of it."""
    random = np.random.RandomState(seed)
    found = []
    for number in range(count):
        objects = []
        for half in range(1 + number % 2):
            w, h = random.randint(width // 4, width // 2 - 4), random.randint(height // 4, height // 2)
            x, y = half * width // 2 + random.randint(0, width // 2 - w), random.randint(0, height - h)
            objects.append((list(CATEGORIES)[random.randint(3)], (x, y, w, h)))
        found.append(objects)
    return found


def paint(objects: list[tuple[int, tuple[int, ...]]], *, width: int = 64, height: int = 64) -> Image.Image:
    scene = np.full((height, width, 3), 128, dtype=np.uint8)
    for category, (x, y, w, h) in objects:
        scene[y : y + h, x : x + w] = COLOURS[category]
    return Image.fromarray(scene)


def write_split(root: Path, folder: str, scenes: list[Any], *, first_id: int = 100, **more: Any) -> dict[str, Any]:
    """Write pictures and their annotation file, and return what the file holds; `more` replaces its lists."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, objects in enumerate(scenes):
        image_id = first_id + 3 * number
        paint(objects).save(root / folder / f"{image_id:012d}.jpg", quality=95)
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": 64, "height": 64})
        for category, box in objects:
            annotations.append(annotation(len(annotations) + 1, image_id, category, box))
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories, **more}
    (root / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content))
    return content


def write_coco(root: Path, *, train: int = 12, val: int = 5, **more: Any) -> Path:
    """Write both splits and return their folder; `more` goes into the training split's file."""
    write_split(root, "train2017", rectangles(train, seed=1), **more)
    write_split(root, "val2017", rectangles(val, seed=2), first_id=900)
    return root
