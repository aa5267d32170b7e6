"""Run one committed cell again, at its commit, and compare its scores with the recorded ones within a tolerance."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evidence.records.examples import examples_of
from evidence.records.row import ResultRow, result_row
from evidence.records.store import read_rows
from evidence.runs.run import ReadError, load_run, number
from scripts.options import command, parse, results

ROOT = Path(__file__).resolve().parents[1]
USAGE = """
usage: python scripts/rerun.py cell=EXPERIMENT/NAME [at=commit|here] [tolerance=POINTS] [records=FILE] [more=WORDS]

Trains one run of RECORDS again with its recorded words and compares every score with the recorded one. The run goes to
a temporary folder; nothing committed changes. Exit code: 0 all within the tolerance, 1 one is not, 2 for wrong input.

  cell=...        a row of records.csv: its experiment and name, or a part of both that only one row has
  at=commit       the code of the recorded commit, checked out beside (default); here: this checkout's
  tolerance=0.5   how far a score may be off; without it 0 where processor, dispatch, threads and versions are the
                  recorded ones, else three standard errors of a difference of two runs, by the setting's seeds or, for
                  a share of right answers, by its examples, whichever is larger: rounding acts as another seed would
  records=FILE    default results/records.csv
  more=WORDS      further words of the training command, e.g. more="train.device=cpu train.threads=1"

example: python scripts/rerun.py cell=adarem-resnet18/adarem,wd=0.0001,lr=0.4,mini,seed=0
"""
ERRORS = 3.0


def find(rows: Sequence[ResultRow], cell: str) -> ResultRow:
    """Return the one row that a cell names.

    Raises:
        ReadError: No row, or more than one, fits.
    """
    exact = [row for row in rows if "/".join(row.key) == cell]
    found = exact or [row for row in rows if cell and cell in "/".join(row.key)]
    if len(found) != 1:
        some = "".join(f"\n  {'/'.join(row.key)}" for row in found[:5])
        raise ReadError(f"cell={cell} fits {len(found)} rows of the records; it must fit one{some}")
    return found[0]


def words_of(row: ResultRow) -> list[str]:
    """Return the words of `scripts/train.py` that make a recorded run: those that its record and its name keep."""
    words = [f"experiment={row.experiment}", f"opt={row.opt_name}", f"scale={row.scale}", f"train.seed={row.seed}"]
    options = {"lr": row.lr, "weight_decay": row.weight_decay}
    words += [f"opt.{key}={options[key]:g}" for key in row.off_recipe or () if options.get(key) is not None]
    given = {word.partition("=")[0] for word in words}
    return words + [f"{key}={value}" for key, value in row.words.items() if key not in given]


@contextmanager
def checkout(commit: str, *, at: str, folder: Path) -> Iterator[Path]:
    """Yield the top folder of the code: this checkout, or one of the commit that is gone afterwards.

    Raises:
        ReadError: Git does not have the commit.
    """
    if at == "here":
        yield ROOT
        return
    top = folder / "code"
    git = ["git", "-C", str(ROOT), "worktree"]
    done = subprocess.run([*git, "add", "--detach", str(top), commit], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReadError(f"git cannot check out the recorded commit {commit}; at=here runs this checkout's code")
    try:
        yield top
    finally:
        subprocess.run([*git, "remove", "--force", str(top)], capture_output=True, check=False)


def tolerance_of(row: ResultRow, rows: Sequence[ResultRow], score: str, *, same_platform: bool) -> float:
    """Return how far a rerun's score may be off.

    Args:
        row: The recorded run.
        rows: All recorded runs: those of the same setting say how far seeds differ.
        score: Its key.
        same_platform: Whether what decides rounding is the recorded one: then runs repeat bit for bit.
    """
    if same_platform:
        return 0.0
    seeds = [other.scores[score] for other in rows if other.setting_key == row.setting_key and score in other.scores]
    error = statistics.stdev(seeds) if len(seeds) > 1 else 0.0
    share, count = row.scores[score] / 100, examples_of(row, score)
    if count:
        error = max(error, 100 * math.sqrt(max(share * (1 - share), 0) / count))
    return ERRORS * math.sqrt(2) * error


def compare(row: ResultRow, again: ResultRow, rows: Sequence[ResultRow], *, tolerance: float | None) -> list[str]:
    """Print a line a score, and return the scores that are further off than the tolerance."""
    same = bool(row.platform) and row.platform == again.platform and row.torch == again.torch
    if not row.platform:
        print("the record does not say on which processor it was made: not bitwise")
    elif not same:
        differing = [key for key in row.platform if row.platform[key] != again.platform.get(key)]
        print(f"not bitwise: {', '.join(differing) or 'torch'} differ from the record's")
    wrong = []
    for score, recorded in sorted(row.scores.items()):
        allowed = tolerance_of(row, rows, score, same_platform=same) if tolerance is None else tolerance
        obtained = again.scores.get(score, math.nan)
        inside = abs(obtained - recorded) <= allowed or obtained == recorded
        off = "" if inside else ": OFF"
        print(f"{score}: recorded {recorded:.10g}, again {obtained:.10g}, tolerance {allowed:.4g}{off}")
        wrong += [] if inside else [score]
    return wrong


def main(words: Sequence[str]) -> int:
    """Run the cell again and compare."""
    options = {"cell": "", "at": "commit", "tolerance": "", "records": results("records.csv"), "more": ""}
    values = parse(words, options=options)
    tolerance = number(values["tolerance"]) if values["tolerance"] else None
    if values["tolerance"] and (tolerance is None or not tolerance >= 0):
        raise ReadError(f"tolerance={values['tolerance']} is not valid: a number of at least 0")
    if values["at"] not in ("commit", "here"):
        raise ReadError(f"at={values['at']} is not valid: commit or here")
    rows = read_rows(Path(values["records"]))
    row = find(rows, values["cell"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with checkout(row.commit_hash, at=values["at"], folder=folder) as top:
            argv = [
                *words_of(row),
                *values["more"].split(),
                f"paths.runs={folder}/runs",
                f"paths.reports={folder}/reports",
            ]
            print(f"scripts/train.py {' '.join(words_of(row))}", flush=True)
            environment = {**os.environ, "PYTHONPATH": str(top)}
            script = str(top / "scripts" / "train.py")
            code = subprocess.run([sys.executable, script, *argv], env=environment, cwd=top, check=False).returncode
        runs = [run for path in (folder / "runs").glob("*/*/run.json") if (run := load_run(path.parent)) is not None]
        if len(runs) != 1 or not (runs[0].finished or code == 1):
            raise ReadError(f"training ended with code {code} and left {len(runs)} runs")
        again = result_row(runs[0])
    if row.finished != again.finished:
        print(f"recorded {row.status}, again {again.status}: OFF")
        return 1
    wrong = compare(row, again, rows, tolerance=tolerance)
    print(f"FAIL: {len(wrong)} of {len(row.scores)} scores are off" if wrong else f"PASS: {len(row.scores)} scores")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
