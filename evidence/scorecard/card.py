"""A scorecard as JSON: the trials and scored runs of one optimizer on the battery, its costs, and where it was made.

docs/scorecard.md describes the schema. A card may lack workloads, which have not run or were refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.runs.run import ReadError
from evidence.scorecard.battery import Battery
from evidence.tuning import Point

SCHEMA = "scorecard/1"
NUMBER = (int, float)
TUNED, UNDECAYED = "tuned", "undecayed"  # the two choices of a workload: of all trials, and of those without decay
SHAPE: dict[str, Any] = {
    "schema": str, "name": str,
    "optimizer": {"spec": str, "class": str, "package": str, "options": dict, "family": str, "space": dict},
    "protocol": {"version": int, "budget": int, "seeds": list},
    "provenance": {"command": str, "commit": str, "machine": str, "versions": dict, "cpu_seconds": NUMBER},
    "workloads": dict, "cost": dict,
}  # fmt: skip
TRIAL = {"lr": NUMBER, "weight_decay": NUMBER, "place": list, "score": (*NUMBER, type(None)), "status": str}
RUN = {"status": str, "score": (*NUMBER, type(None)), "also": (*NUMBER, type(None)), "curve": list, "mechanism": dict}


@dataclass(frozen=True)
class Card:
    """One optimizer's scorecard.

    Attributes:
        data: As in the file.
        path: Where it lies.
    """

    data: Mapping[str, Any]
    path: Path = Path()

    @property
    def name(self) -> str:
        """The optimizer's name."""
        return str(self.data["name"])

    def workload(self, key: str) -> Mapping[str, Any]:
        """Return what is there of a workload, empty if nothing."""
        found: Mapping[str, Any] = self.data["workloads"].get(key, {})
        return found

    def refusal(self, key: str) -> str:
        """Return why a workload could not run, "" if it could."""
        return str(self.workload(key).get("refused", ""))

    def points(self, key: str) -> list[Point]:
        """Return a workload's trials."""
        return [
            Point(self.name, t["lr"], t["weight_decay"], tuple(t["place"]), score=t["score"], status=t["status"])
            for t in self.workload(key).get("trials", [])
        ]

    def chosen(self, key: str, choice: str) -> Point | None:
        """Return the trial that was chosen, None where none could be."""
        place = self.workload(key).get("chosen", {}).get(choice)
        return None if place is None else self.points(key)[place]

    def runs(self, key: str, choice: str) -> dict[int, Mapping[str, Any]]:
        """Return seed -> scored run of a choice."""
        place = self.workload(key).get("chosen", {}).get(choice)
        runs = self.workload(key).get("scored", {}).get(str(place), {})
        return {int(seed): run for seed, run in runs.items()}

    def scores(self, key: str, choice: str, score: str = "score") -> dict[int, float]:
        """Return seed -> score of the runs that finished."""
        return {seed: run[score] for seed, run in self.runs(key, choice).items() if run[score] is not None}

    def failed(self, key: str, choice: str) -> int:
        """Return how many scored runs diverged."""
        return sum(run["status"] == "diverged" for run in self.runs(key, choice).values())

    def is_complete(self, key: str, choice: str) -> bool:
        """Whether every seed of a workload has run."""
        return len(self.runs(key, choice)) == len(self.data["protocol"]["seeds"])

    def has_failed(self, key: str) -> bool:
        """Whether all trials of a workload diverged, so that there is nothing to score."""
        trials = self.points(key)
        return bool(trials) and all(point.status == "diverged" for point in trials)

    def has_ended(self, key: str) -> bool:
        """Whether nothing of a workload is still to run."""
        return bool(self.refusal(key)) or self.has_failed(key) or self.is_complete(key, TUNED)

    def kept(self, battery: Battery, *, without: Sequence[str]) -> dict[str, Any]:
        """Return what a later call keeps: workloads that it does not run, made by the same rules."""
        if any(self.data["protocol"].get(key) != value for key, value in battery.protocol.items()):
            return {}
        others = [key for key in battery.workloads if key not in without and key in self.data["workloads"]]
        return {key: self.workload(key) for key in others if self.workload(key)["protocol"] == battery.protocol_of(key)}

    def check_comparable(self, battery: Battery) -> None:
        """Refuse a card that was made with another budget, other seeds or other rules.

        Raises:
            ReadError: It was; the text names the first difference.
        """
        own, theirs = self.data["protocol"], battery.protocol
        for key, value in theirs.items():
            if own.get(key) != value:
                raise ReadError(
                    f"{self.name}: its {key} is {own.get(key)}, here it is {value}: cards of unequal budgets or rules "
                    "are not compared; make it again"
                )
        for key in self.data["workloads"].keys() & battery.workloads.keys():
            if self.workload(key).get("protocol") != battery.protocol_of(key):
                raise ReadError(f"{self.name}: the workload {key} is not the one of configs/scorecard.yaml")
            if self.points(key) and len(self.points(key)) != battery.data["budget"]:
                raise ReadError(
                    f"{self.name}: {key} has {len(self.points(key))} trials, the budget is {battery.data['budget']}"
                )

    def write(self, path: Path) -> None:
        """Write the file; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".json.tmp")
        temporary.write_text(_text(self.data), encoding="utf-8")
        temporary.replace(path)


def read_card(path: Path) -> Card:
    """Read and check a card.

    Raises:
        ReadError: It cannot be read, or an entry is missing or of another kind.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReadError(f"{path} cannot be read as a scorecard: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise ReadError(f"{path} has the schema {found!r}; this version reads {SCHEMA}")
    _check(data, SHAPE, str(path))
    for key, workload in data["workloads"].items():
        place = f"{path}: workloads.{key}"
        _check(workload, {"protocol": dict} | ({} if "refused" in workload else {"trials": list}), place)
        for number, trial in enumerate(workload.get("trials", [])):
            _check(trial, TRIAL, f"{place}.trials.{number}")
        for trial, runs in workload.get("scored", {}).items():
            for seed, run in runs.items():
                _check(run, RUN, f"{place}.scored.{trial}.{seed}")
                if int(seed) not in data["protocol"]["seeds"]:
                    raise ReadError(f"{place}.scored.{trial}: the seed {seed} is none of the protocol's")
    return Card(data, path)


def _check(value: Any, shape: Mapping[str, Any], place: str) -> None:
    if not isinstance(value, dict):
        raise ReadError(f"{place} is {type(value).__name__}; it must be an object")
    for key, kind in shape.items():
        if key not in value:
            raise ReadError(f"{place} lacks {key}")
        if isinstance(kind, dict):
            _check(value[key], kind, f"{place}.{key}")
        elif not isinstance(value[key], kind) or isinstance(value[key], bool):
            raise ReadError(f"{place}.{key} is {str(value[key])[:40]!r}, which is of the wrong kind")


def _text(data: Any, indent: int = 0) -> str:
    """Return JSON with one line for each innermost list or object: short, and readable in a diff."""
    inner = " " * (indent + 1)
    if isinstance(data, dict) and any(isinstance(value, dict | list) and value for value in data.values()):
        body = ",\n".join(f"{inner}{json.dumps(key)}: {_text(value, indent + 1)}" for key, value in data.items())
        text = f"{{\n{body}\n{' ' * indent}}}"
    elif isinstance(data, list) and any(isinstance(value, dict) for value in data):
        text = "[\n" + ",\n".join(f"{inner}{json.dumps(value)}" for value in data) + f"\n{' ' * indent}]"
    else:
        text = json.dumps(data, allow_nan=False)
    return text if indent else text + "\n"


def read_cards(folder: Path, names: Sequence[str]) -> list[Card]:
    """Read cards by their names.

    Raises:
        ReadError: One is missing; the text names those that are there.
    """
    known = sorted(path.stem for path in folder.glob("*.json"))
    for name in names:
        if name not in known:
            raise ReadError(f"{folder} has no card of {name}; there are: {', '.join(known) or 'none'}")
    return [read_card(folder / f"{name}.json") for name in names]
