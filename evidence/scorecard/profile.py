"""Steps to a target on each workload, and the performance profile over workloads with bootstrap bands.

Reference:
    Dolan and Moré, "Benchmarking optimization software with performance profiles", Math. Program. 91, 2002.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evidence.scorecard.battery import Battery
from evidence.scorecard.card import TUNED, Card
from evidence.stats import mean_and_deviation, time_to_target

DRAWS = 400  # of the bootstrap
TAUS = tuple(float(tau) for tau in np.geomspace(1, 4, 49))


@dataclass(frozen=True)
class Profile:
    """One optimizer's profile: for each ratio the share of workloads it solves within that ratio of the fastest.

    Attributes:
        shares: One per entry of `TAUS`.
        low: 2.5 % of the bootstrap over seeds.
        high: 97.5 % of it.
        score: Area under the profile, divided by the range: 1 is the fastest everywhere.
    """

    shares: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    score: float


def target(baselines: Sequence[Card], battery: Battery, workload: str) -> float | None:
    """Return a workload's target: the baselines' median final score and a little worse; None where they lack it."""
    means = [
        mean_and_deviation(list(scores.values()))[0]
        for card in baselines
        if (scores := card.scores(workload, TUNED)) and card.is_complete(workload, TUNED)
    ]
    return (
        float(np.median(means)) * (1 + float(battery.data["slack"])) if means and len(means) == len(baselines) else None
    )


def steps_to_target(card: Card, workload: str, goal: float) -> dict[int, float | None]:
    """Return seed -> first step whose score is the target's or better, None where none is."""
    return {
        seed: time_to_target(run["curve"], goal, lower_is_better=True)
        for seed, run in sorted(card.runs(workload, TUNED).items())
    }


def profiles(cards: Sequence[Card], baselines: Sequence[Card], battery: Battery) -> dict[str, Profile]:
    """Return name -> profile over the workloads that are done for all cards; empty where there is none.

    A workload that an optimizer cannot run, or fails on, counts as one whose target it never reaches.
    """
    seeds = len(battery.data["seeds"])
    steps: dict[str, dict[str, np.ndarray]] = {}
    for workload in battery.workloads:
        goal = target(baselines, battery, workload)
        if goal is None or not all(card.has_ended(workload) for card in cards):
            continue
        steps[workload] = {card.name: _times(card, workload, goal, count=seeds) for card in cards}
    if not steps:
        return {}
    rng = np.random.default_rng(0)
    draws = [rng.integers(seeds, size=seeds) for _ in range(DRAWS)]
    plain = _shares(steps, np.arange(seeds))
    resampled = [_shares(steps, draw) for draw in draws]
    found = {}
    for card in cards:
        low, high = np.quantile([shares[card.name] for shares in resampled], (0.025, 0.975), axis=0)
        own = plain[card.name]
        found[card.name] = Profile(tuple(own), tuple(low), tuple(high), float(np.mean(own)))
    return found


def _times(card: Card, workload: str, goal: float, *, count: int) -> np.ndarray:
    steps = steps_to_target(card, workload, goal).values() or [None] * count
    return np.array([math.inf if step is None else step for step in steps])


def _shares(steps: Mapping[str, Mapping[str, np.ndarray]], seeds: np.ndarray) -> dict[str, np.ndarray]:
    """Return name -> share of workloads within each ratio; a workload's time is the median over the seeds."""
    ratios: dict[str, list[float]] = {}
    for by_card in steps.values():
        times = {name: float(np.median(own[seeds])) for name, own in by_card.items()}
        fastest = min(times.values())
        for name, time in times.items():
            ratios.setdefault(name, []).append(time / fastest if math.isfinite(time) else math.inf)
    taus = np.array(TAUS)
    return {name: (np.array(own)[:, None] <= taus + 1e-9).mean(0) for name, own in ratios.items()}
