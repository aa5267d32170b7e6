"""Write ImageNet's class folders as tar shards with an index, for network storage.

python -m scripts.prepare.imagenet_shards data_root=FOLDER out=FOLDER [shard_size=5000] [workers=4]

`data_root` holds train/<class>/*.JPEG and val/<class>/*.JPEG. The pictures' bytes are copied as they are, never
decoded. Training pictures are laid out in one fixed random order, so that WebDataset and timm, which stream tars from
their beginning, meet mixed classes; the index numbers them in the order of the folders all the same. Stopped, the same
command goes on behind the last whole shard. Then: make EXPERIMENT scale=full data=imagenet_shards data_root=OUT
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from evidence.runs.run import ReadError
from scripts.options import command, parse
from tasks.base import InputError
from tasks.data.folder import check_classes, check_root, list_images
from tasks.data.images import Split
from tasks.data.shards import FORMAT, MANIFEST

OPTIONS = {"data_root": "", "out": "", "shard_size": "5000", "workers": "4"}
DIGITS = 8


@dataclass(frozen=True)
class Job:
    """One shard to write: its file, and of each of its pictures number, path and class, in the order of the tar."""

    target: Path
    pictures: Sequence[tuple[int, Path, int]]


@dataclass(frozen=True)
class Written:
    """Where a shard's pictures lie in it: number, first byte and length of each, and the length of the whole."""

    numbers: Sequence[int]
    offsets: Sequence[int]
    sizes: Sequence[int]
    length: int


def pictures(root: Path, split: Split, classes: Sequence[str]) -> list[tuple[int, Path, int]]:
    """Return number, path and class of every picture of a split, in the order of torchvision's `ImageFolder`."""
    found: list[tuple[int, Path, int]] = []
    for label, name in enumerate(classes):
        folder = root / split / name
        found += [(len(found) + i, folder / file, label) for i, file in enumerate(list_images(folder))]
    return found


def jobs(out: Path, split: Split, found: Sequence[tuple[int, Path, int]], *, shard_size: int) -> list[Job]:
    """Cut a split into shards; training pictures in a random order that depends on their number alone."""
    order = np.random.default_rng(0).permutation(len(found)) if split == "train" else np.arange(len(found))
    parts = [order[i : i + shard_size].tolist() for i in range(0, len(order), shard_size)]
    return [Job(out / f"{split}-{k:06d}.tar", [found[i] for i in part]) for k, part in enumerate(parts)]


def write(job: Job) -> Written:
    """Write one shard by one rename, unless it is there whole, and return where its pictures lie."""
    if (there := scan(job.target)) is not None and _complete(job, there):
        return there
    import webdataset  # takes a second, which a reader of --help need not spend

    partial = job.target.with_suffix(".partial")
    with webdataset.TarWriter(str(partial), mtime=0) as tar:
        for number, path, label in job.pictures:
            suffix = path.suffix.lower().lstrip(".").replace("jpeg", "jpg")
            tar.write({"__key__": f"{number:0{DIGITS}d}", suffix: path.read_bytes(), "cls": str(label).encode()})
    written = scan(partial)
    if written is None or not _complete(job, written):
        raise OSError(f"{partial} did not come out as it was written; is the disk full?")
    partial.rename(job.target)
    return written


def scan(path: Path) -> Written | None:
    """Return what a tar holds by walking through its headers; None for none, or one that is cut off."""
    if not path.exists():
        return None
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if not member.name.endswith(".cls")]
            tar.fileobj.seek(0, os.SEEK_END)  # type: ignore[call-arg]
            numbers = [int(member.name.partition(".")[0]) for member in members]
            return Written(numbers, [m.offset_data for m in members], [m.size for m in members], path.stat().st_size)
    except (tarfile.TarError, ValueError, EOFError):
        return None


def _complete(job: Job, found: Written) -> bool:
    """Whether a shard holds this job's pictures with their sizes, and the two empty blocks that end a tar."""
    if list(found.numbers) != [number for number, _, _ in job.pictures]:
        return False
    if list(found.sizes) != [path.stat().st_size for _, path, _ in job.pictures]:
        return False
    end = found.offsets[-1] + found.sizes[-1]
    return found.length >= end + 1024 and found.length % 512 == 0


def prepare(root: Path, out: Path, *, shard_size: int, workers: int) -> dict[str, Any]:
    """Write all shards, the two indices and, last, the manifest, which it returns."""
    classes = check_classes(root)
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # without it, half of a set is none
    manifest: dict[str, Any] = {"format": FORMAT, "classes": list(classes), "splits": {}}
    splits: tuple[Split, ...] = ("train", "val")
    for split in splits:
        found = pictures(root, split, classes)
        if not found:
            raise InputError(f"data_root={root}: {split}/ holds no pictures")
        todo = jobs(out, split, found, shard_size=shard_size)
        done = list(tqdm(_each(todo, workers), total=len(todo), desc=split, unit="shard", disable=None))
        _write_index(out / f"{split}-index.npz", root / split, found, done)
        manifest["splits"][split] = {
            "name": split,
            "num_samples": len(found),
            "filenames": [job.target.name for job in todo],
            "shard_lengths": [len(job.pictures) for job in todo],
            "shard_bytes": [written.length for written in done],
        }
    partial = out / f"{MANIFEST}.partial"
    partial.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
    partial.rename(out / MANIFEST)
    return manifest


def _each(todo: Sequence[Job], workers: int) -> Any:
    if workers == 1:
        yield from map(write, todo)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(write, todo)


def _write_index(path: Path, root: Path, found: Sequence[tuple[int, Path, int]], done: Sequence[Written]) -> None:
    shard, offset, size = (np.zeros(len(found), dtype) for dtype in (np.int32, np.int64, np.int64))
    for number, written in enumerate(done):
        shard[written.numbers] = number
        offset[written.numbers], size[written.numbers] = written.offsets, written.sizes
    label = np.array([label for _, _, label in found], np.int32)
    name = np.array([os.fsencode(path.relative_to(root)) for _, path, _ in found])
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, shard=shard, offset=offset, size=size, label=label, name=name)
    partial.rename(path)


def main(argv: Sequence[str]) -> int:
    """Write the shards and return 0."""
    options = parse(argv, options=OPTIONS)
    numbers = {}
    for key in ("shard_size", "workers"):
        if not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(f"{key} is {options[key]!r}; it must be a whole number, at least 1")
        numbers[key] = int(options[key])
    if not options["out"]:
        raise ReadError("out is not set: give the folder for the shards, out=/data/imagenet-shards")
    out = Path(options["out"]).expanduser()
    try:
        manifest = prepare(check_root(options["data_root"]), out, **numbers)
    except (InputError, OSError) as error:
        raise ReadError(str(error)) from error
    for split, facts in manifest["splits"].items():
        total = sum(facts["shard_bytes"]) / 2**30
        print(f"{split}: {facts['num_samples']} pictures in {len(facts['filenames'])} shards, {total:.2f} GiB")
    print(f"use them with data=imagenet_shards data_root={out}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
