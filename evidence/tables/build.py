"""A sweep's rows and its table, as its file in configs/sweep asks for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence import contrasts, sweeps
from evidence.paper import PaperNumber
from evidence.records.row import ResultRow
from evidence.records.store import add, read_rows
from evidence.runs.run import ReadError
from evidence.tables import by_setting, cells
from evidence.tables.cells import Cell, Identify, fill, sweep_cells
from evidence.tables.render import write_page


@dataclass(frozen=True)
class SweepRows:
    """The rows behind a sweep's table and figure.

    Attributes:
        sweep: Its name.
        spec: `sweep` of its file.
        cells: Its cells with their rows; empty where the file names experiments instead.
        rows: The rows of the experiments that the file names.
    """

    sweep: str
    spec: Mapping[str, Any]
    cells: Sequence[Cell]
    rows: Sequence[ResultRow]

    @property
    def title(self) -> str:
        """Above table and figure."""
        return str(self.spec.get("title", self.sweep))


def collect(
    sweep: str, scale: str, typed: Mapping[str, str], *, runs: Path, records: Path, identify: Identify
) -> SweepRows | None:
    """Return a sweep's rows, and add those of run folders to the records; None for a grid without table and figure.

    Raises:
        ReadError: There is no such sweep, or no finished run of the experiments that it names.
    """
    if not sweeps.read(sweep):
        raise ReadError(f"there is no sweep {sweep}; see configs/sweep")
    spec = sweeps.read(sweep).get("sweep") or {}
    if not spec.get("table") and not spec.get("figure"):
        return None
    recorded = {row.key: row for row in read_rows(records)}
    if experiments := (spec.get("table") or spec["figure"]).get("experiments"):
        fresh = by_setting.load_rows(experiments, runs=runs)
        rows = [
            row for row in {**recorded, **{row.key: row for row in fresh}}.values() if row.experiment in experiments
        ]
        data = SweepRows(sweep, spec, [], rows)
        if not any(row.finished for row in rows):
            raise ReadError(f"no finished run of {', '.join(experiments)} in {runs}; make {sweep} makes them")
    else:
        data = SweepRows(sweep, spec, sweep_cells(sweep, scale, typed, identify=identify), [])
        fresh = fill(data.cells, runs=runs, recorded=recorded)
    if fresh:
        add(fresh, records)
    return data


def write_table(data: SweepRows, paper: Sequence[PaperNumber], folder: Path) -> None:
    """Write the table of a sweep that has one, and print it."""
    spec, note = data.spec.get("table"), str(data.spec.get("note", "")).rstrip()
    if not spec:
        return
    if data.rows and spec.get("pairs"):
        pairs = [(ours, theirs) for ours, theirs in spec["pairs"]]
        rows = contrasts.with_scores(data.rows, spec["scores"]) if "scores" in spec else data.rows
        page, notes = contrasts.tabulate(contrasts.contrasts(rows, pairs)), [contrasts.NOTE, *filter(None, [note])]
    elif data.rows:
        page, notes = by_setting.tabulate(data.rows, spec, paper), [note]
    else:
        page, notes = cells.tabulate(data.cells, spec, paper), [cells.NOTE, *filter(None, [note])]
    text = "\n".join(["", *notes, ""])
    write_page(folder, data.sweep, title=data.title, heads=page[0], rows=page[1:], notes=text)
