"""9-Class ImageNet: 42 synsets in nine groups, texture clusters of its validation pictures, and its ImageNet-A part.

Reference: Bahng et al., arXiv:1910.02806, section 4.3; the groups are those of their published code. ImageNet-A:
Hendrycks et al., arXiv:1907.07174.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tasks.base import InputError
from tasks.data.files import existing_folder, read_whole
from tasks.data.folder import DECODE_ERRORS, list_images
from tasks.data.identity import Part
from tasks.data.images import SPLITS, CroppedImageSet, ImageSet, Split, UnreadableImageError
from tasks.data.published import verified_name

# Class -> synsets. A class's number is its place here.
SYNSETS: dict[str, tuple[str, ...]] = {
    "dog": ("n02085620", "n02099601", "n02106550", "n02106662", "n02110958"),
    "cat": ("n02123045", "n02123159", "n02123394", "n02123597", "n02124075"),
    "frog": ("n01641577", "n01644373", "n01644900"),
    "turtle": ("n01664065", "n01665541", "n01667114", "n01667778", "n01669191"),
    "bird": ("n01819313", "n01820546", "n01833805", "n01843383", "n01847000"),
    "monkey": ("n02486410", "n02487347", "n02488291", "n02488702", "n02492035"),
    "fish": ("n02607072", "n02640242", "n02641379", "n02643566", "n02655020"),
    "crab": ("n01978287", "n01978455", "n01980166", "n01981276"),
    "insect": ("n02174001", "n02177972", "n02190166", "n02206856", "n02219486"),
}
CLASS_OF = {synset: label for label, synsets in enumerate(SYNSETS.values()) for synset in synsets}
PUBLISHED_CLUSTERS = "40a55e0a276d4d323a20baa358429ccccbbb873afdd5bc58c1298680ecc824ba"  # sha256 of ReBias's CSV
NUM_CLUSTERINGS = 3
NUM_VAL = 2_100  # validation pictures: 50 of each of the 42 synsets


class TexturedSet(ImageSet):
    """An image set whose validation pictures are also clustered by texture.

    Attributes:
        val_labels: (N,) classes of the validation pictures.
        clusterings: For each clustering the (N,) cluster numbers.
        hard: Pictures, in its validation split, that are scored beside them: ImageNet-A's part; None if not at hand.
    """

    val_labels: NDArray[np.int64]
    clusterings: tuple[NDArray[np.int64], ...]
    hard: ImageSet | None = None


class SynsetPictures(CroppedImageSet):
    """Pictures in synset folders of the 42, labelled by group; other folders are left alone.

    Args:
        folders: Split -> the folder that holds <synset>/*; a split left out is empty.
        name: What records call the set.
        mean: Channel means, in [0, 1].
        std: Channel standard deviations, in [0, 1].
        licence: Terms of the pictures.
        view: Options of `CroppedImageSet`.

    Raises:
        InputError: if a split has none of the synsets.
    """

    def __init__(
        self,
        folders: Mapping[Split, Path],
        *,
        name: str,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        licence: str,
        **view: Any,
    ) -> None:
        super().__init__(**view)
        self.name, self.classes = name, tuple(SYNSETS)
        self.mean, self.std, self.licence = mean, std, licence
        self._folders = dict(folders)
        self._names: dict[Split, list[str]] = {split: list_synsets(folder) for split, folder in folders.items()}
        self.num_examples = {split: len(self._names.get(split, ())) for split in SPLITS}

    def label(self, split: Split, index: int) -> int:
        return CLASS_OF[self._names[split][index].partition("/")[0]]

    def names(self, split: Split) -> list[str]:
        """Return the pictures of a split as <synset>/<file>, in order."""
        return self._names[split]

    def identity(self) -> Sequence[Part]:
        return list(self._names.values())

    def location(self, split: Split, index: int) -> str:
        return str(self._folders[split] / self._names[split][index])

    def _decode(self, split: Split, index: int) -> Image.Image:
        path = self._folders[split] / self._names[split][index]
        try:
            with Image.open(path) as image:
                return image.convert("RGB")
        except DECODE_ERRORS as error:
            raise UnreadableImageError(f"{path}: {error}") from error


class ImageNet9(SynsetPictures, TexturedSet):
    """9-Class ImageNet from a tree of ImageNet, whole or with the 42 synsets alone.

    Args:
        root: Folder that holds train/<synset>/*.JPEG and val/<synset>/*.JPEG; option `data_root`.
        clusters: CSV of texture clusters: path,category,cluster1,cluster2,cluster3, one row per validation picture.
        imagenet_a: Folder that holds <synset>/*.jpg of ImageNet-A; None leaves that score out.
        name: What records call the set; "imagenet9" becomes "imagenet9_subset" or "imagenet9_unverified" where the
            validation pictures are not 2,100.
        image_size: Side of the pictures handed out, in pixels.
        resize_ratio: Short side after resizing for evaluation, over `image_size`; 256/224 in the paper.
        crop_scale: Area fractions of the random training crop.
        mean: Channel means, in [0, 1].
        std: Channel standard deviations.
        licence: Terms of the pictures.
        max_corrupt: As `ImageFolderSet`.

    Raises:
        InputError: if a folder or the clusters are missing, a synset is, or a picture has no cluster.
    """

    def __init__(
        self,
        root: str | None,
        clusters: str | None,
        *,
        imagenet_a: str | None = None,
        name: str = "imagenet9",
        image_size: int = 224,
        resize_ratio: float = 256 / 224,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        licence: str = "ImageNet terms of access: research only, not redistributable",
        max_corrupt: int | None = None,
    ) -> None:
        views: dict[str, Any] = {
            "image_size": image_size, "resize_ratio": resize_ratio, "crop_scale": crop_scale, "mean": mean,
            "std": std, "licence": licence, "max_corrupt": max_corrupt,
        }  # fmt: skip
        base = existing_folder("data_root", root, "the folder that holds train/ and val/")
        folders: dict[Split, Path] = {"train": base / "train", "val": base / "val"}
        for split, folder in folders.items():
            missing = [synset for synset in CLASS_OF if not (folder / synset).is_dir()]
            if missing:
                raise InputError(
                    f"data_root={root}: {split}/ lacks {len(missing)} of the 42 synsets, first {missing[0]}; "
                    f"expected {split}/<synset>/*.JPEG"
                )
        super().__init__(folders, name=name, **views)
        if name == "imagenet9":  # how many training pictures the 42 synsets have is not published
            self.name = verified_name(name, {"val": self.num_examples["val"]}, {"val": NUM_VAL})
        self.val_labels = np.array([self.label("val", i) for i in range(self.num_examples["val"])], dtype=np.int64)
        self.clusterings, self._clusters_published = read_clusters(clusters, self.names("val"))
        self.hard = None
        if imagenet_a is not None:
            hard = existing_folder("data.imagenet_a", imagenet_a, "the folder that holds ImageNet-A's synset folders")
            self.hard = SynsetPictures({"val": hard}, name="imagenet_a", **views)

    def identity(self) -> Sequence[Part]:
        return [*super().identity(), *(() if self.hard is None else self.hard.identity())]

    def describe(self) -> dict[str, Any]:
        facts = {**super().describe(), "clusters": "published" if self._clusters_published else "own"}
        return facts if self.hard is None else {**facts, "imagenet_a_examples": self.hard.num_examples["val"]}


def list_synsets(folder: Path) -> list[str]:
    """Return the pictures in the 42 synsets' folders as <synset>/<file>, sorted.

    Raises:
        InputError: if there are none, or a folder of the 42 is empty.
    """
    names_by_synset = {s: list_images(folder / s) for s in sorted(CLASS_OF) if (folder / s).is_dir()}
    if not names_by_synset:
        raise InputError(f"{folder}: holds none of the 42 synsets of 9-Class ImageNet, e.g. {min(CLASS_OF)}")
    empty = [synset for synset, names in names_by_synset.items() if not names]
    if empty:
        raise InputError(f"{folder / empty[0]}: holds no pictures")
    return [f"{synset}/{name}" for synset, names in names_by_synset.items() for name in names]


def read_clusters(path: str | None, names: list[str]) -> tuple[tuple[NDArray[np.int64], ...], bool]:
    """Return the three clusterings of the pictures named, in their order, and whether the file is the published one.

    Rows are found by path: neither their order nor that of the folders matters.

    Args:
        path: The CSV file; option `data.clusters`.
        names: Pictures as <synset>/<file>.

    Raises:
        InputError: if the file is missing or malformed, or a picture has no row.
    """
    if not path:
        raise InputError(
            "data.clusters is not set: give the CSV of texture clusters (ReBias's 9class_imagenet_val.csv, or one of "
            "scripts/prepare/imagenet9_clusters.py), data.clusters=/path"
        )
    try:
        content = read_whole(Path(path).expanduser())
        rows = list(csv.DictReader(content.decode("utf-8").splitlines()))
    except OSError as error:
        raise InputError(f"data.clusters={path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.clusters={path}: not a CSV file ({error})") from error
    keys = [f"cluster{k}" for k in range(1, NUM_CLUSTERINGS + 1)]
    if not rows or not {"path", "category", *keys} <= rows[0].keys():
        raise InputError(
            f"data.clusters={path}: must have the columns path,category,{','.join(keys)} and one row per picture"
        )
    known = {row["path"]: row for row in rows}
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"data.clusters={path}: has no row for {len(missing)} pictures, first {missing[0]}")
    classes = list(SYNSETS)
    for name in names:
        expected = classes[CLASS_OF[name.partition("/")[0]]]
        if known[name]["category"] != expected:
            raise InputError(f"data.clusters={path}: calls {name} {known[name]['category']}, it is a {expected}")
    try:
        clusterings = tuple(np.array([int(known[name][key]) for name in names], dtype=np.int64) for key in keys)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"data.clusters={path}: a cluster is no whole number ({error})") from error
    if any((numbers < 0).any() for numbers in clusterings):
        raise InputError(f"data.clusters={path}: a cluster has a number below 0")
    return clusterings, hashlib.sha256(content).hexdigest() == PUBLISHED_CLUSTERS
