"""ImageNet in parquet files as the Hugging Face hub holds it: a column of encoded pictures and one of labels.

Pictures are numbered by class and, within a class, by file name without the class that the hub adds to it: the order of
the folders. Where the files hold no names, they are numbered in the order of files and rows. A picture is read by its
number, and with it the row group that holds it: an epoch is the permutation that the folders give, at any number of
processes and from any step.
"""

from __future__ import annotations

import importlib.util
import io
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import InputError
from tasks.data.files import existing_folder, is_macos_junk
from tasks.data.folder import ImageFolderSet, Listing
from tasks.data.images import Split

PLACES = ("data/{}*.parquet", "{}*.parquet", "{}*/*.parquet")  # where a split's files are looked for
MOST_OPEN = 128  # files a process keeps open
_SUFFIX = re.compile(r"_n\d{8}(?=\.\w+$)")  # ILSVRC2012_val_00000293_n01440764.JPEG
_SYNSET = re.compile(r"(?:^|_)(n\d{8})(?=[_.])")


class ImageParquetSet(ImageFolderSet):
    """What `ImageFolderSet` hands out, picture for picture, from parquet files with columns `image` and `label`.

    `image` is a structure of `bytes`, an encoded picture, and `path`, its name; `label` a whole number. Arguments are
    those of `ImageFolderSet`; `root` is the folder with `data/train-*.parquet` and `data/validation-*.parquet`, or
    with these files themselves. Needs the package pyarrow (extra `parquet`).

    Raises:
        InputError: if pyarrow or a file is missing, or a file is damaged or has other columns.
    """

    def _open(self, root: str | None) -> tuple[Path, tuple[str, ...], dict[Split, Listing]]:
        if importlib.util.find_spec("pyarrow") is None:
            raise InputError("data=imagenet_parquet needs the package pyarrow: pip install '.[parquet]'")
        path = existing_folder("data_root", root, "the folder that holds train-*.parquet and validation-*.parquet")
        splits = {split: _Rows(find_parquet(path, split)) for split in ("train", "val")}
        classes = _classes(splits["train"])
        listings: dict[Split, Listing] = {"train": splits["train"], "val": splits["val"]}
        for split, listing in listings.items():
            if not 0 <= int(listing.labels.min()) <= int(listing.labels.max()) < len(classes):
                raise InputError(f"data_root={root}: a label of {split} is none of the {len(classes)} classes")
        return path, classes, listings


def find_parquet(root: Path, split: Split) -> list[Path]:
    """Return the parquet files of a split, in order.

    Raises:
        InputError: There are none, or some of those that their names count, as in train-00000-of-00294, are missing.
    """
    for place in PLACES:
        files = sorted(path for path in root.glob(place.format(split)) if not is_macos_junk(path.name))
        if files:
            break
    else:
        raise InputError(f"data_root={root}: holds no {split}*.parquet there nor in data/")
    counted = {int(found[1]) for path in files if (found := re.search(r"-of-(\d+)", path.name))}
    if counted and counted != {len(files)}:
        raise InputError(f"data_root: {files[0].parent} holds {len(files)} of the {max(counted)} files of {split}")
    return files


