"""Verification of a copy of ImageNet, folders or tar shards: classes, counts, and every picture decoded."""

from __future__ import annotations

import collections
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from tasks.data.folder import DECODE_ERRORS, IMAGENET_COUNTS, IMAGENET_MEAN, IMAGENET_STD, Listing, list_images
from tasks.data.images import Split
from tasks.data.shards import ImageShardSet

VAL_A_CLASS, SHOWN = 50, 50
SPLITS: tuple[Split, ...] = ("train", "val")
CHUNK = 64  # pictures a message to a worker


@dataclass(frozen=True)
class Seen:
    """One picture: its place, and either what is wrong with it or what it is."""

    location: str
    trouble: str = ""  # "truncated: ..." or "unreadable: ..."; empty for one that decodes
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    stored: int = 0  # bytes


@dataclass
class Found:
    """What a check found out; `problems` decide the exit code, `notes` do not."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    pictures: dict[str, list[str]] = field(default_factory=dict)  # kind -> places


class Paths:
    """Pictures in folders, as the listing of a split: `open` gives a path."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def location(self, index: int) -> str:
        """Return where a picture lies."""
        return str(self.paths[index])

    def open(self, index: int) -> Path:
        """Return what Pillow opens."""
        return self.paths[index]


def look(listing: Paths | Listing, index: int) -> Seen:
    """Decode one picture."""
    place = listing.location(index)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF entries, of which ImageNet has some, harm no pixel
            source = listing.open(index)
            stored = source.stat().st_size if isinstance(source, Path) else len(source.getbuffer())  # type: ignore[attr-defined]
            with Image.open(source) as image:
                image.load()
                return Seen(place, format=image.format or "?", mode=image.mode, size=image.size, stored=stored)
    except DECODE_ERRORS as error:
        kind = "truncated" if "truncated" in str(error) else "unreadable"
        return Seen(place, trouble=f"{kind}: {' '.join(str(error).split())[:160] or type(error).__name__}")


def look_at(task: tuple[Paths | Listing, Sequence[int]]) -> list[Seen]:
    """Decode a chunk of pictures."""
    listing, numbers = task
    return [look(listing, index) for index in numbers]


