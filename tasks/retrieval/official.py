"""The official layouts and split files of the four retrieval sets, read into lists of paths and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.base import InputError
from tasks.data.files import is_macos_junk, quoted, read_text, stays_inside


@dataclass(frozen=True)
class Listing:
    """One part of a set: the path and the class number of each picture."""

    paths: list[str]
    labels: list[int]

    def where(self, keep: Sequence[bool]) -> Listing:
        """Return the pictures for which `keep` holds."""
        pairs = [(p, c) for p, c, kept in zip(self.paths, self.labels, keep, strict=True) if kept]
        return Listing([p for p, _ in pairs], [c for _, c in pairs])


Parts = dict[str, Listing]  # "train", "queries", and "gallery" if the queries search one


def read_cub(root: Path, last_train_class: int | None = None) -> Parts:
    """Read CUB-200-2011: `images.txt` (number, path) and `image_class_labels.txt` (number, class).

    Classes 1-100 train, 101-200 are searched; `train_test_split.txt` is for classification and not used.

    Args:
        root: Folder with `CUB_200_2011`, or that folder.
        last_train_class: Another border than 100.

    Raises:
        InputError: A file is missing or a line is not understood.
    """
    folder = _inside(root, "CUB_200_2011", "images.txt")
    paths = _numbered(folder / "images.txt")
    marks = folder / "image_class_labels.txt"
    labels = {key: _whole(value, marks) for key, value in _numbered(marks).items()}
    if paths.keys() != labels.keys():
        odd = sorted(paths.keys() ^ labels.keys())[0]
        raise InputError(f"{folder}: image {odd} stands in only one of images.txt and image_class_labels.txt")
    pictures, file = folder / "images", folder / "images.txt"
    listed = [(_picture(pictures, path, file), labels[key]) for key, path in paths.items() if not is_macos_junk(path)]
    return _split(listed, last_train_class or 100)


def read_cars(root: Path, last_train_class: int | None = None) -> Parts:
    """Read Cars-196: `cars_annos.mat` and `car_ims`, or the devkit's two annotation files and folders.

    The devkit's files may lie in `devkit` or beside the pictures; torchvision puts them into `stanford_cars/devkit` and
    `cars_test_annos_withlabels.mat` into `stanford_cars`, where its pictures are. Classes 1-98 train, 99-196 are
    searched; the field `test` is for classification and not used.

    Args:
        root: Folder with `cars196` or `stanford_cars`, or that folder.
        last_train_class: Another border than 98.

    Raises:
        InputError: Neither layout is found, or an annotation file cannot be read.
    """
    one, devkit = "cars_annos.mat", ("cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    homes = (root / "cars196", root / "stanford_cars", root)
    for folder in (*homes, *(home / "devkit" for home in homes)):
        if (folder / one).is_file():
            return _split(_car_annotations(folder / one, "relative_im_path", folder), last_train_class or 98)
        if (folder / devkit[0]).is_file():
            home = folder.parent if folder.name == "devkit" else folder
            listed: list[tuple[str, int]] = []
            for name, images in zip(devkit, ("cars_train", "cars_test"), strict=True):
                file = folder / name if (folder / name).is_file() else home / name
                listed += _car_annotations(file, "fname", home / images)
            return _split(listed, last_train_class or 98)
    raise InputError(
        f"data_root={root}: has neither cars_annos.mat (with car_ims/) nor devkit/{devkit[0]} and {devkit[1]} (with "
        "cars_train/ and cars_test/); copies sorted into one folder per class have lost the numbers of the classes"
    )


def read_sop(root: Path, last_train_class: int | None = None) -> Parts:
    """Read Stanford Online Products: `Ebay_train.txt` and `Ebay_test.txt`, a header and (image, class, super, path).

    Args:
        root: Folder with `Stanford_Online_Products`, or that folder.
        last_train_class: Not used: the files name the parts.

    Raises:
        InputError: A file is missing or a line is not understood.
    """
    folder = _inside(root, "Stanford_Online_Products", "Ebay_train.txt")
    parts = {}
    for part, name in (("train", "Ebay_train.txt"), ("queries", "Ebay_test.txt")):
        rows = _rows(folder / name, 4)[1:]
        if not rows:
            raise InputError(f"{folder / name}: lists no pictures")
        paths = [_picture(folder, row[3], folder / name) for row in rows]
        _check_once(paths, folder / name)
        parts[part] = Listing(paths, [_whole(row[1], folder / name) for row in rows])
    return parts


def read_inshop(root: Path, last_train_class: int | None = None) -> Parts:
    """Read In-Shop Clothes: `Eval/list_eval_partition.txt`, a count, a header and (path, item, part).

    Use the pictures of 256x256 (`img.zip`), whose paths start with `img/`, below `Img`.

    Args:
        root: Folder with `Inshop_Clothes`, or that folder.
        last_train_class: Not used: the file names the parts.

    Raises:
        InputError: The file is missing, holds another number of pictures than it says, or an unknown part.
    """
    file = "Eval/list_eval_partition.txt"
    folder = _inside(root, "Inshop_Clothes", file)
    lines = _lines(folder / file)
    rows = _rows(folder / file, 3, skip=2)
    stated = lines[0].split() if lines else []
    if [str(len(rows))] != stated:
        raise InputError(f"{folder / file}: says {quoted(' '.join(stated))} pictures and lists {len(rows)}")
    names = {"train": "train", "query": "queries", "gallery": "gallery"}
    pairs_by_part: dict[str, list[tuple[str, int]]] = {part: [] for part in names.values()}
    for path, item, part in rows:
        if part not in names:
            raise InputError(f"{folder / file}: {path} is in part {quoted(part)}; known are {', '.join(names)}")
        pairs_by_part[names[part]].append(
            (_picture(folder / "Img", path, folder / file), _whole(item.removeprefix("id_"), folder / file))
        )
    _check_once([path for pairs in pairs_by_part.values() for path, _ in pairs], folder / file)
    return {part: Listing([p for p, _ in pairs], [c for _, c in pairs]) for part, pairs in pairs_by_part.items()}


READERS: dict[str, Callable[[Path, int | None], Parts]] = {
    "cub": read_cub,
    "cars": read_cars,
    "sop": read_sop,
    "inshop": read_inshop,
}


def _split(listed: list[tuple[str, int]], last_train_class: int) -> Parts:
    listing = Listing([path for path, _ in listed], [label for _, label in listed])
    train = [label <= last_train_class for label in listing.labels]
    return {"train": listing.where(train), "queries": listing.where([not kept for kept in train])}


def _car_annotations(file: Path, field: str, folder: Path) -> list[tuple[str, int]]:
    import scipy.io  # a second to import, and only this set needs it

    if not file.is_file():
        raise InputError(f"{file}: does not exist")
    try:
        annotations = scipy.io.loadmat(str(file))["annotations"].ravel()
        # Every field is an array in an array.
        listed = [(_picture(folder, str(_only(row[field])), file), int(_only(row["class"]))) for row in annotations]
        _check_once([path for path, _ in listed], file)
        return listed
    except InputError:
        raise
    except Exception as error:  # scipy raises a dozen kinds for a broken file
        raise InputError(f"{file}: is no annotation file of Cars-196 ({type(error).__name__}: {error})") from None


def _only(value: Any) -> Any:
    return value.ravel()[0].item() if value.dtype != object else _only(value.ravel()[0])


def _inside(root: Path, name: str, marker: str) -> Path:
    """Return the set's own folder, which is the root or lies in it, by a file that it must hold."""
    for folder in (root / name, root):
        if (folder / marker).is_file():
            return folder
    raise InputError(f"data_root={root}: {name}/{marker} does not exist there")


