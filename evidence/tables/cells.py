"""Cells of a sweep, and the table of a sweep: the published numbers beside ours, with paired differences."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from evidence import sweeps
from evidence.metrics import METRICS
from evidence.paper import PaperNumber, look_up
from evidence.records.row import ResultRow
from evidence.records.store import rows_of_runs
from evidence.runs.run import CUT_SHORT, load_run, number
from evidence.stats import NONE, mean_and_deviation, mean_text, paired, time_to_target, times_text
from tasks.engine.neutral_keys import is_neutral_override

# Overrides without a seed, and seeds -> experiment and the name of each seed's run; composing needs Hydra.
Identify = Callable[[Sequence[str], Sequence[int]], tuple[str, list[str]]]
NOTE = """\
Ours: mean ± sample standard deviation of the last epoch over the seeds; "failed": the loss was not finite in some seed.
Difference: to the row named "reference", over the seeds that both have, with the 95 % interval of Student's t for
pairs. Epochs to the target: until the score first reaches the reference's mean last score, mean ± deviation over the
seeds that do. The paper prints single runs. Where ours are of another data set than the paper's, the numbers do not
compare, only the signs of their differences may. A + behind a commit: the tree had changes."""


class TableSpec(TypedDict, total=False):
    """`sweep.table` of a file in configs/sweep."""

    paper: str
    table: str | int
    metrics: list[str]  # of `evidence.metrics`, the main one first
    model: dict[str, str]  # experiment -> the paper's model
    dataset: dict[str, str]  # experiment -> the paper's data set, where one model is trained on several
    optimizer: dict[str, str]  # ours -> the paper's
    setting: dict[str, str]  # the paper's word -> our key, whose value times the block's `printed` is the paper's
    settings: dict[str, str]  # experiment -> the paper's setting; {model.init} stands for the cell's value of that key
    reference: dict[str, Any]  # overrides of the cell that others are compared with
    loose: list[str]  # keys in which a cell and its reference may differ beside those
    best_over: list[
        str
    ]  # keys that the paper searched: its number stands beside the best cell over them, and bests compare
    best_by: str  # the metric that says which is best; on validation data
    mean_over: str  # a key over whose values the paper prints a mean: rows of that mean are added


@dataclass
class Cell:
    """One setting of a sweep and its runs over the seeds.

    Attributes:
        overrides: Its words, the seed aside.
        block: The block of the sweep that it comes from.
        keys: Seed -> (experiment, name) of each run that the sweep asks for.
        rows: Seed -> the run, where it finished or diverged.
        unrecorded: Seed -> what became of a run that has a folder but no outcome: interrupted, running, failed.
    """

    overrides: dict[str, str]
    block: Mapping[str, Any] = field(default_factory=dict)
    keys: dict[int, tuple[str, str]] = field(default_factory=dict)
    rows: dict[int, ResultRow] = field(default_factory=dict)
    unrecorded: dict[int, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tells it from other cells."""
        rest = {k: v for k, v in self.overrides.items() if k not in ("scale", "experiment", "opt")}
        words = [self.overrides[key] for key in ("experiment", "opt") if key in self.overrides]
        return " ".join([*words, *(f"{key.rpartition('.')[2]}={value}" for key, value in rest.items())])

    @property
    def has_diverged(self) -> bool:
        """Whether some seed diverged."""
        return any(not row.finished for row in self.rows.values())

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return seed -> a metric, of each complete run that has it."""
        values = {seed: row.value(metric) for seed, row in self.rows.items() if row.outcome == "finished"}
        return {seed: value for seed, value in values.items() if value is not None}

    def times(self, metric: str, target: float) -> list[float | None]:
        """Return the epochs in which each run's metric first reached a target, None where it never did."""
        times: list[float | None] = []
        for row in (row for row in self.rows.values() if row.outcome != CUT_SHORT):
            key = next((key for key in METRICS[metric].curve if row.series(key)[0]), None)
            if key is not None:
                _, epochs, values = row.series(key)
                points = list(zip(epochs, values, strict=True))
                times.append(time_to_target(points, target, lower_is_better=METRICS[metric].lower_is_better))
        return times

    @property
    def seeds(self) -> str:
        """The seeds that have a run, what became of those that are not complete, and how many the sweep asks for."""
        outcomes = self.unrecorded | {seed: row.outcome for seed, row in self.rows.items()}
        marks = {seed: "" if outcome == "finished" else f" {outcome}" for seed, outcome in outcomes.items()}
        seeds = ", ".join(f"{seed}{marks[seed]}" for seed in sorted(marks)) or NONE
        return seeds if len(self.rows) == len(self.keys) else f"{seeds} ({len(self.rows)} of {len(self.keys)})"


