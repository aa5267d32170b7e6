"""Contrasts of two optimizers over rates and decays: paired differences over seeds, corrected for their number.

A sweep asks for them in its file: `table.pairs` names the optimizers, ours first, and `table.scores` what stands for
top-1 and loss where that is another score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtr

from evidence.records.row import ResultRow
from evidence.runs.run import CUT_SHORT
from evidence.stats import NONE, Difference, mean_and_deviation, mean_text, paired

MEASURES = {"val/top1": False, "val/loss": True}  # score -> whether lower is better
DIGITS = {"val/top1": 2, "val/loss": 4}
OWN_WORDS = ("data", "data.name")  # of a run's overrides; with others it is another experiment's run
MEAN, TUNED = "mean over rates", "best of each"
HEADS = [
    "data", "optimizers", "decay", "lr", "top-1, theirs", "ours", "difference [95 %]", "p, Holm", "seeds ahead",
    "loss, theirs", "loss, ours", "difference [95 %]", "p, Holm", "seeds", "commit", "machine",
]  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """Two optimizers at one rate and decay, over the rates of a decay, or each at its own best.

    Attributes:
        data: Name of the set.
        pair: Ours and theirs.
        decay: Weight decay, or for the best cells those of theirs and ours.
        rate: Learning rate, `MEAN`, or those of the best cells.
        ours: Score -> seed -> value.
        theirs: The same of the other side.
        failed: Runs of both sides that diverged.
        is_single: Whether it is of one rate and decay: those alone are corrected for their number.
    """

    data: str
    pair: tuple[str, str]
    decay: str
    rate: str
    ours: Mapping[str, Mapping[int, float]]
    theirs: Mapping[str, Mapping[int, float]]
    rows: Sequence[ResultRow]
    failed: int = 0
    is_single: bool = True

    def difference(self, score: str) -> Difference | None:
        """Return ours - theirs over the seeds that both have."""
        return paired(self.ours[score], self.theirs[score])

    def p_value(self, score: str) -> float | None:
        """Return the p of the paired t test, None where there is no interval."""
        diff = self.difference(score)
        if diff is None or diff.low is None or diff.high is None:
            return None
        values = [self.ours[score][seed] - self.theirs[score][seed] for seed in self.seeds(score)]
        _, deviation = mean_and_deviation(values)
        assert deviation is not None
        return float(2 * stdtr(len(values) - 1, -abs(diff.mean) * len(values) ** 0.5 / deviation))

    def seeds(self, score: str) -> list[int]:
        """Return the seeds that both have."""
        return sorted(self.ours[score].keys() & self.theirs[score].keys())

    def ahead(self, score: str) -> int:
        """Return in how many of them ours is better."""
        sign = -1 if MEASURES[score] else 1
        return sum(sign * (self.ours[score][seed] - self.theirs[score][seed]) > 0 for seed in self.seeds(score))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values of Holm's procedure, which keeps the chance of any false finding among all at the level.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]

    Reference:
        Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, k in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[k]))
        corrected[k] = least
    return corrected


def with_scores(rows: Sequence[ResultRow], names: Mapping[str, str]) -> list[ResultRow]:
    """Return the rows with scores of a task under the names that contrasts are made of.

    Args:
        rows: Runs.
        names: Name here -> name in the records, e.g. `{"val/top1": "val/attacked_accuracy"}`.
    """
    return [
        replace(row, scores={here: row.scores[name] for here, name in names.items() if name in row.scores})
        for row in rows
    ]


def cells(rows: Sequence[ResultRow]) -> dict[tuple[str, str, float, float], list[ResultRow]]:
    """Return (data, optimizer, decay, rate) -> runs of the sweep's own setting, ordered by seed."""
    by_cell: dict[tuple[str, str, float, float], list[ResultRow]] = {}
    for row in sorted(rows, key=lambda row: (row.data, row.opt_name, row.seed or 0)):
        own = set(row.words) <= {*OWN_WORDS, "data_root"} and row.outcome != CUT_SHORT
        if own and row.lr is not None and row.weight_decay is not None:
            by_cell.setdefault((row.data, row.opt_name, row.weight_decay, row.lr), []).append(row)
    return by_cell


def by_seed(runs: Sequence[ResultRow], score: str) -> dict[int, float]:
    """Return seed -> the last score of each run that finished."""
    return {row.seed or 0: row.scores[score] for row in runs if row.finished and score in row.scores}


def contrasts(rows: Sequence[ResultRow], pairs: Sequence[tuple[str, str]]) -> list[Contrast]:
    """Return every contrast of the pairs: by data set, pair and decay the rates, their mean, and the best of each."""
    by_cell = cells(rows)
    found: list[Contrast] = []
    for data in sorted({key[0] for key in by_cell}):
        for ours, theirs in pairs:
            both = {key[2:] for key in by_cell if key[:2] == (data, ours)} & {
                key[2:] for key in by_cell if key[:2] == (data, theirs)
            }
            for decay in sorted({decay for decay, _ in both}):
                at_decay = [
                    _single(data, (ours, theirs), by_cell[data, ours, decay, rate], by_cell[data, theirs, decay, rate])
                    for rate in sorted(rate for d, rate in both if d == decay)
                ]
                found += at_decay
                if len(at_decay) > 1:
                    found.append(_mean_over_rates(at_decay))
            if both:
                found.append(_best_of_each(data, (ours, theirs), by_cell))
    return found


