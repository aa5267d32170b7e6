"""Put tree_crowns where `data=tree_crowns` looks: $ADAMP_DATA/tree_crowns or ~/.cache/adamp/data/tree_crowns.

Usage:
    python -m scripts.prepare.tree_crowns
    options: cache=DIR  wheel=FILE (downloaded before)

Aerial photographs of forests with the tree crowns that people have framed, from the PyPI package deepforest 2.1.0
(MIT, Ben Weinstein), which is downloaded, not installed. They are cut into tiles of 256x256, in COCO's layout: train
and val share no pixel, test_site is another state.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from evidence.runs.run import ReadError
from scripts.options import command, parse
from scripts.prepare.packages import download, verified
from tasks.data.cache import cache_folder

PACKAGE = "deepforest==2.1.0"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"  # of the wheel
SIDE = 256
LEAST_SIDE, LEAST_SHARE = 4, 0.4  # what must be left of a crown that a tile's edge cuts, in pixels and of its area
A, B, SITE = "2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop", "OSBS_029"
# Split -> photograph, left edges and upper edges of its tiles.
TILES: dict[str, list[tuple[str, list[int], list[int]]]] = {
    "train": [
        (A, list(range(0, 1537, 192)), [*range(0, 2209, 192), 2216]),
        (B, [0, 192, 384, 576, 737], [*range(0, 769, 192), 779]),
    ],
    "val": [(A, [1792, 2043], list(range(0, 2049, 256))), (B, [993], [0, 256, 512, 768])],
    "test_site": [(SITE, [0, 144], [0, 144])],
}
COUNTS = {"train": (132, 1190), "val": (22, 235), "test_site": (4, 99)}  # tiles and boxes
Box = tuple[float, float, float, float]  # x0, y0, x1, y1


def read(wheel: Path) -> dict[str, tuple[Image.Image, list[Box]]]:
    """Return name -> photograph and boxes, after checking that the wheel is the published one.

    Raises:
        ReadError: It is another file.
    """
    content = verified(wheel, SHA256)
    found = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in (A, B, SITE):
            image = Image.open(io.BytesIO(archive.read(f"deepforest/data/{name}.png"))).convert("RGB")
            found[name] = image, boxes(archive.read(f"deepforest/data/{name}.xml"))
    return found


def boxes(text: bytes) -> list[Box]:
    """Return the boxes of a file in Pascal VOC's format."""
    found = []
    for frame in ElementTree.fromstring(text).iter("bndbox"):
        x0, y0, x1, y1 = (float(frame.findtext(key) or "nan") for key in ("xmin", "ymin", "xmax", "ymax"))
        found.append((x0, y0, x1, y1))
    return found


def inside(found: Sequence[Box], left: int, *, top: int) -> list[list[float]]:
    """Return what a tile shows of the boxes: x, y, width, height within it; slivers are left out."""
    kept = []
    for x0, y0, x1, y1 in found:
        shown = [max(x0 - left, 0), max(y0 - top, 0), min(x1 - left, SIDE), min(y1 - top, SIDE)]
        width, height = shown[2] - shown[0], shown[3] - shown[1]
        whole = (x1 - x0) * (y1 - y0)
        if width > LEAST_SIDE and height > LEAST_SIDE and width * height / whole >= LEAST_SHARE:
            kept.append([round(value, 1) for value in (shown[0], shown[1], width, height)])
    return kept


def write_split(folder: Path, split: str, photographs: dict[str, tuple[Image.Image, list[Box]]]) -> tuple[int, int]:
    """Write a split's tiles and annotation file; tiles without a crown are left out. Return both counts."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, lefts, tops in TILES[split]:
        image, found = photographs[name]
        for left in lefts:
            for top in tops:
                shown = inside(found, left, top=top)
                if not shown:
                    continue
                number = len(images) + 1
                file_name = f"{name}_{left}_{top}.jpg"
                image.crop((left, top, left + SIDE, top + SIDE)).save(folder / split / file_name, quality=90)
                images.append({"id": number, "file_name": file_name, "width": SIDE, "height": SIDE})
                for box in shown:
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box,
                         "area": round(box[2] * box[3], 2), "iscrowd": 0}
                    )  # fmt: skip
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "tree crown"}]}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return len(images), len(annotations)


def prepare(cache: Path, wheel: Path) -> Path:
    """Write all splits and return their folder, which appears by one rename.

    Raises:
        ReadError: The wheel is another, or gives other counts.
    """
    target = cache / "tree_crowns"
    if target.is_dir():
        return target
    photographs = read(wheel)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tree_crowns-", dir=cache) as temporary:
        work = Path(temporary) / "built"
        counts = {split: write_split(work, split, photographs) for split in TILES}
        if counts != COUNTS:
            raise ReadError(f"{wheel}: gives {counts} tiles and boxes, not {COUNTS}")
        work.rename(target)
    return target


def main(words: Sequence[str]) -> int:
    """Download, check and write."""
    options = parse(words, options={"cache": "", "wheel": ""})
    cache = Path(options["cache"]).expanduser() if options["cache"] else cache_folder()
    with tempfile.TemporaryDirectory() as folder:
        there = (cache / "tree_crowns").is_dir()
        wheel = Path(options["wheel"]) if options["wheel"] or there else download(PACKAGE, Path(folder))
        print(f"tree_crowns  {prepare(cache, wheel)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__ or ""))
