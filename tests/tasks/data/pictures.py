"""Small data sets in the published formats, made on the spot."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from scripts.prepare.fashion_mnist import compress, describe_files
from tasks.data.fashion_mnist import FILES
from tasks.data.idx import format_idx


def picture(number: int, *, width: int = 24, height: int = 20) -> np.ndarray:
    """Return a smooth colour picture (H, W, 3) that differs with its number and survives JPEG compression."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [rows * (1 + number % 5) + 9 * columns, columns * (2 + number % 3) + number * 31, rows + number * 67]
    return np.stack([(127 + 120 * np.sin(wave / 17)).astype(np.uint8) for wave in waves], axis=-1)


def write_image_folder(root: Path, *, classes: int = 3, train: int = 8, val: int = 3) -> Path:
    """Write ImageNet's layout with so many JPEG files of each class, and return its root."""
    number = 0
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for item in range(count):
                Image.fromarray(picture(number)).save(folder / f"{split}_{item:04d}.JPEG", quality=95)
                number += 1
    return root


def write_fashion_mnist(root: Path, *, train: int = 40, val: int = 20) -> Path:
    """Write the four idx files of so many pictures, labels going round, with a manifest, and return the folder."""
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.RandomState(5)
    for split, count in (("train", train), ("val", val)):
        images = generator.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in zip(FILES[split], (images, labels), strict=True):
            (root / name).write_bytes(compress(format_idx(array)))
    manifest = {"name": "small", "source": "made up", "package_version": "0", "files": describe_files(root)}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root
