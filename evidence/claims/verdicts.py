"""Verdicts on claims, from the runs that a claim's words name and what is compared.

A claim is about a mechanism (norms, steps, effective rates: the rule says `holds: at any scale`), which small runs test
in sign and order of magnitude; about an effect (scores), of which runs on other data than the paper's show a sign at
most; about a cost; or in closed form. The verdict says what the records show of it, `size` how ours compares with what
is printed or, where nothing can be told, what would have been. docs/dashboards.md explains them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from scipy.stats import binomtest

from evidence.claims.ledger import Claim, Rule
from evidence.claims.select import Records, by_seed, score_key, select_pair
from evidence.csv_files import read_csv
from evidence.metrics import metric
from evidence.paper import look_up
from evidence.records.examples import examples_of
from evidence.records.row import ResultRow
from evidence.runs.run import ReadError, number
from evidence.stats import (
    Difference,
    false_discovery_rates,
    mean_text,
    paired,
    sampling_error,
    time_to_target,
)

REPRODUCED, SAME, NEAR = "reproduced", "same sign at this scale", "near the printed number"
UNDECIDED, NOISE = "not at this scale", "within the noise"  # of small runs; of runs at full size
OPPOSITE, CONTRADICTED, NOT_RUN = "opposite sign at this scale", "contradicted", "not run"
VERDICTS = (REPRODUCED, SAME, NEAR, UNDECIDED, NOISE, OPPOSITE, CONTRADICTED, NOT_RUN)
SCALES = ("full", "mini")  # the larger decides
SIGNS = {"higher": 1, "lower": -1, "equal": 0}
# Thresholds of ours, not of the papers'
ORDER = 10.0  # a mechanism is reproduced where its size is within this factor of the printed one
RATE = 0.05  # false discovery rate over all tests of the ledger


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
        size: How ours compares with the printed size, or the bound that undecided runs set.
        p: Of the test that the verdict rests on; None where it rests on none.
        q: The same among all tests of the ledger (false discovery rate).
        alone: The verdict without that correction.
        weak: The verdict where the test does not count.
        bound: `size` where it does not.
    """

    verdict: str
    scale: str = ""
    published: str = ""
    ours: str = ""
    seeds: str = ""
    data: str = ""
    size: str = ""
    p: float | None = None
    q: float | None = None
    alone: str = ""
    weak: str = ""
    bound: str = ""


def kind_of(rule: Rule) -> str:
    """Return what a claim is about: mechanism, effect, cost or closed form."""
    if "checks" in rule or "numbers" in rule:
        return "closed form"
    if "overhead" in rule:
        return "cost"
    return "mechanism" if rule.get("holds") == "at any scale" else "effect"


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


def judge(diff: Difference, expect: str, *, margin: float, scale: str, mechanism: bool = False) -> str:
    """Return the verdict on a difference, its size aside.

    Args:
        diff: Ours.
        expect: higher, lower, or equal (within `margin`).
        margin: How far apart two settings may be that are said to be on a par.
        scale: full or mini.
        mechanism: Whether small runs test the claim as well as large ones.
    """
    decisive = scale == "full" or mechanism
    holds, fails = REPRODUCED if decisive else SAME, CONTRADICTED if scale == "full" else OPPOSITE
    unsure = NOISE if scale == "full" else UNDECIDED
    if diff.low is None or diff.high is None:
        return unsure
    if expect == "equal":
        if diff.low > margin or diff.high < -margin:
            return fails
        return holds if -margin <= diff.low and diff.high <= margin else unsure
    return {SIGNS[expect]: holds, -SIGNS[expect]: fails}.get(diff.sign, unsure)


def times_text(ours: float, printed: float) -> str:
    """Return "13 times smaller": our size beside the printed one."""
    if not ours or not printed:
        return "no size to compare"
    ratio = abs(ours / printed)
    factor = max(ratio, 1 / ratio)
    return f"{factor:.0f} times {_side(ratio)}" if factor >= 9.95 else f"{factor:.1f} times {_side(ratio)}"


def _side(ratio: float) -> str:
    return "larger" if ratio >= 1 else "smaller"


