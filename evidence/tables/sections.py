"""Result tables of an experiment: its settings beside the paper's numbers, one table per data set and scale.

A paper's number and ours never stand under one heading: each column names the data it was measured on.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evidence import metrics
from evidence.paper import PaperNumber, of_experiment, of_optimizer
from evidence.records.row import ResultRow
from evidence.records.settings import Group, group_by_setting, seeds_text, short
from evidence.runs.run import CUT_SHORT
from evidence.stats import (
    NONE,
    Difference,
    mean_and_deviation,
    mean_text,
    paired,
    select_best,
    time_to_target,
    times_text,
)

DATA_NAMES = {"imagenet": "ImageNet", "cifar10": "CIFAR-10", "coco": "COCO", "biased_mnist": "Biased-MNIST"}


@dataclass(frozen=True)
class TableRow:
    """One setting: its runs' scores beside what a paper reports for it."""

    label: str  # the optimizer, with the setting's digits where other rows look the same
    weight_decay: float | None  # in torch's units
    lr: float | None
    epochs: float | None
    paper: str  # the published numbers, and in `source` where they stand
    source: str
    by_seed: Mapping[int | None, float]  # last score of each finished run
    seeds: str  # all seeds, with what became of those that are not complete
    outcome: str  # finished, failed, or cut short
    norm: str  # first and last mean filter norm
    commits: str
    machines: str
    diff_to_best: Difference | None = None  # paired, to the row with the best mean
    times: tuple[float | None, ...] = ()  # epochs to the table's target, None for a seed that never reached it
    has_best_mean: bool = False
    is_significant: bool = False  # whether the interval of the best row to every other one excludes 0

    @property
    def score(self) -> tuple[float, float | None] | None:
        """Mean and deviation over the seeds, None where some seed failed or none has a score."""
        return mean_and_deviation(list(self.by_seed.values())) if self.by_seed and self.outcome == "finished" else None

    @property
    def score_text(self) -> str:
        """Mean ± deviation, without the latter for one run."""
        return mean_text(list(self.by_seed.values())) if self.outcome == "finished" else self.outcome

    @property
    def diff_text(self) -> str:
        """The paired difference to the row with the best mean."""
        if self.has_best_mean:
            return "best mean"
        return NONE if self.diff_to_best is None else self.diff_to_best.text()


@dataclass(frozen=True)
class ResultTable:
    """The rows of one data set and scale, and the headings that name them."""

    data: str
    scale: str
    score: str
    paper_data: str
    rows: tuple[TableRow, ...]
    target: float | None = None

    @property
    def titles(self) -> list[str]:
        """Column headings, the same in all three formats."""
        metric = metrics.metric(self.score)
        score = metric.label or metric.name
        return [
            "optimizer", "weight decay", "lr", "epochs",
            f"paper: {score} on {self.paper_data}" if self.paper_data else "paper", "source",
            f"ours: {score} on {self.data}, {self.scale}", "seeds", "difference to the best mean [95 %]",
            "epochs to the target" if self.target is None else f"epochs to {self.target:.2f}",
            "norm, first → last", "commit", "machine",
        ]  # fmt: skip

    def cells(self, row: TableRow) -> list[str]:
        """Return a row in the order of the titles."""
        setting = [row.label, short(row.weight_decay), short(row.lr), short(row.epochs)]
        ours = [row.score_text, row.seeds, row.diff_text, times_text(row.times), row.norm, row.commits, row.machines]
        return [*setting, row.paper, row.source, *ours]


def result_tables(experiment: str, rows: Sequence[ResultRow], paper: Sequence[PaperNumber]) -> list[ResultTable]:
    """Return the tables of one experiment, one per data set and scale.

    Args:
        experiment: Its name.
        rows: Recorded rows, of other experiments too.
        paper: The published numbers.
    """
    published = of_experiment(paper, experiment)
    names = ", ".join(sorted({DATA_NAMES.get(number.dataset, number.dataset) for number in published}))
    tables = []
    for (data, scale), groups in group_by_setting([row for row in rows if row.experiment == experiment]).items():
        runs = [run for group in groups for run in group.runs]
        score = _score_key(runs)
        lower = _lower_is_better(runs, score)
        target = _target(groups, score)
        table_rows = [_table_row(g, score, published, target=target, lower_is_better=lower) for g in groups]
        # Rows that look the same get their setting's digits.
        count = Counter(_visible(row) for row in table_rows)
        table_rows = [
            row if count[_visible(row)] == 1 else replace(row, label=f"{row.label} [{group.first.setting_key}]")
            for row, group in zip(table_rows, groups, strict=True)
        ]
        table_rows.sort(key=lambda row: (row.label, row.weight_decay or 0.0, short(row.lr), short(row.epochs)))
        table_rows = _compared(table_rows, lower_is_better=lower)
        has_times = any(row.times for row in table_rows)
        tables.append(ResultTable(data, scale, score, names, tuple(table_rows), target if has_times else None))
    return tables


