"""The table and the figure of a sweep: the published numbers beside ours, with what the seeds say of differences."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/sweep.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence.records.metrics import MEASURES, PUBLISHED  # noqa: E402
from evidence.records.store import add, read_rows, recordable, recorded_runs  # noqa: E402
from evidence.runs.run import ReadError, Run, load_run, number  # noqa: E402
from evidence.stats import mean_and_deviation, paired, time_to_target, times_text  # noqa: E402
from evidence.tables import sweeps as grids  # noqa: E402
from evidence.tables.render import write_page  # noqa: E402
from scripts.options import command, results  # noqa: E402

USAGE = """
usage: python scripts/sweep.py SWEEP [scale=full] [runs=FOLDER] [out=FOLDER] [records=FILE] [paper=FILE] [KEY=VALUE ...]

Writes OUT/tables/SWEEP.md and .csv from the runs of a sweep (configs/sweep/SWEEP.yaml), and OUT/figures/SWEEP.png, .svg
and .csv if the sweep asks for a figure. Cells that have not been run are shown as such.

  runs=FOLDER  default results/runs
  out=FOLDER   default results
  records=FILE what the runs are added to, and where those are found whose folders are gone; default OUT/records.csv
  paper=FILE   published numbers; default results/paper.csv
  KEY=VALUE    what was typed beside the sweep, e.g. train.seed=0 or opt=sgdp

example: python scripts/sweep.py table-1 scale=mini
"""
NONE = "–"
NOTE = """\
Ours: mean ± sample standard deviation of the last epoch over the seeds; "failed": the loss was not finite in some seed.
Difference: to the row named "reference", over the seeds that both have, with the 95 % interval of Student's t for
pairs. Epochs to the target: until the score first reaches the reference's mean last score, mean ± deviation over the
seeds that do. The paper prints single runs. Where ours are of another data set than the paper's, the numbers do not
compare, only the signs of their differences may. A + behind a commit: the tree had changes."""
# The curve behind a published number, for the time to the target. A moving average of the weights comes first.
CURVES = {
    "top1": ("val_ema/top1", "val/top1"),
    "top5": ("val_ema/top5", "val/top5"),
    "ap": ("val/ap",),
}


@dataclass
class Cell:
    """One setting of a sweep and its runs over the seeds.

    Attributes:
        overrides: Its words, the seed aside.
        block: The block of the sweep that it comes from.
        runs: Seed -> run, finished or diverged.
        count: Seeds that the sweep asks for.
    """

    overrides: dict[str, str]
    block: Mapping[str, Any]
    runs: dict[str, Run] = field(default_factory=dict)
    count: int = 0

    @property
    def label(self) -> str:
        """What tells it from other cells."""
        given = {k: v for k, v in self.overrides.items() if k != "scale"}
        words = [f"{given.pop(key)}" for key in ("experiment", "opt") if key in given]
        return " ".join([*words, *(f"{key.rpartition('.')[2]}={value}" for key, value in given.items())])

    @property
    def failed(self) -> bool:
        """Whether some seed diverged."""
        return any(not run.finished for run in self.runs.values())

    def by_seed(self, metric: str) -> dict[str, float]:
        """Return seed -> a metric, of each finished run that has it."""
        found = {seed: PUBLISHED[metric](run) for seed, run in self.runs.items() if run.finished}
        return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}

    def times(self, metric: str, target: float) -> list[float | None]:
        """Return the epochs in which each run's metric first reached a target, None where it never did."""
        times: list[float | None] = []
        for run in self.runs.values():
            key = next((key for key in CURVES[metric] if run.series(key)[0]), None)
            if key is not None:
                _, epochs, values = run.series(key)
                times.append(time_to_target(list(zip(epochs, values, strict=True)), target, lower_is_better=False))
        return times

    @property
    def seeds(self) -> str:
        """The seeds that have a run, and how many the sweep asks for where that is more."""
        found = ", ".join(sorted(self.runs, key=lambda seed: (number(seed) or 0.0, seed))) or NONE
        return found if len(self.runs) == self.count else f"{found} ({len(self.runs)} of {self.count})"


