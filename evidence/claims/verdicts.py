"""How a claim is judged: the runs that its words name, what is compared, and the verdict that follows.

Verdicts: `reproduced`; `direction only`: the sign is the paper's, its size or setting is not tested; `not at this
scale`: the runs there are cannot tell; `contradicted`: they say the opposite beyond the noise of the seeds; `not run`.
A small run's data are not the paper's, so of a claim about a score it shows a direction at best. A claim that `holds:
at any scale` is one about a mechanism, such as the growth of norms, which a small run tests as well as a large one.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evidence.claims.select import Records, by_seed, sides
from evidence.records.store import Row
from evidence.runs.run import ReadError, Run, number
from evidence.stats import Difference, mean_and_deviation, paired, time_to_target

REPRODUCED, DIRECTION, UNDECIDED = "reproduced", "direction only", "not at this scale"
CONTRADICTED, NOT_RUN = "contradicted", "not run"
VERDICTS = (REPRODUCED, DIRECTION, UNDECIDED, CONTRADICTED, NOT_RUN)
SCALES = ("full", "mini")  # the larger decides
SIGNS = {"higher": 1, "lower": -1, "equal": 0}


@dataclass(frozen=True)
class Finding:
    """What the records say of a claim.

    Attributes:
        verdict: One of VERDICTS.
        scale: Of the runs it rests on; "exact" for mathematics, "" where there are none.
        published: The paper's numbers, as text.
        ours: Ours, with the interval where there is one.
        seeds: How many runs, or pairs of runs, it rests on.
        data: The data sets of these runs.
    """

    verdict: str
    scale: str = ""
    published: str = ""
    ours: str = ""
    seeds: str = ""
    data: str = ""


# ------------------------------------------------------------------------------------------- published numbers


def published(records: Records, rule: Mapping[str, Any], paper: str) -> list[str]:
    """Return what the paper prints for `of`, and for `to` where the rule has one; empty where nothing is named.

    Raises:
        ReadError: The rule names a number that results/paper.csv does not have.
    """
    spec = rule.get("published")
    if not spec:
        return []
    shared = {k: str(v) for k, v in spec.items() if k not in ("of", "to")}
    found = []
    for side in ("of", "to"):
        if side not in spec:
            continue
        own = spec[side] if isinstance(spec[side], dict) else {"optimizer": spec[side]}
        wanted = {"paper": paper.lower(), **shared, **{k: str(v) for k, v in own.items()}}
        rows = [row for row in records.paper if all(row[key] == value for key, value in wanted.items())]
        if len(rows) != 1:
            raise ReadError(f"results/paper.csv has {len(rows)} numbers for {wanted}; a claim must name one")
        found.append(rows[0]["value"])
    return found


def published_difference(values: Sequence[str]) -> float | None:
    """Return the printed difference of two printed numbers."""
    numbers = [number(value) for value in values]
    return None if len(numbers) != 2 or None in numbers else (numbers[0] or 0.0) - (numbers[1] or 0.0)


# ------------------------------------------------------------------------------------------------- the verdict


def judge(found: Difference, expect: str, *, margin: float, decisive: bool) -> str:
    """Return the verdict on a difference.

    Args:
        found: Ours.
        expect: higher, lower, or equal (within `margin`).
        margin: How far apart two settings may be that are said to be on a par.
        decisive: Whether these runs can reproduce the claim, or only show its direction.
    """
    if expect == "equal":
        low, high = (found.mean, found.mean) if found.low is None or found.high is None else (found.low, found.high)
        if low > margin or high < -margin:
            return CONTRADICTED if found.low is not None else UNDECIDED
        inside = found.low is not None and -margin <= low and high <= margin
        if inside:
            return REPRODUCED if decisive else DIRECTION
        return DIRECTION if decisive and abs(found.mean) <= margin else UNDECIDED
    sign = SIGNS[expect]
    if found.sign == sign:
        return REPRODUCED if decisive else DIRECTION
    if found.sign == -sign:
        return CONTRADICTED
    return DIRECTION if decisive and found.mean * sign > 0 else UNDECIDED


def _names(rule: Mapping[str, Any]) -> list[str]:
    score = rule.get("score", "top1")
    return [score] if isinstance(score, str) else list(score)


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(sorted({str(run.seed) for run in runs}))


def _data(runs: Sequence[Run]) -> str:
    return ", ".join(sorted({run.data for run in runs}))


def difference(records: Records, rule: Mapping[str, Any], *, paper: str, scale: str) -> Finding | None:
    """Judge "`of` has a higher / lower / equal score than `to`"."""
    names = _names(rule)
    ours, theirs = sides(records, rule, scale, names)
    found = paired(by_seed(ours, names), by_seed(theirs, names))
    if found is None:
        return None
    decisive = scale == "full" or rule.get("holds") == "at any scale"
    verdict = judge(found, rule["expect"], margin=float(rule.get("margin", 0)), decisive=decisive)
    if any(not run.finished for run in [*ours, *theirs]):
        verdict = UNDECIDED  # some seed diverged: what is left is not what was asked about
    printed = published(records, rule, paper)
    gap = published_difference(printed)
    text = "" if gap is None else f"{gap:+.2f} ({printed[0]} and {printed[1]})"
    digits = 2 if max(by_seed(theirs, names).values(), key=abs) >= 10 else 4  # percent, or norms and losses
    return Finding(verdict, scale, text, found.text(digits), f"{found.pairs} pairs", _data([*ours, *theirs]))


def ratio(records: Records, rule: Mapping[str, Any], *, paper: str, scale: str) -> Finding | None:
    """Judge "a score of `to` is at least `at_least` times that of `of`", in every seed."""
    names = _names(rule)
    both = sides(records, rule, scale, names)
    ours, theirs = (by_seed(runs, names) for runs in both)
    ratios = [theirs[seed] / ours[seed] for seed in sorted(ours.keys() & theirs.keys()) if ours[seed] > 0]
    if not ratios or len(ratios) < len(ours.keys() & theirs.keys()):
        return None if not ours.keys() & theirs.keys() else Finding(UNDECIDED, scale, ours="a score is not positive")
    least = float(rule["at_least"])
    verdict = REPRODUCED if min(ratios) >= least else DIRECTION if min(ratios) > 1 else UNDECIDED
    verdict = CONTRADICTED if max(ratios) < 1 and len(ratios) > 1 else verdict
    verdict = UNDECIDED if len(ratios) == 1 and verdict == REPRODUCED else verdict
    shown = f"{min(ratios):.2f} to {max(ratios):.2f}, at least {least:g}"
    return Finding(
        verdict, scale, str(rule.get("printed", "")), shown, f"{len(ratios)} pairs", _data([*both[0], *both[1]])
    )


def level(records: Records, rule: Mapping[str, Any], *, paper: str, scale: str) -> Finding | None:
    """Judge "the score of `of` is at least / at most so much", in every seed."""
    names = _names(rule)
    (runs,) = sides(records, rule, scale, names)
    values = list(by_seed(runs, names).values())
    if not values:
        return None
    low, high = float(rule.get("at_least", -math.inf)), float(rule.get("at_most", math.inf))
    share = sum(low <= value <= high for value in values) / len(values)
    decisive = scale == "full" or rule.get("holds") == "at any scale"
    whole = REPRODUCED if decisive else DIRECTION
    verdict = whole if share == 1 else UNDECIDED if share or not decisive else CONTRADICTED
    mean, deviation = mean_and_deviation(values)
    shown = f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
    return Finding(verdict, scale, " ".join(published(records, rule, paper)), shown, _seeds(runs), _data(runs))


def fails(records: Records, rule: Mapping[str, Any], *, paper: str, scale: str) -> Finding | None:
    """Judge "training with `of` fails": its loss stops being finite, in every seed."""
    (runs,) = sides(records, rule, scale, [])
    if not runs:
        return None
    failed = sum(not run.finished for run in runs)
    if failed == len(runs):
        verdict = REPRODUCED if scale == "full" else DIRECTION
    else:
        verdict = CONTRADICTED if scale == "full" and not failed else UNDECIDED
    shown = f"{failed} of {len(runs)} failed"
    return Finding(verdict, scale, " ".join(published(records, rule, paper)), shown, _seeds(runs), _data(runs))


def sooner(records: Records, rule: Mapping[str, Any], *, paper: str, scale: str) -> Finding | None:
    """Judge "`of` reaches the last score of `to` in at most a share of the epochs", in every pair of seeds."""
    names = _names(rule)
    ours, theirs = sides(records, rule, scale, names)
    levels = by_seed(theirs, names)
    shares: list[float] = []
    for run in ours:
        _, epochs, values = run.series(names[0])
        if run.finished and str(run.seed) in levels and epochs:
            curve = list(zip(epochs, values, strict=True))
            lower = rule.get("better") == "lower"
            at = time_to_target(curve, levels[str(run.seed)], lower_is_better=lower)
            shares.append(math.inf if at is None else at / epochs[-1])
    if not shares:
        return None
    most = float(rule["at_most"])
    whole = REPRODUCED if scale == "full" else DIRECTION
    never = scale == "full" and min(shares) > 1
    verdict = whole if max(shares) <= most else CONTRADICTED if never else UNDECIDED
    shown = ", ".join("never" if share > 1 else f"{100 * share:.0f} %" for share in sorted(shares))
    pairs = f"{len(shares)} pairs"
    return Finding(verdict, scale, str(rule.get("printed", "")), f"{shown} of the epochs", pairs, _data(ours))


# -------------------------------------------------------------------------------------------- results of other kinds


def _rows(records: Records, name: str) -> list[Row]:
    path = records.folder / name
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checks(records: Records, rule: Mapping[str, Any]) -> Finding:
    """Judge a claim in closed form by `make theory`: it holds, and every wrong version of it fails."""
    rows = [row for row in _rows(records, "toy/theory-claims.csv") if row["name"] == rule["checks"]]
    if not rows:
        return Finding(NOT_RUN, "exact")
    passed = all(row["verdict"] == "PASS" for row in rows)
    shown = f"{rows[0]['deviation']} off, at most {rows[0]['tolerance']}; {len(rows) - 1} controls"
    return Finding(REPRODUCED if passed else CONTRADICTED, "exact", rows[0]["formula"], shown)


def numbers(records: Records, rule: Mapping[str, Any]) -> Finding:
    """Judge published numbers of the toys by the comparisons that `make toy2d` and `make rosenbrock3d` wrote.

    Where these agree but some number is not the printed one to its last digit, the direction is all there is.
    """
    wanted = [rule["runs"]] if isinstance(rule["runs"], str) else list(rule["runs"])
    kind = str(rule.get("quantity", ""))
    rows = [row for row in _rows(records, rule["numbers"]) if row["run"] in wanted and kind in row["quantity"]]
    judged = [row for row in rows if row["verdict"]]
    if not judged:
        return Finding(NOT_RUN, "exact")
    passed = all(row["verdict"] == "PASS" for row in judged)
    printed = all(_as_printed(row["obtained"], row["published"]) for row in judged)
    verdict = CONTRADICTED if not passed else REPRODUCED if printed else DIRECTION
    shown = "; ".join(row["obtained"] for row in judged)
    return Finding(verdict, "exact", "; ".join(row["published"] for row in judged), shown)


def _as_printed(obtained: str, published: str) -> bool:
    """Whether a number, rounded as it is printed, is the printed one; true of what is printed as words."""
    ours, theirs = number(obtained.split(" ")[0]), number(published.split(" ")[0])
    if ours is None or theirs is None:
        return True
    decimals = len(published.split(" ")[0].partition(".")[2])
    return f"{ours:.{decimals}f}" == f"{theirs:.{decimals}f}"


def overhead(records: Records, rule: Mapping[str, Any], *, paper: str) -> Finding:
    """Judge "a step of `of` takes at most so many percent longer than one of `to`" by the rounds of a benchmark."""
    steps: dict[str, dict[str, float]] = {}
    for row in _rows(records, rule["overhead"]):
        steps.setdefault(row["name"], {})[row["round"]] = float(row["step"])
    ours, theirs = steps.get(rule["of"], {}), steps.get(rule["to"], {})
    ratios = [100 * (ours[k] / theirs[k] - 1) for k in sorted(ours.keys() & theirs.keys())]
    if not ratios:
        return Finding(NOT_RUN)
    found, most = statistics.median(ratios), float(rule["at_most"])
    # Rounds differ by more than the overhead itself: the quartiles say whether the median decides.
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (found, found, found)
    verdict = DIRECTION if high <= most else CONTRADICTED if low > most else UNDECIDED
    shown = f"{found:+.1f} % (quartiles {low:+.1f} to {high:+.1f})"
    printed = " ".join(published(records, rule, paper))
    return Finding(verdict, "mini", f"{printed} %", shown, f"{len(ratios)} rounds", "")


BY_RUNS: dict[str, Callable[..., Finding | None]] = {
    "difference": difference, "ratio": ratio, "level": level, "fails": fails, "sooner": sooner,
}  # fmt: skip


def find(records: Records, claim: Mapping[str, Any]) -> Finding:
    """Return what the records say of a claim: at full scale where there are such runs, else at mini.

    Raises:
        ReadError: The claim has no rule, or names a published number that there is not.
    """
    rule, paper = claim["rule"], claim["paper"]
    if "checks" in rule:
        return checks(records, rule)
    if "numbers" in rule:
        return numbers(records, rule)
    if "overhead" in rule:
        return overhead(records, rule, paper=paper)
    if rule.get("kind") not in BY_RUNS:
        raise ReadError(f"claim {claim['id']}: kind={rule.get('kind')!r} is none of: {', '.join(BY_RUNS)}")
    judged = BY_RUNS[rule["kind"]]
    found = (judged(records, rule, paper=paper, scale=scale) for scale in rule.get("scales", SCALES))
    return next((finding for finding in found if finding is not None), None) or Finding(
        NOT_RUN, published=" and ".join(published(records, rule, paper))
    )
