"""One static site of all runs: results/reports/index.html (experiment=NAME: that one's pages)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import experiments, load_runs
from evidence.site import pages
from evidence.site.reports import write_experiment_report, write_run_report
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/report.py [experiment=NAME] [--pictures] [run=FOLDER] [runs=FOLDER] [out=FOLDER]

Writes OUT/index.html and the pages that it leads to: an overview, a page an experiment, a comparison of runs by chosen
curves, a page a run, the tables and the ledger of claims. Curves are drawn in the browser; --pictures also draws them
as files (SVG, PNG and their numbers as CSV), a few seconds an experiment.

  experiment=NAME  only this experiment's pages; without it, all that have runs
  --pictures       also draw OUT/EXPERIMENT/figures
  run=FOLDER       only the page of pictures of this run, report.html and figures/ in its folder
  runs=FOLDER      where runs lie; default results/runs
  out=FOLDER       where the site goes; default results/reports
  results=FOLDER   whose tables/ are shown; default the folder that OUT lies in

example: python scripts/report.py experiment=imagenet-resnet18
"""


def main(words: Sequence[str]) -> int:
    """Write what the command line asks for; print each page's path."""
    options = {"experiment": "", "run": "", "runs": results("runs"), "out": results("reports"), "results": ""}
    values = parse(words, options=options, flags=("pictures",))
    if values["run"]:
        print(write_run_report(Path(values["run"])))
        return 0
    root, out, chosen = Path(values["runs"]), Path(values["out"]), values["experiment"]
    known = experiments(root)
    if not known or (chosen and chosen not in known):
        load_runs(root, chosen or None)  # says what there is
    for name in [chosen] if chosen else known:
        make = write_experiment_report if values["pictures"] else pages.write_experiment
        print(make(root, name, out))
    if not chosen:
        pages.prune(out, known)
    print(pages.write_site(out, Path(values["results"] or out.parent)))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
