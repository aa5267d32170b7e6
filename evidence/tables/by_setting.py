"""Tables with a row per recorded setting, beside the paper's numbers, as `sweep.table.columns` lists their cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from evidence.paper import PaperNumber, look_up
from evidence.records.row import ResultRow, norm_at_first_epoch
from evidence.records.settings import Group, group_by_setting, seeds_text, short
from evidence.records.store import rows_of_runs
from evidence.runs.run import experiments, load_runs
from evidence.stats import NONE, mean_text


class ExperimentSpec(TypedDict, total=False):
    """One experiment of a table."""

    label: str
    metrics: list[list[str]]  # per row, the metrics whose numbers it shows, separated by " / "
    published: dict[str, str]  # values that name the paper's numbers; none where the paper has no such experiment


class SettingTableSpec(TypedDict, total=False):
    """`sweep.table` of a file in configs/sweep whose rows are recorded settings."""

    paper: str
    table: str | int
    split: str  # whose scores are shown
    experiments: dict[str, ExperimentSpec]  # in the order of the rows
    optimizer: dict[str, str]  # ours -> the paper's
    published_where: dict[str, float]  # values that a run must have for the paper's number to stand beside it
    columns: dict[str, str]  # heading -> a name of `COLUMNS`


@dataclass(frozen=True)
class SettingRow:
    """A row of such a table: the runs of one setting, and the metrics shown of them."""

    experiment: str
    spec: SettingTableSpec
    group: Group[ResultRow]
    metrics: Sequence[str]
    paper: Sequence[PaperNumber]

    @property
    def first(self) -> ResultRow:
        """A run to read what all share from."""
        return self.group.first

    def values(self, value: Callable[[ResultRow], float | None]) -> str:
        """Return "mean ± deviation" over the complete runs; where a run failed or none is complete, its outcome."""
        outcomes = {run.outcome for run in self.group.runs}
        if "failed" in outcomes or not self.group.complete:
            return "failed" if "failed" in outcomes else self.group.outcome
        return mean_text([value(run) for run in self.group.complete])

    def facts(self, fact: Callable[[ResultRow], str], separator: str) -> str:
        """Return the different texts that the runs have."""
        return separator.join(sorted({fact(run) for run in self.group.runs}))

    @property
    def runs(self) -> str:
        """How many runs are complete, and which are not."""
        complete = len(self.group.complete)
        rest = [run for run in self.group.runs if run.outcome != "finished"]
        return f"{complete}; seed {seeds_text(rest)}" if rest else str(complete)

    def scores(self, value: Callable[[ResultRow, str], float | None]) -> str:
        """Return the metrics' means, given how a score is read of a run."""
        keys = [f"{self.spec['split']}/{metric}" for metric in self.metrics]
        return " / ".join(self.values(lambda run, key=key: value(run, key)) for key in keys)  # type: ignore[misc]

    @property
    def published(self) -> str:
        """The paper's numbers; a dash where it has none for this experiment, optimizer, rate and decay."""
        wanted = self.spec["experiments"][self.experiment].get("published")
        where = self.spec.get("published_where") or {}
        if not wanted or any(getattr(self.first, key) != value for key, value in where.items()):
            return NONE
        opt = (self.spec.get("optimizer") or {}).get(self.first.opt_name, self.first.opt_name)
        place = {"paper": self.spec["paper"], "table": str(self.spec["table"]), "optimizer": opt, **wanted}
        numbers = [look_up(self.paper, **place, metric=metric) for metric in self.metrics]
        return " / ".join(matching[0].value for matching in numbers) if all(numbers) else NONE


def _at_best_epoch(run: ResultRow, key: str) -> float | None:
    """Return a score after the epoch that had the best monitored score, None where it was not logged."""
    _, epochs, values = run.series(key)
    return next((value for epoch, value in zip(epochs, values, strict=True) if epoch == run.best_epoch), None)


COLUMNS: Mapping[str, Callable[[SettingRow], str]] = {
    "experiment": lambda row: row.spec["experiments"][row.experiment].get("label", row.experiment),
    "setting": lambda row: row.group.label,
    "optimizer": lambda row: row.first.opt_name,
    "lr": lambda row: short(row.first.lr),
    "weight decay": lambda row: short(row.first.weight_decay),
    "epochs": lambda row: short(row.first.epochs_done),
    "metric": lambda row: " / ".join(row.metrics),
    "published": lambda row: row.published,
    "last score": lambda row: row.scores(lambda run, key: run.scores.get(key)),
    "score at best epoch": lambda row: row.scores(_at_best_epoch),
    "norms": lambda row: f"{row.values(norm_at_first_epoch)} -> {row.values(lambda run: run.norm_last)}",
    "runs": lambda row: row.runs,
    "data, scale": lambda row: f"{row.first.data}, {row.first.scale}",
    "commit": lambda row: row.facts(lambda run: run.commit, ", "),
    "machine": lambda row: row.facts(lambda run: run.machine, "; "),
}


def setting_rows(
    rows: Sequence[ResultRow], spec: SettingTableSpec, paper: Sequence[PaperNumber]
) -> Iterator[SettingRow]:
    """Yield the rows of a table: experiments in the spec's order, then data sets, then settings, then metrics."""
    for experiment, columns in spec["experiments"].items():
        for groups in group_by_setting([row for row in rows if row.experiment == experiment]).values():
            for group in groups:
                for metrics in columns["metrics"]:
                    yield SettingRow(experiment, spec, group, metrics, paper)


def tabulate(rows: Sequence[ResultRow], spec: SettingTableSpec, paper: Sequence[PaperNumber]) -> list[list[str]]:
    """Return heads and rows."""
    cells = [[COLUMNS[name](row) for name in spec["columns"].values()] for row in setting_rows(rows, spec, paper)]
    return [list(spec["columns"]), *cells]


def load_rows(names: Mapping[str, Any], *, runs: Path) -> list[ResultRow]:
    """Return the rows of these experiments' run folders."""
    present = [name for name in names if name in experiments(runs)]
    return rows_of_runs(run for name in present for run in load_runs(runs, name))
