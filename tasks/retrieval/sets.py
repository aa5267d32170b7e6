"""The interface of retrieval sets: training pictures of some classes, and pictures of other classes to search.

Shapes: S side of a picture handed out, in pixels.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from tasks.base import InputError
from tasks.checks import check_fractions
from tasks.data.files import existing_folder
from tasks.data.identity import Part
from tasks.data.images import CroppedImageSet, ImageSet, Split, UnreadableImageError
from tasks.data.published import verified_name
from tasks.retrieval.official import READERS, Listing

_logger = logging.getLogger("tasks.retrieval")

# What Pillow raises for damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)
NEAREST = (1, 2, 4, 8)


class RetrievalSet(ImageSet):
    """Pictures whose validation split holds other classes than the training split.

    Validation pictures are the queries, followed by the gallery where there is one; without one each query searches
    all the others. `eval_example` returns a picture with its number in that split, not with its class: the classes
    and the roles are looked up in these attributes.

    Attributes:
        train_labels: Class of each training picture, 0..K-1.
        val_labels: Class of each validation picture, in a numbering of its own.
        num_queries: How many of the validation pictures are queries; None if each searches all the others.
        ks: Numbers of neighbours that this set is scored with.
    """

    train_labels: list[int]
    val_labels: list[int]
    num_queries: int | None
    ks: tuple[int, ...]

    def count_examples(self) -> None:
        """Fill in what follows from the labels, and refuse a set that nothing can be learnt or found in.

        Raises:
            InputError: Fewer than two training classes, or no query.
        """
        self.num_examples = {"train": len(self.train_labels), "val": len(self.val_labels)}
        if len(set(self.train_labels)) < 2:
            raise InputError(f"{self.name}: {len(set(self.train_labels))} training classes; at least 2 are needed")
        if not self.val_labels or self.num_queries == 0:
            raise InputError(f"{self.name}: there is no picture to search with")
        if self.queries_without_match:
            _logger.warning(
                "%s: %d of the queries have no other picture of their class to find; they count as misses",
                self.name, self.queries_without_match,
            )  # fmt: skip

    @property
    def queries_without_match(self) -> int:
        """Number of queries without any picture of their class to find."""
        if self.num_queries is None:
            return sum(count == 1 for count in Counter(self.val_labels).values())
        gallery = set(self.val_labels[self.num_queries :])
        return sum(label not in gallery for label in self.val_labels[: self.num_queries])

    def describe(self) -> dict[str, Any]:
        """Return facts for the record of a run."""
        num = self.num_examples["val"]
        return {
            **super().describe(),
            "val_classes": len(set(self.val_labels)),
            "queries": num if self.num_queries is None else self.num_queries,
            "gallery": num if self.num_queries is None else num - self.num_queries,
            "queries_without_match": self.queries_without_match,
        }


@dataclass(frozen=True)
class Facts:
    """What is known of an official set: licence, cut-offs, and (images, classes) of each part."""

    licence: str
    ks: tuple[int, ...]
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)


FACTS = {
    "cub": Facts(
        "research and education only, not redistributable (Caltech)", (1, 2, 4, 8, 16, 32),
        {"train": (5864, 100), "queries": (5924, 100)},
    ),
    "cars": Facts("research only (Stanford)", (1, 2, 4, 8, 16, 32), {"train": (8054, 98), "queries": (8131, 98)}),
    "sop": Facts("MIT (code); pictures of eBay's sellers", (1, 10, 100, 1000),
                 {"train": (59551, 11318), "queries": (60502, 11316)}),
    "inshop": Facts("research only (DeepFashion, CUHK)", (1, 10, 20, 30, 40, 50),
                    {"train": (25882, 3997), "queries": (14218, 3985), "gallery": (12612, 3985)}),
}  # fmt: skip


class OfficialSet(CroppedImageSet, RetrievalSet):
    """CUB-200-2011, Cars-196, Stanford Online Products or In-Shop Clothes, in its official layout and split.

    Training view: random crop and mirror image; validation: short side resized, centre crop, all pictures kept.

    Args:
        name: "cub", "cars", "sop" or "inshop".
        root: Folder that holds the set's own folder, or is it; option `data_root`.
        image_size: S.
        resize_ratio: Short side after resizing for validation, over `image_size`; 256/224 in the paper.
        crop_scale: Area fractions of the random training crop.
        last_train_class: Classes up to this number train, the others are searched (CUB 100, Cars 98); None is the
            published split. The other two sets name their parts in files.
        strict_counts: Refuse a set whose numbers of pictures and classes are not the published ones.
        held_out: Search this fraction of the training classes, the last ones, and train on the others: a choice that
            the test classes must not see. 0 searches the test classes.
        max_corrupt: As in `ImageSet`.

    Raises:
        InputError: A file or folder is missing or cannot be understood, or the counts are not the published ones.
    """

    def __init__(
        self,
        name: str,
        root: str | None,
        *,
        image_size: int = 224,
        resize_ratio: float = 256 / 224,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        last_train_class: int | None = None,
        strict_counts: bool = True,
        held_out: float = 0.0,
        max_corrupt: int | None = None,
    ) -> None:
        if name not in READERS:
            raise InputError(f"data.name={name}: choose one of {', '.join(READERS)}")
        super().__init__(
            image_size=image_size, resize_ratio=resize_ratio, crop_scale=crop_scale, max_corrupt=max_corrupt
        )
        check_fractions({"data.held_out": held_out})
        self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.licence, self.ks = FACTS[name].licence, FACTS[name].ks
        folder = existing_folder("data_root", root, f"the folder that holds the {name} set", example="/path/to/folder")
        parts = READERS[name](folder, last_train_class)
        if strict_counts and last_train_class is None:
            _check_counts(name, parts)
        self.name = verified_name(name, _flat(_counts(parts)), _flat(FACTS[name].counts)) + (
            "_held_out" if held_out else ""
        )
        if held_out:
            parts = _hold_out(parts, held_out)
        queries, gallery = parts["queries"], parts.get("gallery", Listing([], []))
        self._paths = {"train": parts["train"].paths, "val": queries.paths + gallery.paths}
        self.train_labels, self.classes = _renumbered(parts["train"].labels)
        self.val_labels, _ = _renumbered(queries.labels + gallery.labels)
        self.num_queries = len(queries.paths) if "gallery" in parts else None
        self.count_examples()

    def label(self, split: Split, index: int) -> int:
        """Return a training picture's class, or a validation picture's number."""
        return self.train_labels[index] if split == "train" else index

    def identity(self) -> Sequence[Part]:
        base = os.path.commonpath([path for paths in self._paths.values() for path in paths])
        files = [[path.removeprefix(base) for path in paths] for paths in self._paths.values()]
        return [*files, self.train_labels, self.val_labels]

    def location(self, split: Split, index: int) -> str:
        """Return the path of a picture."""
        return self._paths[split][index]

    def _decode(self, split: Split, index: int) -> Image.Image:
        return read_rgb(Path(self._paths[split][index]))


def read_rgb(path: Path) -> Image.Image:
    """Return a picture as RGB: grey, CMYK and palette pictures converted, transparency on white.

    Raises:
        UnreadableImageError: The file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB")
            return image.convert("RGB")
    except _DECODE_ERRORS as error:
        raise UnreadableImageError(f"{path}: {error}") from error


