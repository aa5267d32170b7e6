"""The table and the figure of a sweep: the published numbers beside ours, with what the seeds say of differences."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.paper import read_paper
from evidence.runs.run import ReadError
from evidence.tables.build import collect, write_table
from scripts.options import command, results, separated

USAGE = """
usage: python scripts/sweep.py SWEEP [scale=full] [runs=FOLDER] [out=FOLDER] [records=FILE] [paper=FILE] [KEY=VALUE ...]

Writes OUT/tables/SWEEP.md and .csv from the runs of a sweep (configs/sweep/SWEEP.yaml), and OUT/figures/SWEEP.png, .svg
and .csv if the sweep asks for a figure. Cells that have not been run are shown as such. Where the file names
experiments (table-3, table-e2, figure-4), every recorded setting of them is a row or a line, whatever its scale.

  runs=FOLDER  default results/runs
  out=FOLDER   default results
  records=FILE what the runs are added to, and where those are found whose folders are gone; default OUT/records.csv
  paper=FILE   published numbers; default results/paper.csv
  KEY=VALUE    what was typed beside the sweep, e.g. train.seed=0 or opt=sgdp

example: python scripts/sweep.py table-1 scale=mini
"""


def main(words: Sequence[str]) -> int:
    """Write the table and the figure of the sweep that the first word names."""
    from launch.compose import identify  # Hydra takes a second to load

    if not words or "=" in words[0]:
        raise ReadError("name a sweep, e.g. python scripts/sweep.py table-1")
    defaults = {"scale": "mini", "runs": results("runs"), "out": results(), "records": "", "paper": "results/paper.csv"}
    sweep, (options, typed) = words[0], separated(words[1:], defaults)
    out = Path(options["out"].rstrip("/"))
    places = {"runs": Path(options["runs"]), "records": Path(options["records"] or out / "records.csv")}
    data = collect(sweep, options["scale"], typed, identify=identify, **places)
    if data is None:
        raise ReadError(f"configs/sweep/{sweep}.yaml asks for neither a table nor a figure")
    write_table(data, read_paper(Path(options["paper"])), out / "tables")
    if data.spec.get("figure"):
        from evidence.figures.sweep import draw_figure  # matplotlib

        print(*draw_figure(data, out / "figures"), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