def collect(
    sweep: str, scale: str, typed: Mapping[str, str], *, runs: Path, known: Mapping[tuple[str, str], Run] | None = None
) -> list[Cell]:
    """Return a sweep's cells with the runs that exist, as folders or else among the recorded ones."""
    from scripts import train  # Hydra takes a second to load

    cells: dict[tuple[tuple[str, str], ...], Cell] = {}
    found: dict[tuple[tuple[str, str], ...], tuple[str, str, str]] = {}
    for block, overrides in grids.cells(sweep, scale, typed):
        seed = overrides.pop("train.seed", "0")
        key = tuple(sorted(overrides.items()))
        cell = cells.setdefault(key, Cell(overrides, block))
        cell.count += 1
        if key not in found:  # the names of the other seeds follow: composing takes half a second
            words = [f"sweep={sweep}", f"scale={scale}", *(f"{k}={v}" for k, v in overrides.items())]
            found[key] = (*train.identify([*words, f"train.seed={seed}"]), seed)
        experiment, name, first = found[key]
        folder = runs / experiment / name.replace(f"seed={first}", f"seed={seed}", 1)
        run = load_run(folder) if (folder / "run.json").exists() else None
        if run is None or not recordable(run):
            run = (known or {}).get((experiment, folder.name))
        if run is not None:
            cell.runs[seed] = run
    return list(cells.values())


# ------------------------------------------------------------------------------------------------ published numbers