def _counts(parts: Mapping[str, Listing]) -> dict[str, tuple[int, int]]:
    """Return (images, classes) of each part."""
    return {part: (len(listing.paths), len(set(listing.labels))) for part, listing in parts.items()}


def _flat(counts: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    return {
        f"{part} {what}": number
        for part, pair in counts.items()
        for what, number in zip(("images", "classes"), pair, strict=True)
    }


def _check_counts(name: str, parts: dict[str, Listing]) -> None:
    for part, (images, classes) in FACTS[name].counts.items():
        counts = _counts(parts)[part]
        if counts != (images, classes):
            raise InputError(
                f"{name}: {part} has {counts[0]} pictures of {counts[1]} classes, published are {images} of {classes}; "
                "is the set complete? data.strict_counts=false takes it as it is"
            )


def _hold_out(parts: dict[str, Listing], fraction: float) -> dict[str, Listing]:
    train = parts["train"]
    classes = sorted(set(train.labels))
    last = set(classes[len(classes) - max(1, round(fraction * len(classes))) :])
    return {
        "train": train.where([label not in last for label in train.labels]),
        "queries": train.where([label in last for label in train.labels]),
    }


def _renumbered(labels: Sequence[int]) -> tuple[list[int], tuple[str, ...]]:
    """Return labels as 0..K-1 in the order of their values, and the K values as names."""
    values = sorted(set(labels))
    number = {value: i for i, value in enumerate(values)}
    return [number[label] for label in labels], tuple(str(value) for value in values)
