"""Repetitions: runs grouped by setting, which is everything but the seed, and by data set and scale above it.

The one grouping of runs: tables, figures, claims and pages use it, for run folders and for recorded rows alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from evidence.records.row import ResultRow
from evidence.runs.run import Run

R = TypeVar("R", Run, ResultRow)


@dataclass(frozen=True)
class Group(Generic[R]):
    """Runs that differ in nothing but the seed (and where and how they were executed).

    Attributes:
        label: Short and unique among the groups of one data set and scale.
        runs: At least one, ordered by seed.
        setting: Flat configuration without result-neutral keys.
    """

    label: str
    runs: tuple[R, ...]
    setting: Mapping[str, Any]

    @property
    def first(self) -> R:
        """A run to read what all share from."""
        return self.runs[0]

    @property
    def complete(self) -> list[R]:
        """The runs that trained for their whole schedule: those whose scores compare."""
        return [run for run in self.runs if run.outcome == "finished"]

    @property
    def outcome(self) -> str:
        """`finished` if any run is complete, else what became of the runs: "failed, interrupted"."""
        return "finished" if self.complete else ", ".join(sorted({run.outcome for run in self.runs}))


def group_by_setting(runs: Sequence[R]) -> dict[tuple[str, str], list[Group[R]]]:
    """Return (data set, scale) -> groups. Runs on different data or at different scale are never compared."""
    by_place: dict[tuple[str, str], dict[str, list[R]]] = {}
    for run in runs:
        by_place.setdefault((run.data, run.scale), {}).setdefault(run.setting_key, []).append(run)
    return {place: _labelled(by_setting) for place, by_setting in sorted(by_place.items())}


def _labelled(by_setting: Mapping[str, list[R]]) -> list[Group[R]]:
    """Name each group by its optimizer, its decay and what else separates it from that optimizer's others."""
    settings = {key: runs[0].setting for key, runs in by_setting.items()}
    by_optimizer: dict[str, list[dict[str, Any]]] = {}
    for setting in settings.values():
        by_optimizer.setdefault(setting["optimizer"], []).append(setting)
    labels: dict[str, str] = {}
    for key, setting in settings.items():
        others, run = by_optimizer[setting["optimizer"]], by_setting[key][0]
        differing = [name for name in setting if len({str(other.get(name)) for other in others}) > 1]
        parts: list[str] = [setting["optimizer"], f"wd={short(run.weight_decay)}"]
        parts += [f"lr={short(run.lr)}"] if "opt.lr" in differing else []
        # An option that is off in this setting, such as max_steps, is named in the others alone.
        named = [name for name in differing if name not in ("opt.weight_decay", "opt.lr")]
        extra = [name for name in named if setting[name] is not None]
        # The same option can stand in two places, e.g. data.image_size and task.data.image_size.
        words: dict[str, None] = dict.fromkeys(f"{name.rpartition('.')[2]}={short(setting[name])}" for name in extra)
        labels[key] = ", ".join([*parts, *list(words)[:3]])
    count = Counter(labels.values())
    groups = [
        Group(
            label if count[label] == 1 else f"{label} [{key}]",
            tuple(sorted(by_setting[key], key=lambda run: (run.seed is None, run.seed, run.name))),
            settings[key],
        )
        for key, label in labels.items()
    ]
    return sorted(groups, key=lambda group: (_rank(group.first), group.label))


def _rank(run: Run | ResultRow) -> tuple[str, float, float]:
    return run.opt_name, run.weight_decay or 0.0, run.lr or 0.0


def seeds_text(runs: Sequence[Run | ResultRow]) -> str:
    """Return "0, 1, 2 failed": the seeds, with what became of those that are not complete."""
    ordered = sorted(runs, key=lambda run: (run.outcome != "finished", run.seed or 0, run.seed is None))
    marks = ("" if run.outcome == "finished" else f" {run.outcome}" for run in ordered)
    return ", ".join(f"{short(run.seed)}{mark}" for run, mark in zip(ordered, marks, strict=True))


def short(value: Any) -> str:
    """Return a value as it stands in a label: numbers in the shortest form, long texts cut."""
    if isinstance(value, float):
        return f"{value:g}"
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