def published(cell: Cell, spec: Mapping[str, Any], paper: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Return metric -> what the paper prints for a cell, empty where it prints nothing.

    `spec` says where to look: `paper` and `table`; `model`, from experiments to the paper's models; `optimizer`, from
    ours to the paper's; `setting`, the paper's word and our key, whose value times the block's `printed` is theirs;
    `settings`, from experiments to the paper's settings, {model.init} in them standing for the cell's value of it.
    """
    given = cell.overrides
    model = (spec.get("model") or {}).get(given.get("experiment", ""), "")
    optimizer = (spec.get("optimizer") or {}).get(given.get("opt", "sgd"), given.get("opt", "sgd"))
    wanted = {"paper": spec["paper"], "table": str(spec["table"]), "model": model, "optimizer": optimizer}
    found = {}
    for row in paper:
        if all(row[key] == value for key, value in wanted.items()) and _same_setting(cell, spec, row["setting"]):
            found[row["metric"]] = row["value"]
    return found


def _same_setting(cell: Cell, spec: Mapping[str, Any], setting: str) -> bool:
    if spec.get("settings"):
        named = str(spec["settings"].get(cell.overrides.get("experiment", ""), ""))
        return setting == re.sub(r"\{([\w.]+)\}", lambda key: cell.overrides.get(key[1], ""), named)
    if not spec.get("setting"):
        return True
    (word, key), *_ = spec["setting"].items()
    name, _, printed = setting.partition("=")
    ours = number(cell.overrides.get(key, ""))
    if name != word or ours is None:
        return False
    return math.isclose(ours * float(cell.block.get("printed", 1)), float(printed), rel_tol=1e-6)


# ------------------------------------------------------------------------------------------------------- the table


def reference(cell: Cell, cells: Sequence[Cell], spec: Mapping[str, Any]) -> Cell | None:
    """Return the cell that this one is compared with: the same but for what `reference` says."""
    changed = _changed(spec)
    if not changed or _is_reference(cell, spec):
        return None
    loose = {*changed, *(spec.get("loose") or [])}  # keys in which the two may differ

    def kept(of: Cell) -> dict[str, str]:
        return {k: v for k, v in of.overrides.items() if k not in loose}

    fits = (o for o in cells if all(o.overrides.get(k) == v for k, v in changed.items()) and kept(o) == kept(cell))
    return next(fits, None)


def _changed(spec: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(value) for key, value in (spec.get("reference") or {}).items()}


def _is_reference(cell: Cell, spec: Mapping[str, Any]) -> bool:
    changed = _changed(spec)
    return bool(changed) and all(cell.overrides.get(key) == value for key, value in changed.items())


def compared(cell: Cell, other: Cell, metric: str) -> list[str]:
    """Return the paired difference of two cells, and whether its interval excludes 0; dashes where there is none."""
    found = None if cell.failed or other.failed else paired(cell.by_seed(metric), other.by_seed(metric))
    if found is None:
        return [NONE, NONE]
    return [found.text(), NONE if found.low is None else "yes" if found.sign else "no"]


def _target(cell: Cell, cells: Sequence[Cell], spec: Mapping[str, Any], metric: str) -> float | None:
    """Return the mean last score of the cell that this one is compared with, as it is printed; its own at that cell."""
    other = cell if _is_reference(cell, spec) else reference(cell, cells, spec)
    values = list(other.by_seed(metric).values()) if other is not None and not other.failed else []
    return round(mean_and_deviation(values)[0], 2) if values and metric in CURVES else None


def _mean(cell: Cell, metric: str) -> str:
    if cell.failed:
        return "failed"
    values = list(cell.by_seed(metric).values())
    if not values:
        return NONE
    mean, deviation = mean_and_deviation(values)
    return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


def _gap(one: str, other: str) -> str:
    a, b = number(one), number(other)
    return NONE if a is None or b is None else f"{a - b:+.2f}"


def tabulate(cells: Sequence[Cell], spec: Mapping[str, Any], paper: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return heads and rows: a row a cell; for each metric the paper's number and ours, then differences."""
    metrics = list(spec.get("metrics") or ["top1"])
    main = metrics[0]
    heads = ["setting", *(f"{who}: {metric}" for metric in metrics for who in ("paper", "ours")), "seeds"]
    heads += [f"{main}, difference: paper", "ours [95 %]", "interval excludes 0", f"target {main}", "epochs to it"]
    heads += ["ours - paper", "data, scale", "commit", "machine"]
    rows = []
    for cell in cells:
        theirs, other = published(cell, spec, paper), reference(cell, cells, spec)
        row = [cell.label]
        for metric in metrics:
            row += [theirs.get(metric, NONE), _mean(cell, metric)]
        row.append(cell.seeds)
        if other is None:
            row += ["reference" if _is_reference(cell, spec) else NONE, NONE, NONE]
        else:
            row.append(_gap(theirs.get(main, ""), published(other, spec, paper).get(main, "")))
            row += compared(cell, other, main)
        target = _target(cell, cells, spec, main)
        row += [NONE, NONE] if target is None else [f"{target:.2f}", times_text(cell.times(main, target))]
        values, runs = list(cell.by_seed(main).values()), list(cell.runs.values())
        same = bool(runs) and {run.data for run in runs} == {"imagenet"} and {run.scale for run in runs} == {"full"}
        row.append(_gap(str(mean_and_deviation(values)[0]) if values and same else "", theirs.get(main, "")))
        for facts in ((f"{r.data}, {r.scale}" for r in runs), (r.commit for r in runs), (r.machine for r in runs)):
            row.append("; ".join(sorted(set(facts))) or NONE)
        rows.append(row)
    return [heads, *rows]


def main(words: Sequence[str]) -> int:
    """Write the table and the figure of the sweep that the first word names."""
    if not words or "=" in words[0]:
        raise ReadError("name a sweep, e.g. python scripts/sweep.py table-1")
    sweep, options = words[0], {"scale": "mini", "runs": results("runs"), "out": results(), "records": ""}
    options["paper"] = "results/paper.csv"
    typed: dict[str, str] = {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not equals:
            raise ReadError(f"unknown argument {word!r}; give KEY=VALUE, or --help")
        (options if key in options else typed)[key] = value
    given = grids.read(sweep)
    if not given:
        raise ReadError(f"there is no sweep {sweep}; see configs/sweep")
    spec = given.get("sweep") or {}
    if not spec.get("table") and not spec.get("figure"):
        return 0  # a plain grid: the pages of its experiment show it
    free = ("gpus", "jobs", "launcher", "logger", "pictures", "data_root", "paths.", "hydra", "train.progress")
    kept = {key: value for key, value in typed.items() if not key.startswith(free)}
    out, title = Path(options["out"].rstrip("/")), str(spec.get("title", sweep))
    records = Path(options["records"] or out / "records.csv")
    known = recorded_runs(records)
    cells = collect(sweep, options["scale"], kept, runs=Path(options["runs"]), known=known)
    found = [run for cell in cells for run in cell.runs.values()]
    if fresh := [run for run in found if known.get((run.experiment, run.name)) is not run]:
        add(fresh, records, measures=MEASURES)
    if spec.get("table"):
        heads, *rows = tabulate(cells, spec["table"], read_rows(Path(options["paper"])))
        notes = f"\n{NOTE}\n{spec.get('note', '')}".rstrip() + "\n"
        write_page(out / "tables", sweep, title=title, heads=heads, rows=rows, notes=notes)
    if spec.get("figure") and any(cell.runs for cell in cells):
        from evidence.figures.sweep import draw

        print(f"written to {draw(cells, spec['figure'], out / 'figures' / f'{sweep}.svg', title=title).svg}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
