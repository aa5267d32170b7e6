"""Write a set in Pascal VOC's layout in COCO's, which data=coco and data=bccd read.

Usage:
    python -m scripts.prepare.voc root=FOLDER out=FOLDER
    options: train=train val=val (lists in ImageSets/Main)

FOLDER holds Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt. VOC counts pixels from 1 and its far corners are
inside the box: xmin, ymin, xmax, ymax become x = xmin - 1, y = ymin - 1, width = xmax - x, height = ymax - y. Objects
marked difficult become crowds, which are neither trained on nor counted in scores, as in VOC's own evaluation. Boxes
that are empty or outside their picture are named and left out.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image

from evidence.runs.run import ReadError
from scripts.options import command, parse

FOLDERS = {"train": "train2017", "val": "val2017"}  # COCO's names
ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class VocObject:
    """An object of an annotation file: its class, corners x0, y0, x1, y1 in pixels from 0, and the mark `difficult`."""

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


def listed(root: Path, name: str) -> list[str]:
    """Return the pictures of a list, in its order.

    Raises:
        ReadError: There is no such list, it is empty, or names a picture twice.
    """
    path = root / "ImageSets" / "Main" / f"{name}.txt"
    if not path.is_file():
        raise ReadError(
            f"{path}: is missing; root=FOLDER must be in Pascal VOC's layout, train= and val= name its lists"
        )
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ReadError(f"{path}: lists {len(names)} pictures, {len(set(names))} of them different")
    return names


def picture(root: Path, name: str) -> Path:
    """Return the file of a listed picture."""
    for ending in ENDINGS:
        if (path := root / "JPEGImages" / f"{name}{ending}").is_file():
            return path
    raise ReadError(f"{root / 'JPEGImages' / name}: there is no such picture ({', '.join(ENDINGS)})")


def read_objects(path: Path, size: tuple[int, int]) -> tuple[list[VocObject], list[str]]:
    """Return the objects of an annotation file, clipped to the picture, and a line for each that cannot be used.

    Args:
        path: The XML file.
        size: Width and height of the picture.

    Raises:
        ReadError: The file is no XML, states another size, or has an object without a name or four numbers.
    """
    try:
        tree = ElementTree.fromstring(path.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        raise ReadError(f"{path}: cannot be read ({error})") from None
    stated = tuple(tree.findtext(f"size/{side}", "") for side in ("width", "height"))
    if any(stated) and stated != tuple(map(str, size)):
        raise ReadError(f"{path}: states {stated[0]} x {stated[1]} pixels; the picture has {size[0]} x {size[1]}")
    objects, unusable = [], []
    for element in tree.iter("object"):
        name = element.findtext("name", "").strip()
        corners = [element.findtext(f"bndbox/{key}", "") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = map(float, corners)
        except ValueError:
            xmin = ymin = xmax = ymax = math.nan
        if not name or not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise ReadError(
                f"{path}: the object {name!r} has the corners {corners}; it must have a name and four numbers"
            )
        x0, y0, x1, y1 = max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, size[0]), min(ymax, size[1])
        if xmax <= xmin or ymax <= ymin or x1 <= x0 or y1 <= y0:
            unusable.append(
                f"{path}: {name} has the corners {', '.join(corners)}: empty or outside the picture, left out"
            )
        else:
            objects.append(VocObject(name, (x0, y0, x1, y1), element.findtext("difficult", "0").strip() == "1"))
    return objects, unusable


def convert(root: Path, out: Path, lists: dict[str, str]) -> list[str]:
    """Write both splits to `out`, which appears by one rename, and return the lines of unusable boxes.

    Categories are the names of both splits in alphabetical order, numbered from 1.

    Args:
        root: Folder in VOC's layout.
        out: Folder to write.
        lists: "train" and "val" -> name of the list.

    Raises:
        ReadError: Something is missing or wrong in `root`, the lists share a picture, or `out` exists.
    """
    if out.exists():
        raise ReadError(f"out={out}: exists; give a new folder")
    names = {split: listed(root, name) for split, name in lists.items()}
    if shared := set(names["train"]) & set(names["val"]):
        raise ReadError(
            f"train={lists['train']} and val={lists['val']} share {len(shared)} pictures: {min(shared)}, ..."
        )
    files, found, unusable = {}, {}, []
    for name in (*names["train"], *names["val"]):
        files[name] = picture(root, name)
        with Image.open(files[name]) as image:
            size = image.size
        objects, lines = read_objects(root / "Annotations" / f"{name}.xml", size)
        found[name] = size, objects
        unusable += lines
    classes = sorted({each.name for _, objects in found.values() for each in objects})
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        work = Path(temporary) / "built"
        (work / "annotations").mkdir(parents=True)
        for split, folder in FOLDERS.items():
            (work / folder).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number, name in enumerate(names[split], 1):
                shutil.copyfile(files[name], work / folder / files[name].name)
                (width, height), objects = found[name]
                images.append({"id": number, "file_name": files[name].name, "width": width, "height": height})
                for each in objects:
                    x0, y0, x1, y1 = each.box
                    annotations.append(
                        {"id": len(annotations) + 1, "image_id": number, "category_id": classes.index(each.name) + 1,
                         "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                         "iscrowd": int(each.difficult)}
                    )  # fmt: skip
            content = {"images": images, "annotations": annotations, "categories": categories}
            (work / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content), encoding="utf-8")
            print(f"{split}  {len(images)} pictures, {len(annotations)} boxes of {len(classes)} classes")
        work.rename(out)
    return unusable


def main(words: Sequence[str]) -> int:
    """Convert, and print the counts and every box that was left out."""
    options = parse(words, options={"root": "", "out": "", "train": "train", "val": "val"})
    for key in ("root", "out"):
        if not options[key]:
            raise ReadError(f"{key} is not set; {key}=FOLDER is needed")
    out = Path(options["out"]).expanduser()
    lists = {split: options[split] for split in FOLDERS}
    for line in convert(Path(options["root"]).expanduser(), out, lists):
        print(line)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
