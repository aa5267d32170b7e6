"""What the runs are doing: finished, running, waiting, interrupted, failed, broken; losses, rates, time left."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evidence import sweeps
from evidence.runs.progress import RunProgress, iter_progress, read_progress
from evidence.runs.run import ReadError
from evidence.runs.status_text import report
from evidence.tables.cells import sweep_cells
from scripts.options import command, results, separated

USAGE = """
usage: python scripts/status.py [experiment=NAME | sweep=NAME [KEY=VALUE ...]] [rows=20] [runs=FOLDER]

Counts the runs of each experiment by what they are doing, and lists those that are not finished: the last loss, the
rate and the time left of those that run; the reason and the log of those that failed.

  experiment=NAME  only this one
  sweep=NAME       only the cells of a sweep, those without a folder as waiting; scale=full and what else was typed too
  rows=20          runs shown of each kind
  runs=FOLDER      default results/runs

finished     its record says so, and its metrics are whole
running      a process holds its folder, or its job is in the queue
waiting      asked for, not started yet; with sweep= also what nobody was asked for
interrupted  stopped by a signal, or its process is gone: the same command goes on, `make retry` gives it
failed       it says why; a run that diverged would diverge again
broken       its files cannot be read: move the folder away, or repair it
"""


def expected(sweep: str, scale: str, typed: Mapping[str, str], *, runs: Path) -> list[Path]:
    """Return the folders of a sweep's cells, whether they exist or not.

    Raises:
        ReadError: There is no such sweep.
    """
    from launch.compose import identify  # Hydra takes a second to load

    if not sweeps.read(sweep):
        known = ", ".join(sorted(path.stem for path in sweeps.SWEEPS.glob("*.yaml")))
        raise ReadError(f"sweep={sweep} is not known; choose one of: {known}")
    cells = sweep_cells(sweep, scale, typed, identify=identify)
    return list(dict.fromkeys(runs / experiment / name for cell in cells for experiment, name in cell.keys.values()))


def of_sweep(folders: Iterable[Path]) -> list[RunProgress]:
    """Return the states of a sweep's cells."""
    return [
        read_progress(folder) if folder.is_dir() else RunProgress(folder, "waiting", "not asked for yet")
        for folder in folders
    ]


def gathered(options: Mapping[str, str], typed: Mapping[str, str]) -> list[RunProgress]:
    """Return the progress of the runs that the options ask for.

    Raises:
        ReadError: There are none.
    """
    runs = Path(options["runs"])
    if options["sweep"]:
        return of_sweep(expected(options["sweep"], options["scale"] or "mini", typed, runs=runs))
    gathered_states = list(iter_progress(runs, options["experiment"] or None))
    if not gathered_states:
        what = f"runs of experiment={options['experiment']}" if options["experiment"] else "runs"
        raise ReadError(f"no {what} in {runs}; make one with: make {options['experiment'] or 'imagenet-resnet18'}")
    return gathered_states


def main(words: Sequence[str]) -> int:
    """Print the progress of the runs."""
    defaults = {"experiment": "", "sweep": "", "scale": "", "rows": "20", "runs": results("runs")}
    options, typed = separated(words, defaults)
    if typed and not options["sweep"]:
        known = ", ".join(f"{name}=..." for name in defaults)
        raise ReadError(f"unknown argument {next(iter(typed))}=...; known: {known}; others go with sweep=NAME")
    if not options["rows"].isdecimal():
        raise ReadError(f"rows={options['rows']}: must be a whole number, 0 or more")
    print("\n".join(report(gathered(options, typed), int(options["rows"]))))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