def sweep_cells(sweep: str, scale: str, typed: Mapping[str, str], *, identify: Identify) -> list[Cell]:
    """Return a sweep's cells with the identity of each run, whether it exists or not.

    Args:
        sweep: Its name.
        scale: mini or full.
        typed: Further overrides of the command line; result-neutral ones are left out.
        identify: Composes a configuration.
    """
    kept = {key: value for key, value in typed.items() if not is_neutral_override(key.lstrip("+~"))}
    seeds: dict[tuple[tuple[str, str], ...], list[int]] = {}
    cells: dict[tuple[tuple[str, str], ...], Cell] = {}
    for block, overrides in sweeps.cells(sweep, scale, kept):
        seed = int(overrides.pop("train.seed", "0"))
        setting = tuple(sorted(overrides.items()))
        cells.setdefault(setting, Cell(overrides, block))
        seeds.setdefault(setting, []).append(seed)
    for setting, cell in cells.items():
        words = [f"sweep={sweep}", f"scale={scale}", *(f"{key}={value}" for key, value in cell.overrides.items())]
        experiment, names = identify(words, seeds[setting])
        cell.keys = {seed: (experiment, name) for seed, name in zip(seeds[setting], names, strict=True)}
    return list(cells.values())


def fill(cells: Sequence[Cell], *, runs: Path, recorded: Mapping[tuple[str, str], ResultRow]) -> list[ResultRow]:
    """Give cells their rows, from run folders or else from the records, and return those from folders."""
    folders = [runs / experiment / name for cell in cells for experiment, name in cell.keys.values()]
    loaded = [run for folder in folders if (folder / "run.json").exists() and (run := load_run(folder)) is not None]
    fresh = rows_of_runs(loaded)
    outcomes = {(run.experiment, run.name): run.outcome for run in loaded}
    known = {**recorded, **{row.key: row for row in fresh}}
    for cell in cells:
        cell.rows = {seed: known[key] for seed, key in cell.keys.items() if key in known}
        cell.unrecorded = {s: outcomes[key] for s, key in cell.keys.items() if key in outcomes and key not in known}
    return fresh


# ------------------------------------------------------------------------------------------------ published numbers


def published(cell: Cell, spec: TableSpec, paper: Sequence[PaperNumber]) -> dict[str, str]:
    """Return metric -> what the paper prints for a cell, empty where it prints nothing or the table is of no paper."""
    if "paper" not in spec:
        return {}
    experiment, opt = cell.overrides.get("experiment", ""), cell.overrides.get("opt", "sgd")
    wanted = {
        "paper": spec["paper"],
        "table": str(spec["table"]),
        "model": (spec.get("model") or {}).get(experiment, ""),
        "optimizer": (spec.get("optimizer") or {}).get(opt, opt),
    }
    if spec.get("dataset"):
        wanted["dataset"] = spec["dataset"].get(experiment, "")
    numbers = look_up(paper, **wanted)
    return {number.metric: number.value for number in numbers if _has_setting(cell, spec, number.setting)}


