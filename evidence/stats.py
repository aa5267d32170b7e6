"""Statistics over seeds and their text: mean ± deviation, paired differences with intervals, the time to a target.

The one place for these formulas and for how they are written: tables, figures, claims and pages call it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.special import stdtrit

CONFIDENCE = 0.95
NONE = "–"
Seed = TypeVar("Seed", bound=Hashable)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (n - 1), the latter None for one value."""
    mean = sum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def mean_text(values: Sequence[float | None], form: str = ".2f") -> str:
    """Return "70.50 ± 0.71" of the values there are; one value has no deviation, none is a dash.

    Args:
        values: One per seed; None where a seed has none.
        form: How a number is formatted.
    """
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean, deviation = mean_and_deviation(known)
    return f"{mean:{form}}" + ("" if deviation is None else f" ± {deviation:{form}}")


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its interval.

    Attributes:
        mean: Mean over the pairs.
        low: Lower end of the interval of Student's t; None where there is no interval.
        high: Upper end.
        pairs: Seeds that both sides have.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def text(self, digits: int = 2) -> str:
        """Return "+1.20 [+0.80, +1.60]", without brackets where there is no interval."""
        mean = f"{self.mean:+.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def paired(ours: Mapping[Seed, float], theirs: Mapping[Seed, float]) -> Difference | None:
    """Return the difference `ours - theirs` over the seeds that both have, None where they share none.

    The interval is that of the paired t test: mean ± t sd / √n with n - 1 degrees of freedom. One pair has none.
    Nor have differences that are all equal: scores of few examples take few values, and no spread at all says that
    these could not show the noise, not that there is none.

    Args:
        ours: Seed -> score.
        theirs: The same of the other side.
    """
    common = sorted(ours.keys() & theirs.keys(), key=str)
    if not common:
        return None
    differences = [ours[seed] - theirs[seed] for seed in common]
    mean, deviation = mean_and_deviation(differences)
    size = max(abs(value) for side in (ours, theirs) for value in side.values())
    if deviation is None or not deviation > 1e-12 * size:
        return Difference(mean, None, None, len(common))
    half = float(stdtrit(len(common) - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(len(common))
    return Difference(mean, mean - half, mean + half, len(common))


def select_best(scores: Mapping[str, Mapping[Seed, float]], *, lower_is_better: bool) -> tuple[str, bool]:
    """Return the name with the best mean, and whether its paired interval to every other one excludes 0.

    Args:
        scores: Name -> seed -> score; at least one, none empty.
        lower_is_better: Whether the best is the smallest.
    """
    sign = -1 if lower_is_better else 1
    best = max(scores, key=lambda name: sign * mean_and_deviation(list(scores[name].values()))[0])
    others = [paired(scores[best], by_seed) for name, by_seed in scores.items() if name != best]
    return best, bool(others) and all(diff is not None and diff.sign == sign for diff in others)


def time_to_target(curve: Sequence[tuple[float, float]], target: float, *, lower_is_better: bool) -> float | None:
    """Return the first time at which a score is as good as a target, None where it never is.

    Args:
        curve: (time, score) in order of time: epochs or steps, as the caller likes.
        target: The score to reach.
        lower_is_better: Whether a score reaches it from above.
    """
    for time, score in curve:
        if (score <= target) if lower_is_better else (score >= target):
            return time
    return None


def times_text(times: Sequence[float | None]) -> str:
    """Return "2.33 ± 0.58" of the times of all seeds; "2.00 (1 of 3)" where some never reached the target."""
    reached = [time for time in times if time is not None]
    if not times:
        return NONE
    if not reached:
        return f"never (0 of {len(times)})"
    text = mean_text(reached)
    return text if len(reached) == len(times) else f"{text} ({len(reached)} of {len(times)})"
