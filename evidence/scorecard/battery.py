"""The battery of workloads, its budget, and the points of the search."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from evidence.runs.run import ReadError
from evidence.tuning import Point, points


@dataclass(frozen=True)
class Workload:
    """One setting that every optimizer is tuned and scored on.

    Attributes:
        key: Short name.
        title: In tables.
        words: Overrides that compose it.
        score: What decides; lower is better.
        also: A second score, shown beside it.
        invariant: What makes which weights scale-invariant, in words.
    """

    key: str
    title: str
    words: tuple[str, ...]
    score: str
    also: str
    invariant: str


@dataclass(frozen=True)
class Battery:
    """Workloads, budget and rules; see configs/scorecard.yaml for each entry.

    Attributes:
        data: The file's contents.
        workloads: Key -> workload, in the order in which they run.
    """

    data: Mapping[str, Any]
    workloads: Mapping[str, Workload]

    @property
    def protocol(self) -> dict[str, Any]:
        """What two cards must share to be compared; the workloads are compared one by one, by `protocol_of`."""
        keys = ("version", "budget", "draw", "undecayed", "tuning_seed", "seeds", "validation", "shared")
        return {key: self.data[key] for key in keys}

    def protocol_of(self, workload: str) -> dict[str, Any]:
        """What two cards must share of a workload."""
        return {key: value for key, value in self.data["workloads"][workload].items() if key in ("words", "score")}

    def family(self, target: str, spec: str) -> tuple[str, dict[str, tuple[float, float]]]:
        """Return the family of an optimizer by the names of its class and spec, and its ends of rate and decay."""
        text = f"{target.rpartition('.')[2]} {spec.rpartition(':')[2]}"
        for name, row in self.data["families"].items():
            if re.search(row["match"], text, re.IGNORECASE):
                return name, {key: (float(row[key][0]), float(row[key][1])) for key in ("lr", "weight_decay")}
        raise ReadError(f"configs/scorecard.yaml has no family for {text}")

    def points(self, opt: str, space: Mapping[str, tuple[float, float]]) -> list[Point]:
        """Return the trials: a part of the square's decay axis is no decay at all, the rest its logarithm."""
        off = float(self.data["undecayed"])
        low, high = space["weight_decay"]
        spread = points(
            opt, int(self.data["budget"]), rates=space["lr"], decays=(low, high), draw=int(self.data["draw"])
        )

        def decay(place: float) -> float:
            return 0.0 if place < off else float(f"{low * (high / low) ** ((place - off) / (1 - off)):.3g}")

        return [replace(point, weight_decay=decay(point.place[1])) for point in spread]


def read_battery(path: Path) -> Battery:
    """Read the battery's file.

    Raises:
        ReadError: There is none.
    """
    if not path.is_file():
        raise ReadError(f"battery={path}: there is no such file")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    workloads = {
        key: Workload(key, row["title"], tuple(row["words"]), row["score"], row["also"], row["invariant"])
        for key, row in data["workloads"].items()
    }
    return Battery(data, workloads)
