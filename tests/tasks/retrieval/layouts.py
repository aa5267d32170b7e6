"""The four official sets in small, in their layouts on disk, and a tiny embedded one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from tests.tasks.data.pictures import picture


def save(path: Path, number: int, *, mode: str = "RGB") -> None:
    """Write picture `number` as a JPEG of 40x32 pixels in the given colour mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture(number, width=40, height=32)).convert(mode)
    image.save(path, "JPEG", quality=95)


def write_cub(root: Path, *, classes: int = 6, each: int = 4) -> Path:
    """Write CUB-200-2011 with one grey picture, one CMYK picture and a leftover of macOS."""
    home = root / "CUB_200_2011"
    images, labels = [], []
    for label in range(1, classes + 1):
        for item in range(each):
            number = len(images) + 1
            name = f"{label:03d}.Bird_{label}/Bird_{item:04d}_{number}.jpg"
            save(home / "images" / name, 10 * label + item, mode={1: "L", 2: "CMYK"}.get(number, "RGB"))
            images.append(f"{number} {name}")
            labels.append(f"{number} {label}")
    junk = len(images) + 1
    images.append(f"{junk} 001.Bird_1/._Bird_0000_1.jpg")
    labels.append(f"{junk} 1")
    (home / "images.txt").write_text("\n".join(images) + "\n")
    (home / "image_class_labels.txt").write_text("\n".join(labels) + "\n")
    return root


CAR_CLASSES = (1, 1, 2, 2, 98, 99, 99, 100, 100, 196)


def write_cars(root: Path) -> Path:
    """Write Cars-196 with `cars_annos.mat`."""
    home = root / "cars196"
    fields = ["relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test"]
    rows = np.zeros((1, len(CAR_CLASSES)), dtype=[(field, object) for field in fields])
    for i, label in enumerate(CAR_CLASSES):
        name = f"car_ims/{i + 1:06d}.jpg"
        save(home / name, i)
        rows[0, i] = (name, 1, 1, 30, 30, label, i % 2)
    names = np.array([[f"Car {k}" for k in range(1, 197)]], dtype=object)
    scipy.io.savemat(home / "cars_annos.mat", {"annotations": rows, "class_names": names})
    return root


def write_cars_devkit(root: Path) -> Path:
    """Write Cars-196 as the devkit has it: two folders and two annotation files."""
    for part, file, labels in (
        ("cars_train", "cars_train_annos.mat", CAR_CLASSES[:6]),
        ("cars_test", "cars_test_annos_withlabels.mat", CAR_CLASSES[6:]),
    ):
        rows = np.zeros((1, len(labels)), dtype=[(f, object) for f in ("bbox_x1", "class", "fname")])
        for i, label in enumerate(labels):
            save(root / part / f"{i + 1:05d}.jpg", i)
            rows[0, i] = (1, label, f"{i + 1:05d}.jpg")
        (root / "devkit").mkdir(exist_ok=True, parents=True)
        scipy.io.savemat(root / "devkit" / file, {"annotations": rows})
    return root


def write_cars_torchvision(root: Path) -> Path:
    """Write Cars-196 as torchvision's `StanfordCars` wants it: the labels of the test pictures beside the devkit."""
    home = write_cars_devkit(root / "stanford_cars")
    name = "cars_test_annos_withlabels.mat"
    (home / "devkit" / name).rename(home / name)
    return root


def write_sop(root: Path) -> Path:
    """Write Stanford Online Products: two super-classes, classes of 2 to 5 pictures."""
    home = root / "Stanford_Online_Products"
    number = 0
    for file, classes in (("Ebay_train.txt", (1, 2, 3)), ("Ebay_test.txt", (4, 5, 6))):
        lines = ["image_id class_id super_class_id path"]
        for label in classes:
            kind = ("bicycle", "lamp")[label % 2]
            for item in range(2 + label % 4):
                number += 1
                name = f"{kind}_final/{label}_{item}.JPG"
                save(home / name, number)
                lines.append(f"{number} {label} {1 + label % 2} {name}")
        (home / file).write_text("\n".join(lines) + "\n")
    return root


def write_inshop(root: Path) -> Path:
    """Write In-Shop Clothes: two training items, three searched ones; runs of blanks as in the published file."""
    home = root / "Inshop_Clothes"
    rows = []
    for item, parts in ((2, ["train"] * 3), (7, ["train"] * 2), (1, ["query", "gallery", "gallery"]),
                        (5, ["query", "query", "gallery"]), (9, ["query", "gallery"])):  # fmt: skip
        for i, part in enumerate(parts):
            name = f"img/WOMEN/Tees/id_{item:08d}/0{i}_1_front.jpg"
            save(home / "Img" / name, 10 * item + i)
            rows.append(f"{name:<60}  id_{item:08d}   {part}")
    text = "\n".join([str(len(rows)), "image_name item_id evaluation_status", *rows]) + "\n"
    (home / "Eval").mkdir()
    (home / "Eval" / "list_eval_partition.txt").write_text(text)
    return root
