"""Statistics over seeds and their text: mean ± deviation, paired differences with intervals, the time to a target.

The one place for these formulas and for how they are written: tables, figures, claims and pages call it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit
from scipy.stats import false_discovery_control

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
        low: Lower end of the interval; None where there is no interval.
        high: Upper end.
        pairs: Seeds that both sides have.
        error: Standard error of the mean over the seeds, of Student's t with one degree of freedom less than pairs.
        sampling: Standard error that the evaluated examples leave.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int
    error: float = 0.0
    sampling: float = 0.0

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    @property
    def detectable(self) -> float | None:
        """Half the interval: the smallest difference that this noise would have told from 0."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def p_value(self, margin: float = 0.0) -> float | None:
        """Return the two-sided p of "the difference is 0", or with a margin of being on this side of it.

        It is the p at which the interval at the level 1 - p would just reach there; None where there is no interval.
        """
        if self.low is None:
            return None
        distance = abs(margin - abs(self.mean))
        least = 1e-12  # what is surer is as sure
        if half_width(self.pairs, self.error, self.sampling, p=least) <= distance:
            return least
        if not distance:
            return 1.0

        def beyond(p: float) -> float:
            return half_width(self.pairs, self.error, self.sampling, p=p) - distance

        return float(brentq(beyond, least, 1.0))

    def text(self, digits: int = 2) -> str:
        """Return "+1.20 [+0.80, +1.60]", without brackets where there is no interval."""
        mean = f"{self.mean:+.{digits}f}"
        if self.low is None or self.high is None:
            return mean
        return f"{mean} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def half_width(pairs: int, error: float, sampling: float, *, p: float) -> float:
    """Return half the interval at the level 1 - p: the halves of the seeds' and of the examples' errors, squares added.

    Reference:
        Zou and Donner, Statistics in Medicine 27, 2008: squares of the margins of independent parts add.
    """
    seeds = float(stdtrit(pairs - 1, 1 - p / 2)) * error
    return math.hypot(seeds, float(ndtri(1 - p / 2)) * sampling)


def sampling_error(ours: float, theirs: float, examples: int) -> float:
    """Return the standard error of a difference of two shares that the draw of the evaluated examples leaves.

    It is that of two binomials, `sqrt((p (1 - p) + q (1 - q)) / N)`. Both networks see the same examples, so the exact
    variance is that of McNemar's test, which needs the answers to each example; where both fail on the same hard ones
    it is smaller, so this is an upper bound. More seeds do not lower it: all are scored on the same examples.

    Args:
        ours: Share of right answers, 0 to 1, mean over seeds.
        theirs: The same of the other side.
        examples: N, how many each side is scored on.

    Reference:
        Agresti, Categorical Data Analysis, 3rd edition, sections 3.1 and 11.1.
    """
    return math.sqrt((ours * (1 - ours) + theirs * (1 - theirs)) / examples)


def paired(ours: Mapping[Seed, float], theirs: Mapping[Seed, float], *, sampling: float = 0.0) -> Difference | None:
    """Return the difference `ours - theirs` over the seeds that both have, None where they share none.

    The interval is that of the paired t test: mean ± t sd / √n with n - 1 degrees of freedom. One pair has none.
    Nor have differences that are all equal: scores of few examples take few values, and no spread at all says that
    these could not show the noise, not that there is none.

    The error of the evaluated examples, which all seeds share, widens the interval (`half_width`).

    Args:
        ours: Seed -> score.
        theirs: The same of the other side.
        sampling: Standard error that the evaluated examples leave, in units of the score.
    """
    common = sorted(ours.keys() & theirs.keys(), key=str)
    if not common:
        return None
    differences = [ours[seed] - theirs[seed] for seed in common]
    mean, deviation = mean_and_deviation(differences)
    size = max(abs(value) for side in (ours, theirs) for value in side.values())
    if deviation is None or not (deviation > 1e-12 * size or sampling > 0):
        return Difference(mean, None, None, len(common))
    error = deviation / math.sqrt(len(common))
    half = half_width(len(common), error, sampling, p=1 - CONFIDENCE)
    return Difference(mean, mean - half, mean + half, len(common), error, sampling)


def false_discovery_rates(p_values: Sequence[float]) -> list[float]:
    """Return each test's q: the least false discovery rate at which it would count among all of these.

    Reference:
        Benjamini and Hochberg, J. R. Stat. Soc. B 57, 1995; valid for independent or positively dependent tests.
    """
    return [float(q) for q in false_discovery_control(p_values, method="bh")] if p_values else []


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
