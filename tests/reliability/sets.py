"""Every reader of data on disk: how to write a small set for it, and how to read all of that set into one digest."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tasks.audio import official as audio
from tasks.audio.clips import ClipSet
from tasks.data import FashionMnist, ImageFolderSet, ImageShardSet
from tasks.data.cifar import Cifar10
from tasks.data.digits import MnistDigits
from tasks.data.imagenet9 import ImageNet9
from tasks.data.images import ImageSet, UnreadableImageError
from tasks.detection.coco import CocoSet
from tasks.language import text_corpus
from tasks.retrieval.sets import OfficialSet
from tasks.weights import read_weights
from tests.tasks.audio import layouts as sounds
from tests.tasks.data.cifar_files import write_cifar10
from tests.tasks.data.pictures import picture, write_fashion_mnist, write_image_folder
from tests.tasks.detection.layouts import CATEGORIES, write_coco
from tests.tasks.language.conftest import sentences
from tests.tasks.rebias.sets import write_clusters, write_imagenet9, write_mnist
from tests.tasks.retrieval import layouts as shops

PICTURE, SOUND, BINARY, TEXT, JSON = "picture", "sound", "binary", "text", "json"


@dataclass
class Reading:
    """What a reader made of a set.

    Attributes:
        digest: Of everything it hands out.
        skipped: Items that it left out and counted.
    """

    digest: str
    skipped: int = 0


@dataclass(frozen=True)
class Layout:
    """A set in an official layout.

    Attributes:
        write: Writes a small one into a folder.
        read: Reads it; the second folder is for caches.
        files: Patterns of the files to spoil -> their kind; the first match of each is taken.
        found: Kinds whose files are found by looking into folders, so that one less is another set, not a damaged one.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path, Path], Reading]
    files: Mapping[str, str]
    found: frozenset[str] = field(default_factory=frozenset)


def digest(values: Iterable[Any]) -> str:
    """Return a digest of nested values and tensors."""
    total = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor | np.ndarray):
            array = np.ascontiguousarray(value)
            total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        elif isinstance(value, tuple | list):
            total.update(digest(value).encode())
        elif isinstance(value, Mapping):
            total.update(digest(list(value.items())).encode())
        else:
            total.update(repr(value).encode())
    return total.hexdigest()[:16]


def pictures(data: ImageSet) -> Reading:
    """Read both splits of an image set as the loader does: what cannot be decoded is counted."""
    values: list[Any] = [data.classes, data.num_examples]
    skipped = 0
    for split, example in (("train", data.train_example), ("val", data.eval_example)):
        for index in range(data.num_examples[split]):
            random.seed(index)
            torch.manual_seed(index)
            try:
                values.append(example(index))
            except UnreadableImageError:
                skipped += 1
    values += [getattr(data, name, None) for name in ("train_labels", "val_labels", "num_queries", "clusterings")]
    return Reading(digest(values), skipped)


def clips(listing: audio.Listing, cache: Path) -> Reading:
    """Decode all clips of a listing."""
    data = ClipSet(listing, cache=cache, workers=1)
    values: list[Any] = [data.classes, data.multi_label]
    for split in data.clips:
        values += [(clip.labels, data.samples(split, i)) for i, clip in enumerate(data.clips[split])]
    without = data.notes.get("clips_without_a_top_tag", 0)
    return Reading(digest(values), len(data.undecodable) + without)


def boxes(root: Path, cache: Path) -> Reading:
    """Read a detection set: every picture, box, area and mark."""
    data = CocoSet(str(root), name="small", categories="file")
    values: list[Any] = [data.classes, data.category_ids]
    unreadable = 0
    for split in ("train", "val"):
        found = data.splits[split]  # type: ignore[index]
        values += [found.image_ids, found.sizes, found.boxes, found.labels, found.areas, found.crowd]
        for index in range(data.num_examples[split]):
            try:
                values.append(np.asarray(data.image(split, index)))  # type: ignore[arg-type]
            except UnreadableImageError:
                unreadable += 1
    return Reading(digest(values), unreadable + sum(data.skipped.values()))


def words(root: Path, cache: Path, **options: Any) -> Reading:
    corpus = text_corpus(root, name="small", cache=cache, **options)
    return Reading(digest([corpus.words, corpus.counts, *corpus.tokens.items()]))


def digits(root: Path, cache: Path) -> Reading:
    data = MnistDigits(str(root))
    return Reading(digest([*data.images.items(), *data.labels.items()]))


def shards(root: Path, cache: Path) -> Reading:
    return pictures(ImageShardSet(str(root / "shards"), image_size=16))


def write_shards(root: Path) -> None:
    from scripts.prepare import imagenet_shards

    write_image_folder(root / "folder", classes=2, train=4, val=2)
    with redirect_stdout(StringIO()):
        imagenet_shards.main([f"data_root={root / 'folder'}", f"out={root / 'shards'}", "shard_size=5", "workers=1"])


def write_text(root: Path) -> None:
    for split, seed, count in (("train", 0, 40), ("valid", 1, 10), ("test", 2, 10)):
        (root / f"wiki.{split}.tokens").write_text(sentences(seed, count), encoding="utf-8")


def write_nine(root: Path) -> None:
    write_imagenet9(root / "images", train=1, val=1, size=20)
    write_clusters(root / "clusters.csv", root / "images")