def _has_setting(cell: Cell, spec: TableSpec, setting: str) -> bool:
    if spec.get("settings"):
        template = str(spec["settings"].get(cell.overrides.get("experiment", ""), ""))
        return setting == re.sub(r"\{([\w.]+)\}", lambda key: cell.overrides.get(key[1], ""), template)
    if not spec.get("setting"):
        return True
    (word, key), *_ = spec["setting"].items()
    if key not in cell.overrides and not setting:  # the experiments of a table that have no such setting
        return True
    name, _, printed = setting.partition("=")
    ours, theirs = number(cell.overrides.get(key, "")), number(printed)
    if name != word or ours is None or theirs is None:
        return name == word and printed == cell.overrides.get(key, "")
    return math.isclose(ours * float(cell.block.get("printed", 1)), theirs, rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------------- the table


def means_over(key: str, cells: Sequence[Cell]) -> list[Cell]:
    """Return a cell per setting without `key`: of each seed that all its cells finished, the means of their scores."""
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        if key in cell.overrides:
            rest = tuple((k, v) for k, v in cell.overrides.items() if k != key)
            groups.setdefault(rest, []).append(cell)
    means = []
    for rest, group in groups.items():
        mean = Cell({**dict(rest), key: "mean"}, keys=dict(group[0].keys))
        for seed in group[0].keys:
            rows = [cell.rows[seed] for cell in group if seed in cell.rows and cell.rows[seed].outcome == "finished"]
            if len(rows) == len(group):
                shared = set.intersection(*(set(row.scores) for row in rows))
                scores = {name: sum(row.scores[name] for row in rows) / len(rows) for name in sorted(shared)}
                mean.rows[seed] = replace(rows[0], scores=scores, curves={}, measures={})
        means.append(mean)
    return means


def best_cells(cells: Sequence[Cell], spec: TableSpec) -> list[Cell]:
    """Return the cell of the best mean over the keys that were searched, of each group of cells that else agree."""
    keys, metric = spec["best_over"], spec["best_by"]
    groups: dict[tuple[tuple[str, str], ...], list[Cell]] = {}
    for cell in cells:
        rest = tuple((k, v) for k, v in cell.overrides.items() if k not in keys)
        if not cell.has_diverged and cell.by_seed(metric):
            groups.setdefault(rest, []).append(cell)
    choose = min if METRICS[metric].lower_is_better else max
    return [
        choose(group, key=lambda c: mean_and_deviation(list(c.by_seed(metric).values()))[0])
        for group in groups.values()
    ]


def reference(cell: Cell, cells: Sequence[Cell], spec: TableSpec) -> Cell | None:
    """Return the cell that this one is compared with: the same but for what `reference` says."""
    changed = _reference_overrides(spec)
    if not changed or _is_reference(cell, spec):
        return None
    free = {*changed, *(spec.get("loose") or []), *(spec.get("best_over") or [])}

    def kept(of: Cell) -> dict[str, str]:
        return {k: v for k, v in of.overrides.items() if k not in free}

    return next((other for other in cells if _is_reference(other, spec) and kept(other) == kept(cell)), None)


def _reference_overrides(spec: TableSpec) -> dict[str, str]:
    return {key: str(value) for key, value in (spec.get("reference") or {}).items()}


def _is_reference(cell: Cell, spec: TableSpec) -> bool:
    changed = _reference_overrides(spec)
    return bool(changed) and all(cell.overrides.get(key) == value for key, value in changed.items())


def compared(cell: Cell, other: Cell, metric: str) -> list[str]:
    """Return the paired difference of two cells, and whether its interval excludes 0; dashes where there is none."""
    diff = None if cell.has_diverged or other.has_diverged else paired(cell.by_seed(metric), other.by_seed(metric))
    if diff is None:
        return [NONE, NONE]
    return [diff.text(METRICS[metric].digits), NONE if diff.low is None else "yes" if diff.sign else "no"]


def _target(cell: Cell, cells: Sequence[Cell], spec: TableSpec, metric: str) -> float | None:
    """Return the mean last score of the cell that this one is compared with, as it is printed; its own at that cell."""
    other = cell if _is_reference(cell, spec) else reference(cell, cells, spec)
    values = list(other.by_seed(metric).values()) if other is not None and not other.has_diverged else []
    return round(mean_and_deviation(values)[0], 2) if values and METRICS[metric].curve else None


def _mean(cell: Cell, metric: str) -> str:
    values = list(cell.by_seed(metric).values())
    if cell.has_diverged:
        return "failed"
    if cell.rows and all(row.outcome == CUT_SHORT for row in cell.rows.values()):
        return CUT_SHORT
    return mean_text(values, f".{METRICS[metric].digits}f")


def _gap(one: float | None, other: float | None) -> str:
    return NONE if one is None or other is None else f"{one - other:+.2f}"


def tabulate(cells: Sequence[Cell], spec: TableSpec, paper: Sequence[PaperNumber]) -> list[list[str]]:
    """Return heads and a row per cell: for each metric the paper's number and ours, then differences."""
    metrics = list(spec.get("metrics") or ["top1"])
    main = metrics[0]
    heads = ["setting", *(f"{who}: {metric}" for metric in metrics for who in ("paper", "ours")), "seeds"]
    heads += [f"{main}, difference: paper", "ours [95 %]", "interval excludes 0", f"target {main}", "epochs to it"]
    heads += ["ours - paper", "data, scale", "commit", "machine"]
    cells = [*cells, *(means_over(spec["mean_over"], cells) if spec.get("mean_over") else [])]
    chosen = best_cells(cells, spec) if spec.get("best_over") else cells
    rows = []
    for cell in cells:
        if not any(cell is best for best in chosen):  # searched and not chosen: its scores alone
            theirs, other = {}, None
        else:
            theirs, other = published(cell, spec, paper), reference(cell, chosen, spec)
        row = [cell.label]
        for metric in metrics:
            row += [theirs.get(metric, NONE), _mean(cell, metric)]
        row.append(cell.seeds)
        # Differences to the reference, the paper's and ours
        printed = number(theirs.get(main, ""))
        if other is None:
            row += ["reference" if _is_reference(cell, spec) else NONE, NONE, NONE]
        else:
            row.append(_gap(printed, number(published(other, spec, paper).get(main, ""))))
            row += compared(cell, other, main)
        # Epochs to the reference's last score
        target = _target(cell, chosen, spec, main)
        row += [NONE, NONE] if target is None else [f"{target:.2f}", times_text(cell.times(main, target))]
        # Ours against the paper's number, where both are of ImageNet at full size
        values, runs = list(cell.by_seed(main).values()), list(cell.rows.values())
        comparable = bool(values) and {(run.data, run.scale) for run in runs} == {("imagenet", "full")}
        row.append(_gap(mean_and_deviation(values)[0] if comparable else None, printed))
        for facts in ((f"{r.data}, {r.scale}" for r in runs), (r.commit for r in runs), (r.machine for r in runs)):
            row.append("; ".join(sorted(set(facts))) or NONE)
        rows.append(row)
    return [heads, *rows]
