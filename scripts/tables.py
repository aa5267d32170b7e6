"""Collect runs into results/records.csv and write tables from it: ours beside the paper's numbers.

Run folders are not committed; `records.csv` and its companions are (`evidence.records.store`). Every table, and the
tables in docs/results.md, come from them alone, so a number in a table always has a row that says which commit and
machine made it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.paper import read_paper
from evidence.records.store import add, read_rows, recorded_runs, rows_of_runs
from evidence.runs.run import ReadError, load_runs
from evidence.tables.formats import rewrite_blocks, write_tables
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/tables.py [experiment=NAME] [--page] [--figures] [--check] [records=FILE] [out=FOLDER] ...

Adds every run under RUNS that finished or diverged to RECORDS and its companions curves.jsonl and settings.jsonl (rows
of other runs stay) and writes OUT/EXPERIMENT.md, .csv and .tex: a row an optimizer and weight decay, with the paper's
number, our mean and deviation over seeds, the interval of the paired difference to the best, and the epochs to reach a
target.

  experiment=NAME  only this experiment; without it, all
  --page           also rewrite the blocks "<!-- table:NAME begin -->" ... "<!-- table:NAME end -->" of PAGE
  --figures        also draw the norms and learning curves that the README shows, into the folder figures beside OUT
  --check          write nothing; exit 1 if the blocks of PAGE are not what RECORDS says
  runs=FOLDER      default results/runs
  records=FILE     default results/records.csv
  out=FOLDER       default results/tables
  paper=FILE       published numbers; default results/paper.csv
  page=FILE        default docs/results.md

example: python scripts/tables.py experiment=imagenet-resnet18 --page
"""

PICTURED = ("imagenet-resnet18",)  # whose figures the README shows


def draw_figures(records: Path, folder: Path, *, only: str = "") -> list[Path]:
    """Draw the norms and learning curves that the README shows from the records; return the numbers' paths."""
    from evidence.figures.curves import draw_comparison  # matplotlib
    from evidence.records.settings import group_by_setting
    from evidence.site.reports import slug

    runs = recorded_runs(records)
    drawn = []
    for name in (name for name in PICTURED if only in ("", name)):
        for (data, scale), groups in group_by_setting([run for run in runs if run.experiment == name]).items():
            prefix = f"{name}-{slug(data)}-{slug(scale)}-"
            drawn += draw_comparison(groups, folder, prefix=prefix, only=("norms", "learning"))
    return [figure.svg.with_suffix(".csv") for figure in drawn]


def main(words: Sequence[str]) -> int:
    """Do what the command line asks for and print each file written."""
    options = {
        "experiment": "", "runs": results("runs"), "records": results("records.csv"), "out": results("tables"),
        "paper": "results/paper.csv", "page": "docs/results.md",
    }  # fmt: skip
    flags = ("--page", "--check", "--figures")
    values = parse([word for word in words if word not in flags], options=options)
    paper, page = read_paper(Path(values["paper"])), Path(values["page"])
    records, only = Path(values["records"]), values["experiment"]
    try:
        text = page.read_text(encoding="utf-8") if {"--check", "--page"} & set(words) else ""
    except OSError as error:
        raise ReadError(f"cannot read {page}: {error.strerror}") from None
    if "--check" in words:
        if rewrite_blocks(text, read_rows(records), paper, only=only) == text:
            return 0
        again = "run: python scripts/tables.py --page"
        print(f"{page} is stale: its tables are not what {records} says; {again}", file=sys.stderr)
        return 1
    try:
        rows = add(rows_of_runs(load_runs(Path(values["runs"]), only or None)), records)
    except ReadError:
        rows = read_rows(records)  # tables can be made anew without the run folders
        if not any(only in ("", row.experiment) for row in rows):
            raise
    print(records)
    for name in sorted({row.experiment for row in rows if only in ("", row.experiment)}):
        print(*write_tables(name, rows, paper, folder=Path(values["out"])), sep="\n")
    if "--figures" in words:
        print(*draw_figures(records, Path(values["out"]).parent / "figures", only=only), sep="\n")
    if "--page" in words:
        page.write_text(rewrite_blocks(text, rows, paper, only=only), encoding="utf-8")
        print(page)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