def size_text(diff: Difference, gap: float | None, rule: Rule, verdict: str, *, sampling: float, digits: int) -> str:
    """Return how a difference compares with the printed one, and the bound where it tells nothing."""
    parts = []
    sign, margin = SIGNS[rule["expect"]], float(rule.get("margin", 0))
    if sign == 0:
        parts.append(f"{'inside' if abs(diff.mean) <= margin else 'outside'} ±{margin:g} (our margin)")
    elif diff.mean:
        parts.append("same sign" if diff.mean * sign > 0 else "opposite sign")
        parts += [times_text(diff.mean, gap)] if gap else []
    if verdict in (UNDECIDED, NOISE):
        if diff.detectable is not None:
            parts.append(f"could have shown {diff.detectable:.{digits}f}")
        elif diff.pairs == 1 and sampling:
            parts.append(f"1 pair: the evaluated examples alone leave ±{1.96 * sampling:.{digits}f}")
        else:
            parts.append(f"{diff.pairs} pair{'s' * (diff.pairs > 1)} without spread: no bound on the noise of seeds")
    return ", ".join(parts)


def _scores(rule: Rule) -> list[str]:
    score = rule.get("score", "top1")
    return [score] if isinstance(score, str) else list(score)


def _decides(rule: Rule, scale: str) -> bool:
    return scale == "full" or rule.get("holds") == "at any scale"


def _seeds(rows: Sequence[ResultRow]) -> str:
    return ", ".join(sorted({str(row.seed) for row in rows}))


def _data(rows: Sequence[ResultRow]) -> str:
    return ", ".join(sorted({row.data for row in rows}))


def _sampling(sides: Sequence[Sequence[ResultRow]], scores: Sequence[str]) -> float:
    """Return the standard error of a difference, in percent, that the evaluated examples leave; 0 if it is no share."""
    keys = {score_key(row, scores) for rows in sides for row in rows if row.finished}
    counts = {examples_of(row, key) for rows in sides for row in rows if row.finished for key in keys}
    values = [list(by_seed(rows, scores).values()) for rows in sides]
    if len(keys) != 1 or len(counts) != 1 or None in counts or not all(values):
        return 0.0
    (count,) = counts
    ours, theirs = (statistics.fmean(side) / 100 for side in values)
    return 100 * sampling_error(ours, theirs, count or 1)