def _visible(row: TableRow) -> tuple[str, ...]:
    return row.label, short(row.weight_decay), short(row.lr), short(row.epochs)


def _score_key(rows: Sequence[ResultRow]) -> str:
    """Return the score that the table shows: what the task monitors, else val/top1, else the first that is no loss."""
    if monitored := next((row.monitor for row in rows if row.monitor), ""):
        return monitored
    keys = sorted({key for row in rows for key in row.scores})
    return min(keys, key=lambda key: (key != "val/top1", "loss" in key, key), default="score")


def _lower_is_better(rows: Sequence[ResultRow], score: str) -> bool:
    directions = {row.better for row in rows if row.monitor == score} - {""}
    monitor = ("-" if directions == {"lower"} else "") + score if directions else ""
    return metrics.lower_is_better(score, monitor=monitor)


def _complete_scores(group: Group[ResultRow], score: str) -> dict[int | None, float]:
    return {run.seed: run.scores[score] for run in group.complete if score in run.scores}


def _target(groups: Sequence[Group[ResultRow]], score: str) -> float | None:
    """Return the median over settings of the mean last score, rounded as it is printed."""
    scores = [list(_complete_scores(group, score).values()) for group in groups]
    means = [mean_and_deviation(values)[0] for values in scores if values]
    return round(statistics.median(means), 2) if len(means) > 1 else None


def _table_row(
    group: Group[ResultRow],
    score: str,
    published: Sequence[PaperNumber],
    *,
    target: float | None,
    lower_is_better: bool,
) -> TableRow:
    first, complete = group.first, group.complete
    outcomes = [run.outcome for run in group.runs]
    name = score.rpartition("/")[2]
    numbers = of_optimizer(published, optimizer=first.opt_name, weight_decay=first.weight_decay, metric=name)
    norms = ([run.norm_first for run in complete], [run.norm_last for run in complete])
    means = [mean_text(values).partition(" ")[0] for values in norms]
    return TableRow(
        label=first.opt_name,
        weight_decay=first.weight_decay,
        lr=first.lr,
        epochs=first.epochs_done,
        paper=" / ".join(number.value for number in numbers) or NONE,
        source=" / ".join(number.source for number in numbers) or NONE,
        by_seed=_complete_scores(group, score),
        seeds=seeds_text(group.runs),
        outcome="failed" if "failed" in outcomes else group.outcome,
        norm=" → ".join(means),
        commits=", ".join(sorted({run.commit for run in group.runs})),
        machines="; ".join(sorted({run.machine for run in group.runs})),
        times=_times(group, score, target=target, lower_is_better=lower_is_better),
    )


def _times(
    group: Group[ResultRow], score: str, *, target: float | None, lower_is_better: bool
) -> tuple[float | None, ...]:
    """Return the epochs in which each seed reached the target; nothing where a run's curve is not recorded."""
    curves = [run.series(score)[1:] for run in group.runs if run.outcome != CUT_SHORT]
    if target is None or not all(epochs for epochs, _ in curves):
        return ()
    points = (list(zip(epochs, values, strict=True)) for epochs, values in curves)
    return tuple(time_to_target(curve, target, lower_is_better=lower_is_better) for curve in points)


def _compared(rows: Sequence[TableRow], *, lower_is_better: bool) -> list[TableRow]:
    """Add each row's paired difference to the best mean."""
    scores = {str(k): row.by_seed for k, row in enumerate(rows) if row.score}
    if len(scores) < 2:
        return list(rows)
    best, significant = select_best(scores, lower_is_better=lower_is_better)
    return [
        replace(row, has_best_mean=True, is_significant=significant)
        if str(k) == best
        else replace(row, diff_to_best=paired(scores[str(k)], scores[best]) if str(k) in scores else None)
        for k, row in enumerate(rows)
    ]
