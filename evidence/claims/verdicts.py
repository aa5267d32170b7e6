"""Verdicts on claims, from the runs that a claim's words name and what is compared.

Verdicts: `reproduced`; `direction only`: the sign is the paper's, its size or setting is not tested; `not at this
scale`: the runs there are cannot tell; `contradicted`: they say the opposite beyond the noise of the seeds; `not run`.
A small run's data are not the paper's, so of a claim about a score it shows a direction at best. A claim that `holds:
at any scale` is one about a mechanism, such as the growth of norms, which a small run tests as well as a large one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evidence.claims.ledger import Claim, Rule
from evidence.claims.select import Records, by_seed, select_pair
from evidence.csv_files import read_csv
from evidence.metrics import metric
from evidence.paper import look_up
from evidence.records.row import ResultRow
from evidence.runs.run import ReadError, number
from evidence.stats import Difference, mean_text, paired, time_to_target

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


def published(records: Records, rule: Rule, paper: str) -> list[str]:
    """Return what the paper prints for `of`, and for `to` where the rule has one; empty where nothing is named.

    Raises:
        ReadError: The rule names a number that results/paper.csv does not have.
    """
    spec = rule.get("published")
    if not spec:
        return []
    shared = {"paper": paper.lower(), **{key: str(value) for key, value in spec.items() if key not in ("of", "to")}}
    values = []
    for side in (spec[side] for side in ("of", "to") if side in spec):
        own = side if isinstance(side, dict) else {"optimizer": side}
        wanted = shared | {key: str(value) for key, value in own.items()}
        numbers = look_up(records.paper, **wanted)
        if len(numbers) != 1:
            raise ReadError(f"results/paper.csv has {len(numbers)} numbers for {wanted}; a claim must name one")
        values.append(numbers[0].value)
    return values


def published_difference(values: Sequence[str]) -> float | None:
    """Return the printed difference of two printed numbers."""
    numbers = [number(value) for value in values]
    return None if len(numbers) != 2 or None in numbers else (numbers[0] or 0.0) - (numbers[1] or 0.0)


# ------------------------------------------------------------------------------------------------- the verdict


def judge(diff: Difference, expect: str, *, margin: float, decisive: bool) -> str:
    """Return the verdict on a difference.

    Args:
        diff: Ours.
        expect: higher, lower, or equal (within `margin`).
        margin: How far apart two settings may be that are said to be on a par.
        decisive: Whether these runs can reproduce the claim, or only show its direction.
    """
    holds = REPRODUCED if decisive else DIRECTION
    if expect == "equal":
        if diff.low is None or diff.high is None:
            return DIRECTION if decisive and abs(diff.mean) <= margin else UNDECIDED
        if diff.low > margin or diff.high < -margin:
            return CONTRADICTED
        if -margin <= diff.low and diff.high <= margin:
            return holds
        return DIRECTION if decisive and abs(diff.mean) <= margin else UNDECIDED
    sign = SIGNS[expect]
    if diff.sign == sign:
        return holds
    if diff.sign == -sign:
        return CONTRADICTED
    return DIRECTION if decisive and diff.mean * sign > 0 else UNDECIDED


def _scores(rule: Rule) -> list[str]:
    score = rule.get("score", "top1")
    return [score] if isinstance(score, str) else list(score)


def _decides(rule: Rule, scale: str) -> bool:
    return scale == "full" or rule.get("holds") == "at any scale"


def _seeds(rows: Sequence[ResultRow]) -> str:
    return ", ".join(sorted({str(row.seed) for row in rows}))


def _data(rows: Sequence[ResultRow]) -> str:
    return ", ".join(sorted({row.data for row in rows}))


def difference(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "`of` has a higher / lower / equal score than `to`"."""
    scores = _scores(rule)
    ours, theirs = select_pair(records, rule, scale, scores)
    diff = paired(by_seed(ours, scores), by_seed(theirs, scores))
    if diff is None:
        return None
    verdict = judge(diff, rule["expect"], margin=float(rule.get("margin", 0)), decisive=_decides(rule, scale))
    if any(not row.finished for row in [*ours, *theirs]):
        verdict = UNDECIDED  # some seed diverged: what is left is not what was asked about
    printed = published(records, rule, paper)
    gap = published_difference(printed)
    text = "" if gap is None else f"{gap:+.2f} ({printed[0]} and {printed[1]})"
    digits = 2 if max(by_seed(theirs, scores).values(), key=abs) >= 10 else 4  # percent, or norms and losses
    return Finding(verdict, scale, text, diff.text(digits), f"{diff.pairs} pairs", _data([*ours, *theirs]))