def nine(root: Path, cache: Path) -> Reading:
    return pictures(ImageNet9(str(root / "images"), str(root / "clusters.csv"), image_size=16))


def retrieval(name: str) -> Callable[[Path, Path], Reading]:
    def read(root: Path, cache: Path) -> Reading:
        return pictures(
            OfficialSet(name, str(root), image_size=16, strict_counts=False, last_train_class=LAST.get(name))
        )

    return read


LAST = {"cub": 3}


def tensors(root: Path, cache: Path) -> Reading:
    return Reading(digest(sorted(read_weights(root / "net.pth").items())))


def listed(read: Callable[..., audio.Listing], **options: Any) -> Callable[[Path, Path], Reading]:
    return lambda root, cache: clips(read(root, **options), cache)


FOUND = frozenset({PICTURE})
LAYOUTS: dict[str, Layout] = {
    "image folder": Layout(
        lambda root: write_image_folder(root, classes=2, train=3, val=2),
        lambda root, cache: pictures(ImageFolderSet(str(root), image_size=16)),
        {"train/*/*.JPEG": PICTURE, "val/*/*.JPEG": PICTURE}, FOUND,
    ),
    "image shards": Layout(
        write_shards, shards,
        {"shards/_info.json": JSON, "shards/train-index.npz": BINARY, "shards/*.tar": BINARY},
    ),
    "fashion-mnist": Layout(
        lambda root: write_fashion_mnist(root, train=12, val=10),
        lambda root, cache: pictures(FashionMnist("fashion_mnist_10k", str(root), image_size=16)),
        {"manifest.json": JSON, "train-images*": BINARY, "t10k-labels*": BINARY},
    ),
    "cifar-10": Layout(
        lambda root: write_cifar10(root, num=3),
        lambda root, cache: pictures(Cifar10(str(root), verify=False)),
        {"*/data_batch_3": BINARY, "*/test_batch": BINARY},
    ),
    "mnist": Layout(
        lambda root: write_mnist(root, train=20, test=10), digits,
        {"train-images-idx3-ubyte": BINARY, "t10k-labels-idx1-ubyte": BINARY},
    ),
    "mnist, packed": Layout(
        lambda root: write_mnist(root, train=20, test=10, pack=True), digits,
        {"train-labels-idx1-ubyte.gz": BINARY, "t10k-images-idx3-ubyte.gz": BINARY},
    ),
    "9-class imagenet": Layout(
        write_nine, nine, {"clusters.csv": TEXT, "images/val/n01*/*.JPEG": PICTURE}, FOUND
    ),
    "coco": Layout(
        lambda root: write_coco(root, train=4, val=2), boxes,
        {"annotations/instances_train2017.json": JSON, "train2017/*.jpg": PICTURE},
    ),
    "cub": Layout(
        shops.write_cub, retrieval("cub"),
        {"*/images.txt": TEXT, "*/image_class_labels.txt": TEXT, "*/images/*/*.jpg": PICTURE},
    ),
    "cars": Layout(
        shops.write_cars, retrieval("cars"), {"cars196/cars_annos.mat": BINARY, "cars196/car_ims/*.jpg": PICTURE}
    ),
    "products": Layout(shops.write_sop, retrieval("sop"), {"*/Ebay_train.txt": TEXT, "*/Ebay_test.txt": TEXT}),
    "in-shop": Layout(shops.write_inshop, retrieval("inshop"), {"*/Eval/list_eval_partition.txt": TEXT}),
    "speech commands": Layout(
        lambda root: sounds.speech_commands(root, each=4), listed(audio.speech_commands),
        {"*/*/validation_list.txt": TEXT, "*/*/testing_list.txt": TEXT, "*/*/yes/*.wav": SOUND}, frozenset({SOUND}),
    ),
    "music tags": Layout(
        lambda root: sounds.mtat(root, seconds=0.2, tags=6, clips=16), listed(audio.mtat, num_tags=5),
        {"*/annotations_final.csv": TEXT, "*/mp3/0/*.mp3": SOUND},
    ),
    "sound events": Layout(
        lambda root: sounds.dcase(root, seconds=0.1), listed(audio.dcase),
        {"*/*/groundtruth_weak_label_training_set.csv": TEXT, "*/*/groundtruth_weak_label_evaluation_set.csv": TEXT},
    ),
    "words": Layout(write_text, words, {"wiki.train.tokens": TEXT, "wiki.test.tokens": TEXT}),
    "characters": Layout(
        write_text, lambda root, cache: words(root, cache, unit="char"), {"wiki.valid.tokens": TEXT}
    ),
    "weights": Layout(
        lambda root: torch.save({"w": torch.arange(9.0), "b": torch.ones(2)}, root / "net.pth"), tensors,
        {"net.pth": BINARY},
    ),
}  # fmt: skip


def write_outside(base: Path) -> None:
    """Write what a list must not reach: a picture and a clip beside the set's folder."""
    Image.fromarray(picture(99, width=40, height=32)).save(base / "outside.jpg", quality=95)
    sounds.write(base / "outside.wav", sounds.tone(5, 0.2))


def as_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


__all__ = ["BINARY", "CATEGORIES", "JSON", "LAYOUTS", "PICTURE", "SOUND", "TEXT", "Layout", "Reading"]
