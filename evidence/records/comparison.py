"""Comparison of committed results with those made again from the records, and of run folders with their rows."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from evidence.csv_files import read_csv
from evidence.records.row import FACTS, to_csv
from evidence.records.store import rows_of_runs
from evidence.runs.run import load_run


@dataclass
class Comparison:
    """The outcome of comparing files and runs.

    Attributes:
        equal: How many are what the records say.
        problems: What differs.
        repeated: Runs that were made again at another commit than the recorded ones.
        unrecorded: Finished runs that the records do not have.
    """

    equal: int = 0
    problems: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    unrecorded: int = 0

    def compare_files(self, committed: Path, remade: Path) -> None:
        """Compare a committed file with the one made anew, line by line."""
        if not remade.exists():
            self.problems.append(f"{committed}: no command makes it from the records")
            return
        texts = (path.read_text(encoding="utf-8").splitlines() for path in (committed, remade))
        for line, (old, new) in enumerate(itertools.zip_longest(*texts, fillvalue="no such line"), start=1):
            if old != new:
                self.problems.append(f"{committed}:{line} is not what the records say\n  there: {old}\n  made:  {new}")
                return
        self.equal += 1

    def compare_results(self, folder: Path, remade: Path, *, only: str = "") -> None:
        """Compare records, tables, scorecards and figures' numbers in a folder of results with those made again.

        Args:
            folder: The committed results.
            remade: The folder of those made again.
            only: Only files whose name holds this.
        """
        kinds = {
            "": (".csv", ".jsonl"),
            "tables": (".md", ".csv", ".tex"),
            "figures": (".csv",),
            "scorecards": (".md",),
        }
        for kind, endings in kinds.items():
            for path in sorted((folder / kind).glob("*")):
                if path.suffix in endings and only in path.name and path.name != "paper.csv":
                    self.compare_files(path, remade / kind / path.name)
        for picture in sorted((folder / "figures").glob("*.png")):
            if not picture.with_suffix(".csv").exists():
                self.problems.append(f"{picture}: the numbers behind it are not beside it as .csv")

    def compare_runs(self, folder: Path) -> None:
        """Compare the run folders that are still in a folder of results with their rows."""
        rows = {(row["experiment"], row["name"]): row for row in read_csv(folder / "records.csv")}
        runs = (load_run(path.parent) for path in sorted((folder / "runs").glob("*/*/run.json")))
        for run in rows_of_runs(run for run in runs if run is not None):
            row, made = rows.get(run.key), to_csv(run)
            if row is None:
                self.unrecorded += 1
                continue
            wrong = [k for k in {*FACTS, *made} if k in row and row[k] != made.get(k, "")]
            if {"commit", "wall_time_s"} <= set(wrong):  # somebody ran it again; what is recorded stays what it was
                self.repeated.append(f"{run.experiment}/{run.name}: best {row['best']} there, {made['best']} here")
            elif wrong:
                text = ", ".join(
                    f"{key}: {row[key]} there, {made.get(key, '')} in the run" for key in sorted(wrong)[:3]
                )
                self.problems.append(f"{folder / 'records.csv'}: {run.experiment}/{run.name}: {text}")
            else:
                self.equal += 1

    def report(self) -> list[str]:
        """Return what differs and the verdict, as lines."""
        lines = list(self.problems)
        if self.repeated:
            lines.append(f"{len(self.repeated)} runs were made again at another commit than the recorded ones:")
            lines += [f"  {line}" for line in self.repeated[:5]]
        if self.unrecorded:
            lines.append(f"{self.unrecorded} finished runs are not in the records yet: make tables adds them")
        lines.append("Not compared: results/toy and results/benchmarks, which their own commands make again.")
        verdict = f"FAIL: {len(self.problems)} differ" if self.problems else "PASS"
        return [*lines, f"{verdict}; {self.equal} files and runs are what the records say"]