def ratio(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "a score of `to` is at least `at_least` times that of `of`", in every seed."""
    scores = _scores(rule)
    pair = select_pair(records, rule, scale, scores)
    ours, theirs = (by_seed(rows, scores) for rows in pair)
    common = sorted(ours.keys() & theirs.keys(), key=str)
    if not common:
        return None
    if any(ours[seed] <= 0 for seed in common):
        return Finding(UNDECIDED, scale, ours="a score is not positive")
    ratios, least = [theirs[seed] / ours[seed] for seed in common], float(rule["at_least"])
    if max(ratios) < 1 and len(ratios) > 1:
        verdict = CONTRADICTED
    elif min(ratios) >= least:
        verdict = REPRODUCED if len(ratios) > 1 else UNDECIDED
    else:
        verdict = DIRECTION if min(ratios) > 1 else UNDECIDED
    text = f"{min(ratios):.2f} to {max(ratios):.2f}, at least {least:g}"
    data = _data([*pair[0], *pair[1]])
    return Finding(verdict, scale, str(rule.get("printed", "")), text, f"{len(ratios)} pairs", data)


def in_range(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "the score of `of` is at least / at most so much", in every seed."""
    scores = _scores(rule)
    (rows,) = select_pair(records, rule, scale, scores)
    values = list(by_seed(rows, scores).values())
    if not values:
        return None
    low, high = float(rule.get("at_least", -math.inf)), float(rule.get("at_most", math.inf))
    inside = [low <= value <= high for value in values]
    decisive = _decides(rule, scale)
    if all(inside):
        verdict = REPRODUCED if decisive else DIRECTION
    else:
        verdict = CONTRADICTED if decisive and not any(inside) else UNDECIDED
    printed = " ".join(published(records, rule, paper))
    return Finding(verdict, scale, printed, mean_text(values), _seeds(rows), _data(rows))


def diverges(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "training with `of` fails": its loss stops being finite, in every seed."""
    (rows,) = select_pair(records, rule, scale, [])
    if not rows:
        return None
    count = sum(not row.finished for row in rows)
    if count == len(rows):
        verdict = REPRODUCED if scale == "full" else DIRECTION
    else:
        verdict = CONTRADICTED if scale == "full" and not count else UNDECIDED
    printed = " ".join(published(records, rule, paper))
    return Finding(verdict, scale, printed, f"{count} of {len(rows)} failed", _seeds(rows), _data(rows))


def reaches_within(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "`of` reaches the last score of `to` in at most a share of the epochs", in every pair of seeds."""
    scores = _scores(rule)
    ours, theirs = select_pair(records, rule, scale, scores)
    targets = by_seed(theirs, scores)
    lower = metric(scores[0]).lower_is_better
    shares: list[float] = []
    for row in ours:
        _, epochs, values = row.series(scores[0])
        if row.finished and row.seed in targets and epochs:
            curve = list(zip(epochs, values, strict=True))
            epoch = time_to_target(curve, targets[row.seed], lower_is_better=lower)
            shares.append(math.inf if epoch is None else epoch / epochs[-1])
    if not shares:
        return None
    if max(shares) <= float(rule["at_most"]):
        verdict = REPRODUCED if scale == "full" else DIRECTION
    else:
        verdict = CONTRADICTED if scale == "full" and min(shares) > 1 else UNDECIDED
    text = ", ".join("never" if share > 1 else f"{100 * share:.0f} %" for share in sorted(shares))
    pairs = f"{len(shares)} pairs"
    return Finding(verdict, scale, str(rule.get("printed", "")), f"{text} of the epochs", pairs, _data(ours))


# -------------------------------------------------------------------------------------------- results of other kinds


def checks(records: Records, rule: Rule) -> Finding:
    """Judge a claim in closed form by `make theory`: it holds, and every wrong version of it fails."""
    rows = [row for row in read_csv(records.folder / "toy/theory-claims.csv") if row["name"] == rule["checks"]]
    if not rows:
        return Finding(NOT_RUN, "exact")
    passed = all(row["verdict"] == "PASS" for row in rows)
    text = f"{rows[0]['deviation']} off, at most {rows[0]['tolerance']}; {len(rows) - 1} controls"
    return Finding(REPRODUCED if passed else CONTRADICTED, "exact", rows[0]["formula"], text)


def numbers(records: Records, rule: Rule) -> Finding:
    """Judge published numbers of the toys by the comparisons that `make toy2d` and `make rosenbrock3d` wrote.

    Where these agree but some number is not the printed one to its last digit, the direction is all there is.
    """
    wanted = [rule["runs"]] if isinstance(rule["runs"], str) else list(rule["runs"])
    kind = str(rule.get("quantity", ""))
    rows = [
        row for row in read_csv(records.folder / rule["numbers"]) if row["run"] in wanted and kind in row["quantity"]
    ]
    checked = [row for row in rows if row["verdict"]]
    if not checked:
        return Finding(NOT_RUN, "exact")
    passed = all(row["verdict"] == "PASS" for row in checked)
    printed = all(_as_printed(row["obtained"], row["published"]) for row in checked)
    verdict = CONTRADICTED if not passed else REPRODUCED if printed else DIRECTION
    text = "; ".join(row["obtained"] for row in checked)
    return Finding(verdict, "exact", "; ".join(row["published"] for row in checked), text)


def _as_printed(obtained: str, published: str) -> bool:
    """Whether a number, rounded as it is printed, is the printed one; true of what is printed as words."""
    ours, theirs = number(obtained.split(" ")[0]), number(published.split(" ")[0])
    if ours is None or theirs is None:
        return True
    decimals = len(published.split(" ")[0].partition(".")[2])
    return f"{ours:.{decimals}f}" == f"{theirs:.{decimals}f}"


def overhead(records: Records, rule: Rule, *, paper: str) -> Finding:
    """Judge "a step of `of` takes at most so many percent longer than one of `to`" by the rounds of a benchmark."""
    steps: dict[str, dict[str, float]] = {}
    for row in read_csv(records.folder / rule["overhead"]):
        steps.setdefault(row["name"], {})[row["round"]] = float(row["step"])
    ours, theirs = steps.get(rule["of"], {}), steps.get(rule["to"], {})
    ratios = [100 * (ours[k] / theirs[k] - 1) for k in sorted(ours.keys() & theirs.keys())]
    if not ratios:
        return Finding(NOT_RUN)
    median, most = statistics.median(ratios), float(rule["at_most"])
    # Rounds differ by more than the overhead itself: the quartiles say whether the median decides.
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (median, median, median)
    verdict = DIRECTION if high <= most else CONTRADICTED if low > most else UNDECIDED
    text = f"{median:+.1f} % (quartiles {low:+.1f} to {high:+.1f})"
    printed = " ".join(published(records, rule, paper))
    return Finding(verdict, "mini", f"{printed} %", text, f"{len(ratios)} rounds", "")


BY_RUNS: dict[str, Callable[..., Finding | None]] = {
    "difference": difference, "ratio": ratio, "level": in_range, "fails": diverges, "sooner": reaches_within,
}  # fmt: skip


def judge_claim(records: Records, claim: Claim) -> Finding:
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
    for scale in rule.get("scales", SCALES):
        finding = BY_RUNS[rule["kind"]](records, rule, paper=paper, scale=scale)
        if finding is not None:
            return finding
    return Finding(NOT_RUN, published=" and ".join(published(records, rule, paper)))
