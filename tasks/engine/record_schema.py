"""The entries of run.json, and their validation when they are read back. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict


class GitState(TypedDict):
    """A checkout's commit, and whether it has uncommitted changes; nulls outside a checkout."""

    commit: str | None
    dirty: bool | None


class Platform(TypedDict):
    """What decides the rounding of a run on CPUs: two runs alike in all of it repeat bit for bit."""

    processor: str
    flags: list[str]
    capability: str
    libraries: list[str]
    threads: int
    interop_threads: int
    environment: dict[str, str]


class Hardware(TypedDict):
    """The machine of a run, its memory in GiB."""

    machine: str
    cpu: str
    cores: int
    gpus: list[str]
    memory_gib: float
    processes: int
    platform: Platform


class ModelFacts(TypedDict):
    """Number of parameters, and the scale-invariant ones: role -> names, and their share of all entries."""

    parameters: int
    scale_invariant_share: float | None
    scale_invariant: dict[str, list[str]]


class Segment(TypedDict):
    """What one start of a run trained, and on what; the steps after its last checkpoint belong to the next segment.

    `to_step` is null while it runs. `words` are the arguments of `scripts/train.py`, `threads` those of torch.
    """

    from_step: int
    to_step: int | None
    started: str
    git: GitState
    versions: dict[str, str]
    hardware: Hardware
    threads: int | None
    words: list[str]


class RunEntries(TypedDict, total=False):
    """The contents of run.json. Times are UTC, ISO 8601; `status` is running, interrupted, failed or finished."""

    # Identity
    name: str
    experiment: str | None
    opt_name: str | None
    seed: int | None
    scale: str | None
    config: dict[str, Any]
    config_hash: str
    # Provenance
    command: str
    argv: list[str]
    log: str | None
    git: GitState
    versions: dict[str, str]
    hardware: Hardware
    numerics: dict[str, Any]
    data: dict[str, Any]
    model: ModelFacts
    monitor: str
    # Course and outcome
    status: str
    error: str | None
    started: str
    ended: str | None
    resumed_from: list[int]
    segments: list[Segment]
    wall_time_s: float
    peak_memory_mib: float
    steps: int
    epochs: float
    scores: dict[str, float]
    best: dict[str, Any]
    checkpoint: str
    diverged_at: int | None
    notices: dict[str, int]
    refused_updates: int


# Entries of `data` that a resumed run must not change: a set of another name or size, or of other files
DATA_IDENTITY = ("name", "train_examples", "val_examples", "test_examples", "digest")

# Entries that are read back, and their JSON types
TYPES: Mapping[str, tuple[type, ...]] = {
    "status": (str,), "config": (dict,), "scores": (dict,), "model": (dict,), "data": (dict,), "resumed_from": (list,),
    "segments": (list,), "wall_time_s": (int, float), "best": (dict, type(None)), "error": (str, type(None)),
    "peak_memory_mib": (int, float, type(None)),
}  # fmt: skip


def wrong_entry(record: Mapping[str, Any]) -> str | None:
    """Return the first error in a record read from run.json, e.g. one edited by hand; None if it is valid."""
    for key, types in TYPES.items():
        if key in record and (not isinstance(record[key], types) or isinstance(record[key], bool)):
            return f"its {key} is {record[key]!r}"[:80]
    if not 0 <= float(record.get("wall_time_s", 0)) < float("inf"):
        return f"its wall_time_s is {record['wall_time_s']}"
    if not all(isinstance(value, int | float) for value in record.get("scores", {}).values()):
        return "a score is no number"
    return None


# Entries of `hardware` that change no number
_SAME_NUMBERS = ("machine", "cores", "memory_gib")


def segment_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return "torch 2.11.0 -> 2.12.0" for each fact in which a segment differs from the one before it.

    What either does not state is not compared. Words are not compared: a resumed run has the configuration that it
    began with, but for what changes no number.
    """
    changes = []
    old, new = _object(before, "git"), _object(after, "git")
    if old.get("commit") != new.get("commit") and old and new:
        changes.append(f"commit {str(old.get('commit'))[:10]} -> {str(new.get('commit'))[:10]}")
    if old.get("dirty") != new.get("dirty") and old and new:
        states = {True: "with", False: "without", None: "unknown"}
        changes.append(f"uncommitted changes: {states.get(old.get('dirty'))} -> {states.get(new.get('dirty'))}")
    for part in ("versions", "hardware"):
        old, new = _object(before, part), _object(after, part)
        keys = [key for key in new if key in old and key not in _SAME_NUMBERS and old[key] != new[key]]
        changes += [f"{key} {old[key] or 'none'} -> {new[key] or 'none'}" for key in keys]
    old_threads, new_threads = before.get("threads"), after.get("threads")
    if None not in (old_threads, new_threads) and old_threads != new_threads:
        changes.append(f"threads {old_threads} -> {new_threads}")
    return changes


def segments_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the segments of a record; of one without any, the facts of its last start, which is all that it knows."""
    segments = record.get("segments") if isinstance(record.get("segments"), list) else ()
    known: list[Mapping[str, Any]] = [each for each in segments or () if isinstance(each, dict)]
    return known or [record]


def _object(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}
