"""Runs as the repository keeps them: what every committed table and figure is made from.

Run folders are not committed. Beside each other lie, in results/,

- `records.csv`: a row a run that finished or diverged: setting, scores, norms, commit, machine, command;
- `settings.jsonl`: the configuration behind each `setting` of records.csv, once for all of its seeds;
- `curves.jsonl`: a line a run: the curves that tables and figures draw, thinned, and measures of the whole run.

`restore` makes run folders of them again, which every script reads like real ones: so a table can be made anew, and
checked, on a machine that has never trained anything.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence.records.settings import digest, setting
from evidence.runs.run import Run, derived, number
from evidence.tables import sweeps as grids

FACTS = (
    "experiment", "name", "opt", "lr", "weight_decay", "seed", "scale", "data", "epochs", "setting", "norm_first",
    "norm_last", "commit", "dirty", "machine", "wall_time_s", "date", "best", "best_epoch", "monitor", "better",
    "status", "steps", "recipe", "torch", "config_hash", "command",
)  # fmt: skip
DRAWN = (
    "train/loss", "train/top1", "norm/mean", "effective_step/mean", "oscillation/mean", "oscillation/median",
    "oscillation/ratio", "projected/share",
)  # fmt: skip
PROBES = ("train/", "lr", "norm/", "effective_step/", "cosine/", "margin/", "projected/", "variant/", "oscillation/")
POINTS, SCORE_POINTS, SCORES = 48, 200, 12  # of a curve; of a score's curve; scores a run keeps a curve of
OWN = ("optimizer", "scale", "data set")  # what `setting` adds to the configuration
Row = dict[str, str]
Key = tuple[str, str]  # (experiment, name)


def _text(value: object) -> str:
    """Return a value as it stands in the CSV; numbers in a form that reads back unchanged."""
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def recordable(run: Run) -> bool:
    """Whether a run has an outcome: it finished, or its loss stopped being finite."""
    return run.finished or run.record.get("diverged_at") is not None


def by_recipe(run: Run) -> str:
    """Return "yes" where rate and decay are the experiment's recipe for the optimizer, else which are not.

    Nothing is said of a run whose configuration has no such recipe.
    """
    recipes = run.section("config").get("recipe")
    recipe = recipes.get(run.opt_name) if isinstance(recipes, dict) else None
    if not isinstance(recipe, dict):
        return ""
    other = [key for key, value in recipe.items() if key in run.opt and number(run.opt.get(key)) != number(value)]
    return " ".join(other) or "yes"


def record_row(run: Run) -> Row:
    """Return a run's row of records.csv; scores stand under their own names."""
    git, best = run.section("git"), run.section("best")
    first, last = run.ends("norm/mean")
    values: dict[str, object] = {
        "experiment": run.experiment,
        "name": run.name,
        "opt": run.opt_name,
        "lr": run.lr,
        "weight_decay": run.weight_decay,
        "seed": run.seed,
        "scale": run.scale,
        "data": run.data,
        "epochs": run.epochs_done,
        "setting": digest(setting(run)),
        "norm_first": first,
        "norm_last": last,
        "commit": str(git.get("commit") or "unknown")[:10],
        "dirty": "unknown" if git.get("dirty") is None else "yes" if git["dirty"] else "no",
        "machine": run.machine,
        "wall_time_s": run.record.get("wall_time_s"),
        "date": run.text("ended")[:10],
        "best": best.get("score"),
        "best_epoch": best.get("epoch"),
        "monitor": run.monitor,
        "better": "lower" if run.lower_is_better else "higher",
        "status": "finished" if run.finished else "diverged",
        "steps": run.record.get("steps"),
        "recipe": by_recipe(run),
        "torch": run.section("versions").get("torch"),
        "config_hash": run.text("config_hash"),
        "command": run.text("command"),
        **run.scores,
    }
    return {key: _text(value) for key, value in values.items()}


# ---------------------------------------------------------------------------------------------------------- curves


