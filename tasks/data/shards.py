"""ImageNet in tar shards with an index: the pictures and order of the folder layout, few files to open.

The tars are WebDataset's (each picture is NUMBER.jpg, its class NUMBER.cls), and `_info.json` is what timm's reader of
them asks for, so both can stream the same files. Here pictures are read by number, from the offsets in the index. A
stream would have to fix its order by shards, workers and a shuffling buffer; by number an epoch is the permutation that
the folders give, bit for bit, at any number of processes and from any step.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import InputError
from tasks.data.files import is_whole, parse_json, quoted, read_whole, stays_inside
from tasks.data.folder import ImageFolderSet, Listing
from tasks.data.images import Split

FORMAT = 1
MANIFEST = "_info.json"
MOST_OPEN = 128  # tars a process keeps open: many systems allow it 1,024 files


class ImageShardSet(ImageFolderSet):
    """What `ImageFolderSet` hands out, picture for picture, from shards that `scripts.prepare.imagenet_shards` wrote.

    Meant for network storage, where opening a million files costs more than reading them: a picture is one read at
    a known offset of one of a few hundred open files. Arguments are those of `ImageFolderSet`; `root` is the folder
    with the shards.

    Raises:
        InputError: if the index or a shard is missing, or a shard's length is not what the index says.
    """

    def _open(self, root: str | None) -> tuple[Path, tuple[str, ...], dict[Split, Listing]]:
        if not root:
            raise InputError(
                "data_root is not set: give the folder with the shards, data_root=/path/to/imagenet-shards"
            )
        path = Path(root).expanduser()
        manifest = read_manifest(path)
        splits: dict[Split, Listing] = {s: _Shards(path, s, manifest["splits"][s]) for s in ("train", "val")}
        for split, listing in splits.items():
            if not 0 <= int(listing.labels.min()) <= int(listing.labels.max()) < len(manifest["classes"]):
                raise InputError(f"{path}: {split}-index.npz has a class that {MANIFEST} does not list")
        return path, tuple(manifest["classes"]), splits


def read_manifest(root: Path) -> dict[str, Any]:
    """Return `_info.json` of a folder of shards: format, classes, and of each split its tars and their sizes.

    Raises:
        InputError: There is none, or it is not ours.
    """
    try:
        manifest = parse_json(read_whole(root / MANIFEST))
    except FileNotFoundError:
        raise InputError(
            f"data_root={root}: holds no {MANIFEST}; shards are written by python -m scripts.prepare.imagenet_shards"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"data_root={root}: {MANIFEST} cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        stated = quoted(manifest.get("format")) if isinstance(manifest, dict) else "missing"
        raise InputError(f"{root / MANIFEST}: format is {stated}, not {FORMAT}; write the shards again")
    if wrong := _wrong(manifest):
        raise InputError(f"{root / MANIFEST}: {wrong}; write the shards again")
    return manifest


def _wrong(manifest: Mapping[str, Any]) -> str | None:
    """Return what a manifest lacks, None where it is whole."""
    classes, splits = manifest.get("classes"), manifest.get("splits")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        return "classes is no list of names"
    for split in ("train", "val"):
        facts = splits.get(split) if isinstance(splits, dict) else None
        if not isinstance(facts, dict):
            return f"splits.{split} is missing"
        names, sizes = facts.get("filenames"), facts.get("shard_bytes")
        if not isinstance(names, list) or not all(isinstance(name, str) and stays_inside(name) for name in names):
            return f"splits.{split}.filenames is no list of files in the folder"
        if not isinstance(sizes, list) or len(sizes) != len(names) or not all(is_whole(size) for size in sizes):
            return f"splits.{split}.shard_bytes is not the size of each file"
        if not is_whole(facts.get("num_samples"), low=1):
            return f"splits.{split}.num_samples is no number of pictures"
    return None


class _Shards:
    """The pictures of one split: for each, in the order of the folders, its tar, its offset there and its size."""

    def __init__(self, root: Path, split: Split, facts: Mapping[str, Any]) -> None:
        self._paths = [root / name for name in facts["filenames"]]
        _check_sizes(self._paths, facts["shard_bytes"])
        index = root / f"{split}-index.npz"
        try:
            with index.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                self.labels: NDArray[np.int64] = stored["label"].astype(np.int64)
                self._shard, self._offset, self._size = stored["shard"], stored["offset"], stored["size"]
                self._names: NDArray[np.bytes_] = stored["name"]
        except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{index}: cannot be read ({error}); write the shards again") from error
        if len(self.labels) != facts["num_samples"]:
            raise InputError(f"{index}: lists {len(self.labels)} pictures, {MANIFEST} {facts['num_samples']}")
        columns = (self._shard, self._offset, self._size, self._names)
        if any(len(column) != len(self.labels) for column in columns) or int(self._shard.max()) >= len(self._paths):
            raise InputError(f"{index}: its columns do not belong together; write the shards again")
        self._files = _OpenFiles()

    def location(self, index: int) -> str:
        return f"{self._paths[self._shard[index]]}:{os.fsdecode(bytes(self._names[index]))}"

    def file(self, index: int) -> bytes:
        return bytes(self._names[index])

    def open(self, index: int) -> io.BytesIO:
        size, path = int(self._size[index]), self._paths[self._shard[index]]
        content = self._files.read(path, int(self._offset[index]), size)
        if len(content) < size:
            raise OSError(f"{path} is truncated: {size - len(content)} of this picture's {size} bytes are missing")
        return io.BytesIO(content)


def _check_sizes(paths: Sequence[Path], sizes: Sequence[int]) -> None:
    for path, size in zip(paths, sizes, strict=True):
        try:
            actual = path.stat().st_size
        except OSError as error:
            raise InputError(f"data_root: shard {path} cannot be read ({error.strerror})") from error
        if actual != size:
            what = "truncated" if actual < size else "another file"
            raise InputError(f"data_root: shard {path} is {what}: {actual} bytes, its index says {size}; copy it again")


class _OpenFiles:
    """Files kept open for reading, the latest used ones; workers that are forked or started may share one."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer only where the file ends."""
        if path in self._numbers:
            self._numbers.move_to_end(path)
        else:
            self._numbers[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._numbers) > MOST_OPEN:
                os.close(self._numbers.popitem(last=False)[1])
        # Reading at a position moves nothing that another process with the same open file could see.
        content = os.pread(self._numbers[path], size, offset)
        while len(content) < size and (
            more := os.pread(self._numbers[path], size - len(content), offset + len(content))
        ):
            content += more
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"_numbers": OrderedDict()}

    def __del__(self) -> None:
        for number in self._numbers.values():
            os.close(number)
