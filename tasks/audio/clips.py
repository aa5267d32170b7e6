"""Labelled audio clips: the listing that a reader returns, and the decoded samples."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.audio.cache import Entry, Fault, decode_all, load_samples
from tasks.base import InputError
from tasks.data.identity import data_digest

SPLITS = ("train", "val", "test")
_logger = logging.getLogger("tasks.audio")


@dataclass(frozen=True)
class Clip:
    """A sound file and the numbers of its classes: one of them for a single-label set."""

    path: Path
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Listing:
    """What a reader finds in a folder.

    Attributes:
        name: What records call the set.
        root: The folder; paths in messages are given from here.
        classes: Names of the classes.
        multi_label: Whether a clip can have any number of classes.
        clips: Split ("train", "val", "test") -> clips, in an order that depends on the files alone.
        licence: Terms of the recordings.
        notes: Counts worth a word in the record, e.g. clips that carry none of the labels.
        same_level: Whether each clip is scaled so that its largest sample is 1.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    multi_label: bool
    clips: dict[str, list[Clip]]
    licence: str
    notes: dict[str, int] = field(default_factory=dict)
    same_level: bool = False


class ClipSet:
    """The clips of a listing, decoded once into a cache and memory-mapped from there.

    Args:
        listing: The clips that a reader returned.
        sample_rate: In Hz; clips of another rate are resampled.
        resample: False refuses clips of another rate.
        cache: Folder of the cache; None: `audio` in $ADAMP_DATA or ~/.cache/adamp/data.
        workers: Threads that decode; None: one a core.
        max_undecodable: Files that may be broken, empty, not finite or missing; None: 1 % of all and at least 10. They
            are left out and counted.

    Raises:
        InputError: Too many files cannot be decoded, a split is empty, or a rate is refused.
    """

    def __init__(
        self,
        listing: Listing,
        *,
        sample_rate: int = 16_000,
        resample: bool = True,
        cache: str | Path | None = None,
        workers: int | None = None,
        max_undecodable: int | None = None,
    ) -> None:
        self.name, self.classes, self.licence = listing.name, listing.classes, listing.licence
        self.multi_label, self.notes, self.same_level = listing.multi_label, listing.notes, listing.same_level
        self.sample_rate, self.root = sample_rate, listing.root
        paths = sorted({clip.path for clips in listing.clips.values() for clip in clips})
        self.cache = decode_all(
            paths, listing.root, sample_rate=sample_rate, resample=resample, cache=cache, workers=workers
        )
        self.undecodable = {path: entry.reason for path in paths if isinstance(entry := self.cache[path], Fault)}
        self._check(len(paths), max_undecodable)
        self.clips: dict[str, list[Clip]] = {}
        self.entries: dict[str, list[Entry]] = {}
        for split, clips in listing.clips.items():
            pairs = [(clip, entry) for clip in clips if isinstance(entry := self.cache[clip.path], Entry)]
            if not pairs:
                raise InputError(f"data_root: {listing.root}: the {split} split of {listing.name} holds no clip")
            self.clips[split] = [clip for clip, _ in pairs]
            self.entries[split] = [entry for _, entry in pairs]

    def _check(self, total: int, max_undecodable: int | None) -> None:
        limit = max(10, total // 100) if max_undecodable is None else max_undecodable
        for path, reason in list(self.undecodable.items())[:10]:
            _logger.warning("clip left out: %s: %s", path, reason)
        if len(self.undecodable) > 10:
            _logger.warning("%d more clips left out; `undecodable` in run.json counts them", len(self.undecodable) - 10)
        if len(self.undecodable) > limit:
            first = "; ".join(f"{path}: {reason}" for path, reason in list(self.undecodable.items())[:3])
            raise InputError(
                f"{len(self.undecodable)} of {total} clips cannot be decoded, more than data.max_undecodable allows "
                f"({limit}); first: {first}"
            )

    def num(self, split: str) -> int:
        """Return the number of clips of a split."""
        return len(self.clips[split])

    def length(self, split: str, index: int) -> int:
        """Return the number of samples of a clip."""
        return self.entries[split][index].length

    def samples(self, split: str, index: int, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return samples start to stop of a clip, between -1 and 1 for a usual recording; others are not read."""
        entry = self.entries[split][index]
        if not self.same_level:
            return load_samples(entry, start, stop)
        wave = load_samples(entry)
        return wave[start:stop] / np.float32(np.abs(wave).max() or 1)  # a silent clip stays silent

    def targets(self, split: str, numbers: Sequence[int]) -> Tensor:
        """Return classes (B,) int64 of a single-label set, else which of the K classes each has, (B, K) float32."""
        labels = [self.clips[split][number].labels for number in numbers]
        if not self.multi_label:
            return torch.tensor([label for (label,) in labels], dtype=torch.int64)
        rows = torch.zeros(len(labels), len(self.classes))
        for row, each in zip(rows, labels, strict=True):
            row[list(each)] = 1
        return rows

    def describe(self) -> dict[str, Any]:
        """Return facts for the record of a run."""
        sizes = {f"{split}_examples": self.num(split) for split in self.clips}
        facts = {"classes": len(self.classes), "sample_rate": self.sample_rate, "licence": self.licence}
        files = [
            f"{split} {os.path.relpath(clip.path, self.root)} {clip.labels}"
            for split, clips in self.clips.items()
            for clip in clips
        ]
        return {"name": self.name, **sizes, **facts, **self.notes, "digest": data_digest(files)}
