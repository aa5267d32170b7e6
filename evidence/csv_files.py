"""Reading and writing CSV files of text cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none where there is no file; a missing cell is an empty text."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def read_cells(path: Path) -> list[list[str]]:
    """Return the lines of a CSV file as lists of cells, the headings first."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_csv(path: Path, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write rows of text, with Unix line ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        writer.writerows(rows)