def difference(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "`of` has a higher / lower / equal score than `to`"."""
    scores = _scores(rule)
    ours, theirs = select_pair(records, rule, scale, scores)
    sampling = _sampling([ours, theirs], scores)
    diff = paired(by_seed(ours, scores), by_seed(theirs, scores), sampling=sampling)
    if diff is None:
        return None
    margin, mechanism = float(rule.get("margin", 0)), rule.get("holds") == "at any scale"
    verdict = judge(diff, rule["expect"], margin=margin, scale=scale, mechanism=mechanism)
    printed = published(records, rule, paper)
    gap = published_difference(printed)
    if verdict == REPRODUCED and scale != "full" and not (gap and 1 / ORDER <= abs(diff.mean / gap) <= ORDER):
        verdict = SAME  # the mechanism's sign; its size is another one, or no number is printed
    largest = max(map(abs, by_seed(theirs, scores).values()))
    digits = 2 if largest >= 10 else 4 if largest >= 0.1 or not largest else 3 - math.floor(math.log10(largest))
    size = size_text(diff, gap, rule, verdict, sampling=sampling, digits=digits)
    lost = sum(not row.finished for row in [*ours, *theirs])
    if lost:  # what is left is not what was asked about
        verdict, size = UNDECIDED, f"{lost} of {len(ours) + len(theirs)} runs diverged; {size}"
    text = "" if gap is None else f"{gap:+.2f} ({printed[0]} and {printed[1]})"
    weak = NOISE if scale == "full" else UNDECIDED
    return Finding(
        verdict, scale, text, diff.text(digits), f"{diff.pairs} pairs", _data([*ours, *theirs]), size,
        p=None if lost else diff.p_value(margin), weak=weak,
        bound=size_text(diff, gap, rule, weak, sampling=sampling, digits=digits),
    )  # fmt: skip


def ratio(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "a score of `to` is at least `at_least` times that of `of`", in every seed."""
    scores = _scores(rule)
    pair = select_pair(records, rule, scale, scores)
    theirs = by_seed(pair[1], [str(rule["to_score"])] if "to_score" in rule else scores)
    ours = by_seed(pair[0], scores)
    common = sorted(ours.keys() & theirs.keys(), key=str)
    if not common:
        return None
    if any(ours[seed] <= 0 for seed in common):
        return Finding(UNDECIDED, scale, ours="a score is not positive", size="no ratio")
    ratios, least = [theirs[seed] / ours[seed] for seed in common], float(rule["at_least"])
    if max(ratios) < 1 and len(ratios) > 1:
        verdict = CONTRADICTED if scale == "full" else OPPOSITE
    elif min(ratios) >= least:
        sized = scale == "full" or "printed" in rule
        verdict = UNDECIDED if len(ratios) == 1 else REPRODUCED if sized else SAME
    else:
        verdict = SAME if min(ratios) > 1 and len(ratios) > 1 else UNDECIDED
    text = f"{min(ratios):.2f} to {max(ratios):.2f}"
    data = _data([*pair[0], *pair[1]])
    size = f"at least {least:g} asked (our threshold)" + ("; 1 pair: no bound on the noise" * (len(ratios) == 1))
    return Finding(verdict, scale, str(rule.get("printed", "")), text, f"{len(ratios)} pairs", data, size)


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
        verdict = REPRODUCED if decisive else SAME
    elif decisive and not any(inside):
        verdict = CONTRADICTED if scale == "full" else OPPOSITE
    else:
        verdict = UNDECIDED
    printed = " ".join(published(records, rule, paper))
    ends = [f"at {name} {end:g}" for name, end in (("least", low), ("most", high)) if math.isfinite(end)]
    size = f"{' and '.join(ends)} asked (our threshold), seeds {min(values):.4g} to {max(values):.4g}"
    return Finding(verdict, scale, printed, mean_text(values), _seeds(rows), _data(rows), size)


def diverges(records: Records, rule: Rule, *, paper: str, scale: str) -> Finding | None:
    """Judge "training with `of` fails": its loss stops being finite, in every seed."""
    (rows,) = select_pair(records, rule, scale, [])
    if not rows:
        return None
    count = sum(not row.finished for row in rows)
    if count == len(rows):
        verdict = REPRODUCED if scale == "full" else SAME
    else:
        verdict = CONTRADICTED if scale == "full" and not count else UNDECIDED
    printed = " ".join(published(records, rule, paper))
    share = binomtest(count, len(rows)).proportion_ci(method="exact")
    size = f"share that fails: {100 * share.low:.0f} to {100 * share.high:.0f} % (exact 95 %)"
    if count < len(rows):
        steps = [row.steps for row in rows if row.finished and row.steps]
        size += f", in {max(steps):.0f} steps" if steps else ""
    return Finding(verdict, scale, printed, f"{count} of {len(rows)} failed", _seeds(rows), _data(rows), size)


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
        verdict = REPRODUCED if scale == "full" else SAME
    else:
        verdict = CONTRADICTED if scale == "full" and min(shares) > 1 else UNDECIDED
    text = ", ".join("never" if share > 1 else f"{100 * share:.0f} %" for share in sorted(shares))
    size = (
        f"at most {100 * float(rule['at_most']):.0f} % asked (printed), {len(shares)} seeds from {text.split(', ')[0]}"
    )
    pairs = f"{len(shares)} pairs"
    return Finding(verdict, scale, str(rule.get("printed", "")), f"{text} of the epochs", pairs, _data(ours), size)


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

    Where these agree but some number is not the printed one to its last digit, it is near it.
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
    verdict = CONTRADICTED if not passed else REPRODUCED if printed else NEAR
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
    verdict = SAME if high <= most else OPPOSITE if low > most else UNDECIDED
    text = f"{median:+.1f} % (quartiles {low:+.1f} to {high:+.1f})"
    printed = " ".join(published(records, rule, paper))
    size = f"at most {most:g} % asked (printed), on other hardware; the quartiles are {high - low:.1f} apart"
    return Finding(verdict, "mini", f"{printed} %", text, f"{len(ratios)} rounds", "", size)


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


def correct(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with the false discovery rate of all their tests controlled at `RATE`.

    A test whose q exceeds it does not count: the verdict becomes the one of runs that cannot tell. All claims of the
    ledger that rest on a test are one family. What holds in every seed, or in closed form, rests on none.
    """
    tested = [k for k, finding in enumerate(findings) if finding.p is not None]
    rates = dict(zip(tested, false_discovery_rates([findings[k].p or 0.0 for k in tested]), strict=True))
    corrected = []
    for k, finding in enumerate(findings):
        found = replace(finding, q=rates.get(k), alone=finding.verdict)
        if k in rates and rates[k] > RATE:
            found = replace(found, verdict=finding.weak, size=finding.bound)
        corrected.append(found)
    return corrected


def judge_all(records: Records, claims: Iterable[Claim]) -> list[Finding]:
    """Return what the records say of all claims of a ledger, corrected for their number."""
    return correct([judge_claim(records, claim) for claim in claims])
