"""Records: what every committed table and figure is made from.

Run folders are not committed. Beside each other lie, in results/,

- `records.csv`: a row per run that finished or diverged: setting, scores, norms, commit, machine, command;
- `settings.jsonl`: the configuration behind each `setting` of records.csv, once for all of its seeds;
- `curves.jsonl`: a line per run: the curves that tables and figures draw, thinned, and measures of the whole run.

`restore` makes run folders of them again, so a table can be made anew, and checked, on a machine that has never trained
anything.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from evidence import sweeps
from evidence.csv_files import read_csv
from evidence.records.row import FACTS, Curve, ResultRow, as_run, from_csv, result_row, to_csv
from evidence.runs.run import Run


class CurveEntry(TypedDict, total=False):
    """A line of curves.jsonl."""

    experiment: str
    name: str
    diverged_at: int
    overrides: dict[str, str]
    examples: dict[str, int]
    platform: dict[str, Any]
    measures: dict[str, float]
    curves: dict[str, Curve]


class SettingEntry(TypedDict):
    """A line of settings.jsonl."""

    setting: str
    config: dict[str, Any]


def is_recordable(run: Run) -> bool:
    """Whether a run has an outcome: it finished, or its loss stopped being finite."""
    return run.finished or run.record.get("diverged_at") is not None


def figure_metrics() -> list[str]:
    """Return the metrics that the sweeps' figures draw."""
    specs = (sweeps.read(path.stem).get("sweep") or {} for path in sorted(sweeps.SWEEPS.glob("*.yaml")))
    return list(dict.fromkeys(key for spec in specs for key in (spec.get("figure") or {}).get("rows", [])))


def rows_of_runs(runs: Iterable[Run]) -> list[ResultRow]:
    """Return the rows of the runs that have an outcome."""
    figures = figure_metrics()
    return [result_row(run, figures=figures) for run in runs if is_recordable(run)]


def read_rows(records: Path) -> list[ResultRow]:
    """Return the rows of records.csv with what its companions know of them, none where there is no file."""
    settings = {entry["setting"]: entry["config"] for entry in _objects(records.parent / "settings.jsonl")}
    curves: dict[tuple[str, str], CurveEntry] = {
        (entry["experiment"], entry["name"]): entry for entry in _objects(records.parent / "curves.jsonl")
    }
    rows = []
    for row in map(from_csv, read_csv(records)):
        entry = curves.get(row.key, CurveEntry())
        row = replace(row, config=settings.get(row.setting_key, {}), overrides=entry.get("overrides"))
        measures, kept = entry.get("measures", {}), entry.get("curves", {})
        row = replace(row, examples=entry.get("examples", {}), platform=entry.get("platform", {}))
        rows.append(replace(row, measures=measures, curves=kept, diverged_at=entry.get("diverged_at")))
    return rows


def merge(old: Iterable[ResultRow], new: Iterable[ResultRow]) -> list[ResultRow]:
    """Return old and new rows, in a fixed order; a new row replaces an old one of the same run."""
    rows = {row.key: row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def add(rows: Sequence[ResultRow], records: Path) -> list[ResultRow]:
    """Bring records.csv and its two companions up to date with these rows, and return all rows."""
    with _locked(records.parent):
        merged = merge(read_rows(records), rows)
        # Of one setting the newest configuration stays: its keys are in the order of the latest code.
        config = {row.setting_key: row.config for row in [*merged, *rows] if row.config}
        write_rows(records, merged)
        settings = [SettingEntry(setting=key, config=dict(config[key])) for key in sorted(config)]
        _write_objects(records.parent / "settings.jsonl", settings)
        _write_objects(records.parent / "curves.jsonl", map(_curve_entry, merged))
    return merged


def _curve_entry(row: ResultRow) -> CurveEntry:
    entry = CurveEntry(experiment=row.experiment, name=row.name)
    if row.diverged_at is not None:
        entry["diverged_at"] = row.diverged_at
    if row.overrides is not None:
        entry["overrides"] = dict(row.overrides)
    if row.examples:
        entry["examples"] = dict(row.examples)
    if row.platform:
        entry["platform"] = dict(row.platform)
    return {**entry, "measures": dict(row.measures), "curves": dict(row.curves)}


def recorded_runs(records: Path) -> list[Run]:
    """Return every recorded run as if its folder were there."""
    return [as_run(row, records.parent / "runs") for row in read_rows(records)]


def restore(records: Path, root: Path) -> int:
    """Write a run folder for every recorded run under `root`, and return how many."""
    runs = [as_run(row, root) for row in read_rows(records)]
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "run.json").write_text(json.dumps(run.record), encoding="utf-8")
        lines = (json.dumps(line, separators=(",", ":")) + "\n" for line in run.metrics)
        (run.folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    return len(runs)


# ----------------------------------------------------------------------------------------------------------- files


def write_rows(records: Path, rows: Sequence[ResultRow]) -> None:
    """Write records.csv: fixed columns first, then every score that any run has."""
    scores = sorted({key for row in rows for key in row.scores})
    records.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(records) as file:
        writer = csv.DictWriter(file, [*FACTS, *scores], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(to_csv, rows))


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    """Open a file to be written beside `path`, and move it there when it is whole."""
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        yield file
    temporary.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process writes the records of a folder: two sweeps may end at once."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _objects(path: Path) -> list[Any]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _write_objects(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    with _replacing(path) as file:
        file.writelines(json.dumps(entry, separators=(",", ":"), default=str) + "\n" for entry in objects)