def _lines(file: Path) -> list[str]:
    return read_text(file).splitlines()


def _rows(file: Path, columns: int, *, skip: int = 0) -> list[list[str]]:
    """Return the words of each line; runs of blanks count as one, and empty lines as none."""
    rows = []
    for number, line in enumerate(_lines(file)[skip:], skip + 1):
        words = line.split()
        if len(words) not in (0, columns):
            raise InputError(f"{file}, line {number}: {len(words)} columns, not {columns}: {quoted(line)}")
        rows += [words] if words else []
    return rows


def _whole(word: str, file: Path) -> int:
    if not (word.isdecimal() and len(word) < 10):
        raise InputError(f"{file}: {quoted(word)} is no class number")
    return int(word)


def _numbered(file: Path) -> dict[str, str]:
    """Return the second column of a file by its first, which must not repeat itself."""
    rows = _rows(file, 2)
    _check_once([row[0] for row in rows], file)
    return {row[0]: row[1] for row in rows}


def _check_once(keys: Sequence[str], file: Path) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise InputError(f"{file}: lists {quoted(twice)} twice")


def _picture(folder: Path, name: str, file: Path) -> str:
    """Return the path of a picture that a file lists, which must lie in its folder."""
    if not stays_inside(name):
        raise InputError(f"{file}: {quoted(name)} is no path inside {folder.name}/")
    return str(folder / name)
