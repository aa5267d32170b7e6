"""Emoji as six families of designers have drawn them: the small retrieval set that lies in this repository.

A class is what is drawn (1,053 of them, "anchor" or "baby chick"); its pictures are the five or six designs of it.
Finding the other designs of a class never seen in training asks for what the paper's sets ask: features that hold
beyond the training classes. Shapes: N pictures, P pixels of a stored side, S side of a picture handed out.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tasks.base import InputError
from tasks.data.identity import Part
from tasks.data.images import Split
from tasks.retrieval.sets import NEAREST, RetrievalSet

EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "emoji_designs"
COLUMNS = 33  # pictures in a row of a sheet
PAPER = 230.0  # grey behind the drawings that are searched


class EmojiDesigns(RetrievalSet):
    """Half of the classes train, the other half is searched: 527 and 526 classes, drawn once by `split_seed`.

    Training view: on a grey background of random brightness, turned by up to 10 degrees, stretched, moved, and with
    random brightness of each colour. No mirror image: a left arrow is no right arrow.

    Args:
        root: Folder with the sheets and `manifest.json`; None is the repository's own.
        image_size: S; the stored drawings have 32 pixels.
        split_seed: Draws which classes train.
        num_classes: Use only so many classes, the first in the order that `split_seed` draws; None uses all.

    Raises:
        InputError: A file is missing or damaged, or an option is out of its range.
    """

    def __init__(
        self, root: str | None = None, *, image_size: int = 48, split_seed: int = 0, num_classes: int | None = None
    ) -> None:
        if not image_size >= 1:
            raise InputError(f"data.image_size={image_size}: must be at least 1")
        folder = Path(root).expanduser() if root else EMBEDDED
        manifest = _read_manifest(folder)
        self.image_size = image_size
        self.mean, self.std = (0.779, 0.747, 0.701), (0.242, 0.219, 0.277)  # of the training drawings on PAPER
        self.licence = "Apache-2.0, MIT and CC-BY-4.0, by family (data/emoji_designs/NOTICE)"
        self.ks, self.num_queries = NEAREST, None
        self._pixels: int = manifest["size"]
        pictures, labels = _read_sheets(folder, manifest)
        total = len(manifest["classes"])
        order = np.random.RandomState(split_seed).permutation(total)
        used = total if num_classes is None else num_classes
        if not 4 <= used <= total:
            raise InputError(f"data.num_classes={num_classes}: must be 4 to {total}, or null for all")
        self.name = "emoji_designs" if used == total else "emoji_designs_subset"
        halves: dict[Split, Any] = {"train": order[: (used + 1) // 2], "val": order[(used + 1) // 2 : used]}
        chosen = {split: np.flatnonzero(np.isin(labels, classes)) for split, classes in halves.items()}
        number = {split: {c: i for i, c in enumerate(classes.tolist())} for split, classes in halves.items()}
        self._pictures = {split: pictures[torch.from_numpy(index)] for split, index in chosen.items()}
        self.train_labels = [number["train"][c] for c in labels[chosen["train"]].tolist()]
        self.val_labels = [number["val"][c] for c in labels[chosen["val"]].tolist()]
        self.classes = tuple(manifest["classes"][c] for c in halves["train"].tolist())
        self.val_classes = tuple(manifest["classes"][c] for c in halves["val"].tolist())
        self.count_examples()

    def identity(self) -> Sequence[Part]:
        return [*self._pictures.values(), self.train_labels, self.val_labels]

    def train_example(self, index: int) -> tuple[Tensor, int]:
        """Return a training drawing, on a random grey, moved and coloured at random, and its class."""
        drawing = self._pictures["train"][index].float()
        grey = float(torch.empty(()).uniform_(100, 255))
        image = F.grid_sample((_on(drawing, grey) - grey).unsqueeze(0), self._random_grid(), align_corners=False)[0]
        gain, light = torch.empty(3, 1, 1).uniform_(0.8, 1.2), float(torch.empty(()).uniform_(-15, 15))
        return ((image + grey) * gain + light).round().clamp(0, 255).to(torch.uint8), self.train_labels[index]

    def eval_example(self, index: int) -> tuple[Tensor, int]:
        """Return a drawing to search, on light grey, and its number."""
        image = _on(self._pictures["val"][index].float(), PAPER).unsqueeze(0)
        size = (self.image_size, self.image_size)
        image = F.interpolate(image, size=size, mode="bilinear", antialias=True)[0]
        return image.round().clamp(0, 255).to(torch.uint8), index

    def _random_grid(self) -> Tensor:
        draws = torch.rand(5)
        zoom = 1 / (0.75 + 0.35 * float(draws[0]))
        stretch = math.exp(0.3 * (float(draws[1]) - 0.5))
        angle = math.radians(20) * (float(draws[2]) - 0.5)
        shift = (0.25 * (draws[3:] - 0.5)).tolist()
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        matrix = torch.tensor([[[cos * stretch, -sin, shift[0]], [sin, cos / stretch, shift[1]]]])
        return F.affine_grid(matrix, [1, 3, self.image_size, self.image_size], align_corners=False)


def _on(drawing: Tensor, grey: float) -> Tensor:
    """Lay a drawing (4, P, P) with opacity over an even grey: (3, P, P)."""
    opacity = drawing[3:] / 255
    return drawing[:3] * opacity + grey * (1 - opacity)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        assert manifest["size"] >= 1 and manifest["classes"] and manifest["sheets"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check data.root") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise InputError(f"{path}: is no manifest of emoji_designs") from None
    return dict(manifest)


def _read_sheets(folder: Path, manifest: dict[str, Any]) -> tuple[Tensor, Any]:
    """Return all drawings (N, 4, P, P) uint8 and their classes (N,), family after family."""
    size, total = manifest["size"], len(manifest["classes"])
    pictures, labels = [], []
    for sheet in manifest["sheets"].values():
        path = folder / sheet["file"]
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != sheet["sha256"]:
                raise InputError(f"{path}: is damaged, its sha256 is not that of the manifest")
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGBA"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
        present = np.setdiff1d(np.arange(total), np.array(sheet["absent"], dtype=int))
        tiles = pixels.reshape(-1, size, COLUMNS, size, 4).transpose(0, 2, 4, 1, 3).reshape(-1, 4, size, size)
        pictures.append(torch.from_numpy(tiles[present].copy()))
        labels.append(present)
    return torch.cat(pictures), np.concatenate(labels)