class _Rows:
    """The pictures of one split: for each, in the order of the folders, its file, row group and row there.

    Attributes:
        labels: Class numbers, (N,).
        synsets: (N,) bytes: synset that each picture's name gives, empty for another name.
        hub_classes: Names of the classes that the files' metadata give, if any.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths, self._groups = list(paths), _RowGroups()
        labels: list[int] = []
        names: list[str] = []
        rows: list[tuple[int, int, int]] = []
        self.hub_classes: tuple[str, ...] = ()
        for number, path in enumerate(self._paths):
            try:
                file = self._groups.open(path)
                self.hub_classes = self.hub_classes or _hub_classes(file.schema_arrow.metadata)
                columns = _columns(file.schema_arrow)
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=columns, use_threads=False)
                    labels += [int(label) for label in table.column("label").to_pylist()]
                    images = table.column("image").to_pylist() if "image.path" in columns else [None] * len(table)
                    names += [(image or {}).get("path") or "" for image in images]
                    rows += [(number, group, row) for row in range(len(table))]
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise InputError(
                    f"data_root: {path}: cannot be read as rows of image (bytes, path) and label "
                    f"({' '.join(str(error).split())[:160]})"
                ) from error
        if not rows:
            raise InputError(f"data_root: {self._paths[0]}: holds no pictures")
        base = [_SUFFIX.sub("", name) for name in names]
        order = sorted(range(len(rows)), key=lambda index: (labels[index], base[index]))  # stable
        self.labels: NDArray[np.int64] = np.array(labels, dtype=np.int64)[order]
        self._rows: NDArray[np.int32] = np.array(rows, dtype=np.int32)[order]
        self._names: NDArray[np.bytes_] = np.array([base[index].encode() for index in order])
        matches = (_SYNSET.search(names[index]) for index in order)
        self.synsets: NDArray[np.bytes_] = np.array([match[1].encode() if match else b"" for match in matches])

    def file(self, index: int) -> bytes:
        return (bytes(self.synsets[index]) or str(self.labels[index]).encode()) + b"/" + bytes(self._names[index])

    def location(self, index: int) -> str:
        number, group, row = self._rows[index].tolist()
        return f"{self._paths[number]}: row {row} of row group {group} ({bytes(self._names[index]).decode()})"

    def open(self, index: int) -> io.BytesIO:
        number, group, row = self._rows[index].tolist()
        image = self._groups.read(self._paths[number], group)[row].as_py()
        return io.BytesIO((image or {}).get("bytes") or b"")


def _columns(schema: Any) -> list[str]:
    """Return the columns that a listing needs, or raise ValueError naming those there are."""
    names = [field.name for field in schema.field("image").type] if "image" in schema.names else []
    if "bytes" not in names or "label" not in schema.names:
        raise ValueError(f"its columns are {', '.join(schema.names)}")
    return ["label", "image.path"] if "path" in names else ["label"]


def _hub_classes(metadata: Mapping[bytes, bytes] | None) -> tuple[str, ...]:
    """Return the class names that the hub's `datasets` writes into a file's metadata."""
    try:
        label = json.loads((metadata or {})[b"huggingface"])["info"]["features"]["label"]
        return tuple(str(name) for name in label["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _classes(rows: _Rows) -> tuple[str, ...]:
    """Return the synsets, where each class has one and they are in order; else the hub's names; else numbers."""
    count = max(len(rows.hub_classes), int(rows.labels.max()) + 1)
    pairs = sorted(set(zip(rows.labels.tolist(), rows.synsets.tolist(), strict=True)))
    synsets = [synset.decode() for _, synset in pairs if synset]
    if len(pairs) == len(synsets) == count and synsets == sorted(set(synsets)):
        return tuple(synsets)
    return rows.hub_classes if len(rows.hub_classes) == count else tuple(str(label) for label in range(count))


class _RowGroups:
    """Parquet files kept open, the latest used ones, and the row group read last."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._last: tuple[Path, int, Any] | None = None

    def open(self, path: Path) -> Any:
        """Return an open file. It is mapped into memory, so that forked workers may share it."""
        import pyarrow.parquet as pq  # takes half a second, and only this set needs it

        if path in self._files:
            self._files.move_to_end(path)
        else:
            self._files[path] = pq.ParquetFile(path, memory_map=True)
            if len(self._files) > MOST_OPEN:
                self._files.popitem(last=False)[1].close()
        return self._files[path]

    def read(self, path: Path, group: int) -> Any:
        """Return the encoded pictures of a row group; without threads, which a forked worker has not."""
        if self._last is None or self._last[:2] != (path, group):
            table = self.open(path).read_row_group(group, columns=["image.bytes"], use_threads=False)
            self._last = path, group, table.column("image")
        return self._last[2]

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": OrderedDict(), "_last": None}
