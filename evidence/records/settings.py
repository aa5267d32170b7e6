"""Which runs are repetitions of one setting: everything equal but the seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.runs.run import Run
from evidence.stats import mean_and_deviation as mean_and_deviation  # one place for the formula
from tasks.engine.config import RESULT_NEUTRAL_KEYS

# Keys, by first or last part, that do not change what is trained: names, places, logging, hardware.
# Recipes are tables to look values up in; the values in force stand under `opt`.
BYSTANDER_ROOTS = frozenset({
    "name", "tag", "experiment_name", "scale_name", "opt_name", "recipe", "sweep", "hydra", "results",
    "data_root", "paths", "logger", "launcher", "gpus", "jobs", "processes",
    "pictures", "figures",
})  # fmt: skip
BYSTANDER_LEAVES = frozenset({
    *RESULT_NEUTRAL_KEYS, "seed", "root", "cache", "path", "folder", "device", "threads", "log_every", "probe_every",
    "oscillation_window",
})  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed (and where and how they were executed).

    Attributes:
        label: Short and unique among the groups of one section.
        runs: At least one, ordered by seed.
        setting: Flat configuration without bystanders.
    """

    label: str
    runs: tuple[Run, ...]
    setting: Mapping[str, Any]

    @property
    def first(self) -> Run:
        """A run to read what all share from."""
        return self.runs[0]

    @property
    def finished(self) -> list[Run]:
        """The runs that reached their end."""
        return [run for run in self.runs if run.finished]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"opt.lr": 0.1, ...}; lists become JSON text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _bystander(key: str) -> bool:
    parts = key.split(".")
    return parts[0] in BYSTANDER_ROOTS or parts[-1] in BYSTANDER_LEAVES


def setting(run: Run) -> dict[str, Any]:
    """Return what decides a run's outcome apart from the seed: optimizer, scale, data, configuration."""
    flat = flatten(run.section("config"))
    kept = {key: value for key, value in flat.items() if not _bystander(key)}
    # Numbers given as text ("1e-4" in YAML 1.1) or as integers (0 for 0.0) are the same setting.
    for key, value in (("opt.lr", run.lr), ("opt.weight_decay", run.weight_decay)):
        if value is not None:
            kept[key] = value
    return {"optimizer": run.opt_name, "scale": run.scale, "data set": run.data, **kept}


def digest(values: Mapping[str, Any]) -> str:
    """Return 8 hex digits that name a setting."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def sections(runs: Sequence[Run]) -> dict[tuple[str, str], list[Group]]:
    """Return (data set, scale) -> groups. Runs on different data or at different scale are never compared."""
    by_place: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        place = by_place.setdefault((run.data, run.scale), {})
        place.setdefault(json.dumps(setting(run), sort_keys=True, default=str), []).append(run)
    return {place: _label(list(found.values())) for place, found in sorted(by_place.items())}


def _label(groups: list[list[Run]]) -> list[Group]:
    """Name each group by its optimizer, its decay and what else separates it from that optimizer's others."""
    settings = [setting(runs[0]) for runs in groups]
    taken: dict[str, dict[str, set[str]]] = {}  # optimizer -> key -> the values it takes among that optimizer's groups
    count = Counter(own["optimizer"] for own in settings)
    for own in settings:
        values = taken.setdefault(own["optimizer"], {})
        for key, value in own.items():
            values.setdefault(key, set()).add(str(value))
    held = {opt: Counter(key for own in settings if own["optimizer"] == opt for key in own) for opt in taken}
    labels = []
    for runs, own in zip(groups, settings, strict=True):
        values, opt = taken[own["optimizer"]], own["optimizer"]
        differing = [key for key in own if len(values[key] | ({"None"} if held[opt][key] < count[opt] else set())) > 1]
        extra = [key for key in differing if key not in ("opt.weight_decay", "opt.lr")]
        parts = [own["optimizer"], f"wd={short(runs[0].weight_decay)}"]
        parts += [f"lr={short(runs[0].lr)}"] if "opt.lr" in differing else []
        # The same option can stand in two places, e.g. data.image_size and task.data.image_size.
        named = dict.fromkeys(f"{key.rpartition('.')[2]}={short(own[key])}" for key in extra)
        labels.append(", ".join([*parts, *list(named)[:3]]))
    named_so = Counter(labels)
    made = [
        Group(
            label if named_so[label] == 1 else f"{label} [{digest(own)}]",
            tuple(sorted(runs, key=lambda run: (run.seed is None, run.seed, run.name))),
            own,
        )
        for label, runs, own in zip(labels, groups, settings, strict=True)
    ]
    return sorted(made, key=lambda group: (_rank(group.first), group.label))


def _rank(run: Run) -> tuple[str, float, float]:
    return run.opt_name, run.weight_decay or 0.0, run.lr or 0.0


def short(value: Any) -> str:
    """Return a value as it stands in a label: numbers in the shortest form, long texts cut."""
    if isinstance(value, float):
        return f"{value:g}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
