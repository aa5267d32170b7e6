"""Tuning: the points of a search over rate and decay, their scores, the choice, and what it is written to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.stats import qmc

from evidence.runs.run import ReadError, number

WITHIN = 0.01  # of the best score: what counts as good enough in the picture of sensitivity
EDGE = 0.05  # of the searched range in logarithms: a choice so close to its end may lie beyond it


@dataclass
class Point:
    """One run of the search.

    Attributes:
        opt: Optimizer.
        lr: Learning rate.
        weight_decay: Weight decay, in torch's units.
        place: Where it lies in the searched square, both in [0, 1), logarithmic.
        words: Overrides of the run.
        folder: Where the run lies.
        score: The monitored score at the end, None where the run has none.
        status: What became of the run.
    """

    opt: str
    lr: float
    weight_decay: float
    place: tuple[float, float]
    words: list[str] = field(default_factory=list)
    folder: Path = Path()
    score: float | None = None
    status: str = "not run"


def points(opt: str, budget: int, *, rates: tuple[float, float], decays: tuple[float, float], draw: int) -> list[Point]:
    """Return the points of an optimizer: a scrambled Halton sequence, the same in the unit square for each optimizer.

    It fills the square more evenly than random points, and the points of a small budget are the first of a larger one.

    Args:
        opt: Optimizer.
        budget: Points.
        rates: Lowest and highest learning rate; the sequence is laid out over their logarithms.
        decays: Lowest and highest weight decay.
        draw: Seed of the scrambling.
    """
    square = qmc.Halton(2, scramble=True, rng=draw).random(budget)

    def between(ends: tuple[float, float], part: float) -> float:
        return float(f"{ends[0] * (ends[1] / ends[0]) ** part:.3g}")

    return [Point(opt, between(rates, u), between(decays, v), (float(u), float(v))) for u, v in square]


def ends(text: str, key: str) -> tuple[float, float] | None:
    """Return the two ends of LOW..HIGH, None where nothing is given.

    Raises:
        ReadError: They are no two positive numbers, the second the larger.
    """
    if not text:
        return None
    low, high = (number(part) for part in (*text.split("..", 1), "")[:2])
    if low is None or high is None or not 0 < low < high < float("inf"):
        raise ReadError(f"{key}={text}: must be LOW..HIGH, two positive numbers, such as 1e-4..1e-1")
    return low, high


def around(value: float, ends: tuple[float, float] | None, key: str) -> tuple[float, float]:
    """Return the range to search: the given one, or from a tenth to ten times the recipe's value."""
    if ends is not None:
        return ends
    if not value > 0:
        raise ReadError(f"the recipe's {key} is {value:g}, around which nothing can be searched: give {key}=LOW..HIGH")
    return value / 10, value * 10


def read_scores(points: Sequence[Point]) -> str:
    """Fill in what became of each run, and return the monitored score's name, with a minus where less is better."""
    monitor = ""
    for point in points:
        try:
            record = json.loads((point.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        monitor = str(record.get("monitor") or monitor)
        point.status = "diverged" if record.get("diverged_at") is not None else str(record.get("status"))
        if point.status == "finished":
            point.score = number((record.get("scores") or {}).get(monitor.lstrip("-")))
    return monitor


def best(points: Sequence[Point], monitor: str) -> Point | None:
    """Return the point of the best score."""
    scored = [point for point in points if point.score is not None]
    sign = -1 if monitor.startswith("-") else 1
    return max(scored, key=lambda point: sign * (point.score or 0.0), default=None)


def good(points: Sequence[Point], monitor: str) -> list[Point]:
    """Return the points whose score is within 1 % of the best one's."""
    top = best(points, monitor)
    if top is None or top.score is None:
        return []
    room = WITHIN * abs(top.score)
    return [point for point in points if point.score is not None and abs(point.score - top.score) <= room]


def edges(point: Point) -> list[str]:
    """Return the ends of the searched ranges that a point lies at."""
    names = zip(("lr", "decay"), point.place, strict=True)
    return [f"{'lowest' if part < EDGE else 'highest'} {key}" for key, part in names if not EDGE <= part <= 1 - EDGE]


def facts(by_optimizer: Mapping[str, Sequence[Point]], monitor: str) -> dict[str, dict[str, Any]]:
    """Return what was found for each optimizer."""
    facts_by_optimizer: dict[str, dict[str, Any]] = {}
    for opt, points in by_optimizer.items():
        top, near = best(points, monitor), good(points, monitor)
        if top is None:
            facts_by_optimizer[opt] = {"runs": len(points), "scored": 0}
            continue
        facts_by_optimizer[opt] = {
            "lr": top.lr, "weight_decay": top.weight_decay, "score": top.score, "runs": len(points),
            "scored": sum(point.score is not None for point in points),
            "diverged": sum(point.status == "diverged" for point in points),
            "within_1_percent": round(len(near) / len(points), 4), "at_the_end_of": edges(top),
            "lr_within": [min(point.lr for point in near), max(point.lr for point in near)],
            "weight_decay_within": [min(p.weight_decay for p in near), max(p.weight_decay for p in near)],
        }  # fmt: skip
    return facts_by_optimizer