def thinned(steps: Sequence[int], epochs: Sequence[float], values: Sequence[float], *, points: int) -> list[list[Any]]:
    """Return [steps, epochs, values] of about so many points; the first, the last and that of epoch 1 stay.

    Thinning twice is thinning once. Numbers keep ten digits, as in records.csv; NaN becomes None.
    """
    chosen = set(range(len(steps)))
    if len(steps) > points + 3:
        first_epoch = next((k for k, epoch in enumerate(epochs) if epoch >= 1), 0)
        chosen = {0, first_epoch, len(steps) - 1, *range(0, len(steps), math.ceil(len(steps) / points))}
    kept = sorted(chosen)
    shown = [float(f"{values[k]:.10g}") if math.isfinite(values[k]) else None for k in kept]
    return [[steps[k] for k in kept], [float(f"{epochs[k]:.10g}") for k in kept], shown]


def points_of(metric: str) -> int:
    """Return about how many points of a metric's curve are kept: more of a score, which says when a target is met."""
    return POINTS if metric.startswith(PROBES) else SCORE_POINTS


def figure_metrics() -> list[str]:
    """Return the metrics that the sweeps' figures draw."""
    found: dict[str, None] = {}
    for path in sorted(grids.SWEEPS.glob("*.yaml")):
        figure = (grids.read(path.stem).get("sweep") or {}).get("figure") or {}
        found.update(dict.fromkeys(figure.get("rows", [])))
    return list(found)


def curve_entry(run: Run, *, figures: Sequence[str], measures: Mapping[str, Callable[[Run], float | None]]) -> Any:
    """Return a run's line of curves.jsonl.

    Args:
        run: The run.
        figures: Metrics beside those that every run keeps.
        measures: Name -> what to measure over the run's full curves.
    """
    logged = dict.fromkeys(key for line in run.metrics for key in line)
    scores = [key for key in logged if key.startswith("val") and key.count("/") == 1]
    scores = list(dict.fromkeys([*([run.monitor] if run.monitor in logged else []), *scores]))[:SCORES]
    curves = {}
    for key in dict.fromkeys([*scores, *DRAWN, *figures]):
        series = derived(run, key)
        if series[0]:
            curves[key] = thinned(*series, points=points_of(key))
    measured = {name: measure(run) for name, measure in measures.items()}
    entry: dict[str, Any] = {"experiment": run.experiment, "name": run.name}
    if (stopped := run.record.get("diverged_at")) is not None:
        entry["diverged_at"] = stopped
    kept = {name: float(f"{v:.10g}") for name, v in measured.items() if v is not None and math.isfinite(v)}
    return {**entry, "measures": kept, "curves": curves}