def _single(data: str, pair: tuple[str, str], ours: Sequence[ResultRow], theirs: Sequence[ResultRow]) -> Contrast:
    runs = [*ours, *theirs]
    return Contrast(
        data, pair, f"{ours[0].weight_decay:g}", f"{ours[0].lr:g}",
        {score: by_seed(ours, score) for score in MEASURES}, {score: by_seed(theirs, score) for score in MEASURES},
        runs, sum(not row.finished for row in runs),
    )  # fmt: skip


def _mean_over_rates(parts: Sequence[Contrast]) -> Contrast:
    """Return the contrast of each seed's mean over the rates that both sides have of it."""

    def mean(side: str, score: str) -> dict[int, float]:
        common = set.intersection(*(set(part.seeds(score)) for part in parts))
        return {seed: sum(getattr(part, side)[score][seed] for part in parts) / len(parts) for seed in common}

    first = parts[0]
    return Contrast(
        first.data, first.pair, first.decay, MEAN, {score: mean("ours", score) for score in MEASURES},
        {score: mean("theirs", score) for score in MEASURES}, [row for part in parts for row in part.rows],
        sum(part.failed for part in parts), is_single=False,
    )  # fmt: skip


def _best_of_each(
    data: str, pair: tuple[str, str], by_cell: Mapping[tuple[str, str, float, float], Sequence[ResultRow]]
) -> Contrast:
    """Return the contrast of each side's best cell by mean top-1; chosen by the same scores, so a little too good."""

    def best(optimizer: str) -> tuple[float, float]:
        means = {
            key[2:]: mean_and_deviation(list(scores.values()))[0]
            for key, runs in by_cell.items()
            if key[:2] == (data, optimizer) and (scores := by_seed(runs, "val/top1"))
        }
        return max(means, key=lambda cell: means[cell])

    (our_decay, our_rate), (their_decay, their_rate) = best(pair[0]), best(pair[1])
    single = _single(data, pair, by_cell[data, pair[0], our_decay, our_rate],
                     by_cell[data, pair[1], their_decay, their_rate])  # fmt: skip
    return Contrast(
        data, pair, f"{their_decay:g} / {our_decay:g}", f"{TUNED}: {their_rate:g} / {our_rate:g}", single.ours,
        single.theirs, single.rows, single.failed, is_single=False,
    )  # fmt: skip


def corrected(found: Sequence[Contrast], score: str) -> dict[int, float]:
    """Return index -> Holm's p of the single contrasts, one family a data set and score."""
    p_values: dict[int, float] = {}
    for data in {contrast.data for contrast in found}:
        raw = {
            k: p
            for k, contrast in enumerate(found)
            if contrast.data == data and contrast.is_single and (p := contrast.p_value(score)) is not None
        }
        p_values |= dict(zip(raw, holm(list(raw.values())), strict=True))
    return p_values


def tabulate(found: Sequence[Contrast]) -> list[list[str]]:
    """Return heads and a row per contrast."""
    p_values = {score: corrected(found, score) for score in MEASURES}
    rows = []
    for k, contrast in enumerate(found):
        cells_of_score = {}
        for score, digits in DIGITS.items():
            diff = contrast.difference(score)
            p = p_values[score].get(k)
            cells_of_score[score] = [
                mean_text(list(contrast.theirs[score].values()), f".{digits}f"),
                mean_text(list(contrast.ours[score].values()), f".{digits}f"),
                NONE if diff is None else diff.text(digits),
                NONE if p is None else f"{p:.1g}" if p >= 1e-4 else "< 0.0001",
            ]
        pairs = len(contrast.seeds("val/top1"))
        failed = f", {contrast.failed} runs failed" if contrast.failed else ""
        rows.append([
            contrast.data, f"{contrast.pair[0]} - {contrast.pair[1]}", contrast.decay, contrast.rate,
            *cells_of_score["val/top1"], f"{contrast.ahead('val/top1')} of {pairs}", *cells_of_score["val/loss"],
            f"{pairs}{failed}", ", ".join(sorted({row.commit for row in contrast.rows})),
            "; ".join(sorted({row.machine for row in contrast.rows})),
        ])  # fmt: skip
    return [list(HEADS), *rows]


NOTE = """\
Ours is the optimizer that projects. Mean ± sample standard deviation over the seeds, of the last step. Both sides of a
seed share the initial weights and the order of the batches; differences are paired over the seeds, with the 95 %
interval of Student's t, which says what another seed would change, not what other test pictures would. p, Holm:
corrected for all rows of one data set and score that stand for one rate and decay. "best of each": the rate and decay
with the best mean top-1 of each side (theirs / ours), chosen by these same scores."""