def chosen(total: int, pictures: str) -> list[int]:
    """Return the numbers of the pictures to decode: all, or so many evenly spread ones."""
    if pictures == "all" or int(pictures) >= total:
        return list(range(total))
    return [i * total // int(pictures) for i in range(int(pictures))]


def decode(split: Split, listing: Paths | Listing, numbers: Sequence[int], *, workers: int) -> Iterator[Seen]:
    """Yield what each picture is, in order, behind a progress bar that counts the bad ones."""
    chunks = [numbers[i : i + CHUNK] for i in range(0, len(numbers), CHUNK)]
    tasks = (
        (Paths([listing.paths[i] for i in chunk]), range(len(chunk)))
        if isinstance(listing, Paths)
        else (listing, chunk)
        for chunk in chunks
    )
    bad = 0
    with tqdm(total=len(numbers), desc=split, unit="picture", disable=None) as bar:
        for seen in _spread(tasks, workers):
            bad += sum(bool(each.trouble) for each in seen)
            bar.update(len(seen))
            bar.set_postfix(bad=bad, refresh=False)
            yield from seen


def _spread(tasks: Iterator[tuple[Paths | Listing, Sequence[int]]], workers: int) -> Iterator[list[Seen]]:
    """Map over processes, a few tasks ahead: a million of them at once would be a queue of gigabytes."""
    if workers == 1:
        yield from map(look_at, tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        # islice takes no task too many, as zip with a range would
        waiting = collections.deque(pool.submit(look_at, task) for task in itertools.islice(tasks, 4 * workers))
        while waiting:
            done = waiting.popleft().result()
            task = next(tasks, None)
            if task is not None:
                waiting.append(pool.submit(look_at, task))
            yield done


def list_folders(root: Path, found: Found) -> dict[Split, tuple[Paths, dict[str, int]]]:
    """Return each split's pictures and the count of each class; what is wrong with the folders goes into `found`."""
    listed: dict[Split, tuple[Paths, dict[str, int]]] = {}
    for split in SPLITS:
        with os.scandir(root / split) as entries:
            kinds = [(entry.name, entry.is_dir()) for entry in entries]
        counts, paths = {}, []
        for name in tqdm(
            sorted(n for n, folder in kinds if folder), desc=f"{split}: folders", disable=None, leave=False
        ):
            files = list_images(root / split / name)
            counts[name] = len(files)
            paths += [root / split / name / file for file in files]
        loose = [name for name, folder in kinds if not folder and not name.startswith(".")]
        if loose:
            found.problems.append(
                f"{split}/ holds {len(loose)} files beside its class folders, such as {sorted(loose)[0]}"
            )
        listed[split] = (Paths(paths), counts)
    return listed


def list_shards(root: Path) -> dict[Split, tuple[Listing, dict[str, int]]]:
    """Return the same of tar shards; shards that are missing or cut off are InputError."""
    # A name and statistics are given, so that any set is taken and nothing is computed
    data = ImageShardSet(str(root), name="checked", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    listed: dict[Split, tuple[Listing, dict[str, int]]] = {}
    for split in SPLITS:
        listing = data._splits[split]
        counts = collections.Counter(listing.labels.tolist())
        listed[split] = (listing, {name: counts[label] for label, name in enumerate(data.classes)})
    return listed


def check_counts(counts: dict[Split, dict[str, int]], found: Found, *, expect: str) -> None:
    """Compare the classes of the two splits, and the counts with ILSVRC 2012's."""
    for one, other in (("train", "val"), ("val", "train")):
        missing = sorted(counts[one].keys() - counts[other].keys())  # type: ignore[index]
        if missing:
            found.problems.append(f"{len(missing)} class folders of {one}/ are not in {other}/: {_some(missing)}")
    for split in SPLITS:
        per_class, total = counts[split], sum(counts[split].values())
        span = f"{min(per_class.values())} to {max(per_class.values())} each" if per_class else "none"
        found.facts.append(f"{split}: {total:,} pictures in {len(per_class):,} classes, {span}")
        empty = sorted(name for name, count in per_class.items() if not count)
        if empty or not per_class:
            found.problems.append(f"{split}/ has {len(empty)} empty class folders: {_some(empty)}" if empty else
                                  f"{split}/ has no class folders")  # fmt: skip
        if expect != "imagenet":
            continue
        for what, number, verb in (("pictures", total, "holds"), ("classes", len(per_class), "has")):
            published = IMAGENET_COUNTS[split if what == "pictures" else "classes"]
            if number != published:
                found.problems.append(f"{split}/ {verb} {number:,} {what}, ILSVRC 2012 has {published:,}")
        odd = sorted(name for name, count in per_class.items() if split == "val" and count != VAL_A_CLASS)
        if odd:
            found.problems.append(f"{len(odd)} classes of val/ do not hold {VAL_A_CLASS} pictures: {_some(odd)}")


def check_pictures(split: Split, seen: Iterator[Seen], found: Found, *, num_chosen: int) -> None:
    """Sort the pictures by what they are; pictures that were chosen and not looked at are a problem."""
    good, bad, stored, short, long_ = 0, 0, 0, 0, 0
    for each in seen:
        if each.trouble:
            bad += 1
            kind = each.trouble.partition(":")[0]
            found.pictures.setdefault(kind, []).append(f"{each.location} ({each.trouble.partition(': ')[2]})")
            continue
        good, stored = good + 1, stored + each.stored
        short, long_ = short + min(each.size), long_ + max(each.size)
        if each.mode == "CMYK":
            found.pictures.setdefault("CMYK", []).append(each.location)
        elif each.format != "JPEG":
            found.pictures.setdefault("not JPEG", []).append(f"{each.location} ({each.format})")
        elif each.mode == "L":
            found.pictures.setdefault("grey", []).append(each.location)
    if good + bad != num_chosen:
        found.problems.append(f"{split}: {good + bad:,} pictures were checked of {num_chosen:,} chosen")
    if good:
        found.facts.append(
            f"{split}: {good:,} decoded, on average {stored / good / 1000:.1f} kB and {long_ / good:.0f} x "
            f"{short / good:.0f} pixels (long x short side)"
        )


def judge(found: Found) -> None:
    """Say which kinds of pictures are problems: those that cannot be decoded."""
    for kind in ("unreadable", "truncated"):
        if kind in found.pictures:
            found.problems.append(f"{len(found.pictures[kind])} {kind} pictures")
    for kind in ("CMYK", "not JPEG", "grey"):
        if kind in found.pictures:
            found.notes.append(f"{len(found.pictures[kind]):,} pictures are {kind}; they are read as RGB")


def report(root: Path, found: Found, options: dict[str, str]) -> str:
    """Return the report as Markdown."""
    text = f"# ImageNet check of {root}\n\n{'**Problems**' if found.problems else '**All is well.**'}\n\n"
    text += "".join(f"- {line}\n" for line in found.problems) + ("\n" if found.problems else "")
    text += "## Facts\n\n" + "".join(f"- {line}\n" for line in [*found.facts, *found.notes])
    if options["pictures"] != "all":
        text += f"- only {options['pictures']} pictures of each split were decoded\n"
    for kind, places in found.pictures.items():
        if kind == "grey":  # thousands, and nothing to do about them
            continue
        text += f"\n## {len(places)} {kind}\n\n" + "".join(f"- {place}\n" for place in places[:SHOWN])
        text += f"- and {len(places) - SHOWN} more\n" if len(places) > SHOWN else ""
    return text


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