# ----------------------------------------------------------------------------------------------------------- files


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return old rows with new ones put in the place of those of the same experiment and name, in a fixed order."""
    rows = {(row.get("experiment", ""), row.get("name", "")): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write records.csv: fixed columns first, then every score that any run has."""
    scores = sorted({key for row in rows for key in row if key not in FACTS})
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as file:
        writer = csv.DictWriter(file, [*FACTS, *scores], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """Open a file to be written beside `path`, and move it there when it is whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        yield file
    temporary.replace(path)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process writes the records of a folder: two sweeps may end at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _objects(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _write_objects(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    with _replacing(path) as file:
        file.writelines(json.dumps(entry, separators=(",", ":"), default=str) + "\n" for entry in objects)


def read_curves(records: Path) -> dict[Key, dict[str, Any]]:
    """Return the lines of the curves.jsonl beside records.csv."""
    return {(e["experiment"], e["name"]): e for e in _objects(records.parent / "curves.jsonl")}


def read_settings(records: Path) -> dict[str, dict[str, Any]]:
    """Return setting -> flat configuration, of the settings.jsonl beside records.csv."""
    return {entry["setting"]: entry["config"] for entry in _objects(records.parent / "settings.jsonl")}


def add(runs: Iterable[Run], records: Path, *, measures: Mapping[str, Callable[[Run], float | None]]) -> list[Row]:
    """Bring records.csv and its two companions up to date with runs that have an outcome, and return all rows."""
    chosen, figures = [run for run in runs if recordable(run)], figure_metrics()
    rows = [record_row(run) for run in chosen]
    entries = [curve_entry(run, figures=figures, measures=measures) for run in chosen]
    flat = {row["setting"]: setting(run) for row, run in zip(rows, chosen, strict=True)}
    with _alone(records.parent):
        merged = merge(read_rows(records), rows)
        settings = read_settings(records) | {
            name: {key: value for key, value in found.items() if key not in OWN} for name, found in flat.items()
        }
        curves = read_curves(records) | {(e["experiment"], e["name"]): e for e in entries}
        used, known = {row["setting"] for row in merged}, {(row["experiment"], row["name"]) for row in merged}
        write_rows(records, merged)
        lines = [{"setting": name, "config": settings[name]} for name in sorted(settings) if name in used]
        _write_objects(records.parent / "settings.jsonl", lines)
        _write_objects(records.parent / "curves.jsonl", [curves[key] for key in sorted(curves) if key in known])
    return merged


# ------------------------------------------------------------------------------------------------------- and back


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that `groups.flatten` makes into `flat` again."""
    config: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node: Any = config
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and leaf not in node:
            node[leaf] = value
        else:  # a key that holds a value and others below it
            config[path] = value
    return config


def record_of(row: Row, flat: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run.json that a recorded run stands for, with what the records know of it."""
    config = _nested(flat)
    options = config.get("opt") if isinstance(config.get("opt"), dict) else {}
    config["opt"] = {**(options or {}), "lr": number(row["lr"]), "weight_decay": number(row["weight_decay"])}
    finished = row.get("status") != "diverged"
    minus = "-" if row.get("better") == "lower" else ""
    record: dict[str, Any] = {
        "experiment": row["experiment"], "name": row["name"], "status": "finished" if finished else "failed",
        "opt_name": row["opt"], "seed": number(row["seed"]), "scale": row["scale"], "config": config,
        "config_hash": row.get("config_hash"), "command": row.get("command"), "data": {"name": row["data"]},
        "git": {"commit": row["commit"], "dirty": {"yes": True, "no": False}.get(row["dirty"])},
        "hardware": {"machine": row["machine"]},
        "versions": {"torch": row.get("torch") or "unknown"}, "ended": row["date"], "epochs": number(row["epochs"]),
        "steps": number(row.get("steps", "")), "wall_time_s": number(row["wall_time_s"]),
        "best": {"score": number(row["best"]), "epoch": number(row["best_epoch"])},
        "scores": {k: v for k in row if k not in FACTS and (v := number(row[k])) is not None},
        "measures": entry.get("measures", {}),
    }  # fmt: skip
    if row.get("monitor"):
        record["monitor"] = minus + row["monitor"]
    if not finished:
        record["diverged_at"] = entry.get("diverged_at", 0)
    if differing := row.get("recipe", ""):
        own = {k: v for k, v in config["opt"].items() if number(v) is not None}
        config["recipe"] = {row["opt"]: {k: "another" if k in differing.split() else v for k, v in own.items()}}
    return record


def metrics_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that a recorded run's curves stand for."""
    lines: dict[int, dict[str, Any]] = {}
    for key, (steps, epochs, values) in entry.get("curves", {}).items():
        for step, epoch, value in zip(steps, epochs, values, strict=True):
            lines.setdefault(step, {"step": step, "epoch": epoch})[key] = value
    return [lines[step] for step in sorted(lines)]


def as_recorded(run: Run) -> Run:
    """Return a run with the curves that the records keep of it: what is made of it can be made from them again."""
    return replace(run, metrics=metrics_of(curve_entry(run, figures=(), measures={})))


def recorded_runs(records: Path) -> dict[Key, Run]:
    """Return every recorded run as scripts read one."""
    settings, curves = read_settings(records), read_curves(records)
    found = {}
    for row in read_rows(records):
        key = row["experiment"], row["name"]
        entry = curves.get(key, {})
        folder = records.parent / "runs" / row["experiment"] / row["name"]
        found[key] = Run(folder, record_of(row, settings.get(row["setting"], {}), entry), metrics_of(entry))
    return found


def restore(records: Path, root: Path) -> int:
    """Write a run folder for every recorded run under `root`, and return how many."""
    runs = recorded_runs(records)
    for (experiment, name), run in runs.items():
        folder = root / experiment / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(run.record), encoding="utf-8")
        lines = (json.dumps(line, separators=(",", ":")) + "\n" for line in run.metrics)
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(runs)
