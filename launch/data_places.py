"""Where data sets lie: `data_root` is the folder of a run's set, or a file that names the place of each set.

A line of the file is `NAME: PATH`, with a name of `NAMES`; relative paths are relative to the file. So one command can
train on several sets, and a machine's sets are named once. It needs Python alone, for `make doctor`.
"""

from __future__ import annotations

from pathlib import Path

from launch.words import did_you_mean

NAMES = (
    "imagenet", "imagenet_shards", "imagenet_parquet", "imagenet9_clusters", "imagenet_a", "mnist", "cifar10", "coco",
    "bccd", "cub", "cars", "inshop", "sop", "mtat", "speech_commands", "fsdd", "dcase2017_task4", "wikitext103",
    "penn_treebank",
)  # fmt: skip


def read_places(file: Path) -> dict[str, Path]:
    """Return name -> place of every line of a file.

    Raises:
        ValueError: The file cannot be read, a line is none of the kind, or a name is not known or comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"data_root={file}: cannot be read ({error})") from None
    places: dict[str, Path] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        name, colon, path = (part.strip() for part in text.partition(":"))
        path = path.strip("\"'")
        if not colon or not path:
            raise ValueError(f"data_root={file}: line {number} is {text!r}; it must be NAME: PATH")
        if name not in NAMES:
            raise ValueError(
                f"data_root={file}: line {number} names {name}, which is no set{did_you_mean(name, NAMES)}; "
                f"choose among {', '.join(NAMES)}"
            )
        if name in places:
            raise ValueError(f"data_root={file}: line {number} names {name} a second time")
        places[name] = file.parent / Path(path).expanduser()
    return places


def place_of(data_root: str | None, name: str) -> str | None:
    """Return where a set lies: its line where `data_root` is a file, else `data_root` itself."""
    if data_root is None or not Path(data_root).is_file():
        return data_root
    return listed_place(data_root, name)


def listed_place(data_root: str | None, name: str) -> str | None:
    """Return the place that a file names, None where there is no file or no such line."""
    if data_root is None or not Path(data_root).is_file():
        return None
    place = read_places(Path(data_root)).get(name)
    return None if place is None else str(place)
