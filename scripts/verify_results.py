"""Make every committed table and figure again from the records alone, and compare.

Exit code: 0 where all are what the records say, 1 where one is not, 2 for wrong input.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/verify_results.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence import sweeps  # noqa: E402
from evidence.csv_files import read_csv  # noqa: E402
from evidence.records.row import FACTS, to_csv  # noqa: E402
from evidence.records.store import restore, rows_of_runs  # noqa: E402
from evidence.runs.run import ReadError, load_run  # noqa: E402
from scripts import claims, tables  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

USAGE = """
usage: python scripts/verify_results.py [results=FOLDER] [only=WORD] [readme=FILE]

Makes run folders of RESULTS/records.csv, curves.jsonl and settings.jsonl, runs every command that writes tables,
figures and the ledger of claims on them, and compares with RESULTS/tables and with the numbers beside RESULTS/figures
(pictures themselves differ between machines). Run folders that are still there must say what records.csv says; a run
made again at another commit is named and fails nothing.

  results=FOLDER  default results
  only=WORD       only files whose name holds this
  readme=FILE     whose tables are compared too; default README.md

example: python scripts/verify_results.py
"""
FOLDERS = ("toy", "benchmarks")  # results of other commands, which the ledger reads


class Outcome:
    """What has been compared so far."""

    def __init__(self) -> None:
        self.same, self.problems, self.repeated = 0, list[str](), list[str]()

    def compare(self, committed: Path, made: Path) -> None:
        """Compare a committed file with the one made anew, line by line."""
        if not made.exists():
            self.problems.append(f"{committed}: no command makes it from the records")
            return
        ours, theirs = (path.read_text(encoding="utf-8").splitlines() for path in (committed, made))
        if ours == theirs:
            self.same += 1
            return
        pairs = enumerate(zip(ours, theirs, strict=False), start=1)
        short = min(len(ours), len(theirs)) + 1
        line, (old, new) = next(
            ((n, pair) for n, pair in pairs if pair[0] != pair[1]), (short, ("", "another number of lines"))
        )
        self.problems.append(f"{committed}:{line} is not what the records say\n  there: {old}\n  made:  {new}")


def _scale(path: Path) -> str:
    """Return the scale of a sweep's committed table or figure: full if any of its runs is."""
    texts = [row.get("data, scale") or row.get("run") or "" for row in read_csv(path)]
    return "full" if any(re.search(r"(, |,)full\b", text) for text in texts) else "mini"


def makers(folder: Path, runs: Path, out: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Yield (name, call) for everything in results/tables and results/figures that a command of its own makes.

    Args:
        folder: The committed results.
        runs: Restored run folders.
        out: Where to write.
    """
    from scripts import sweep

    committed = {path.stem: path for kind in ("figures", "tables") for path in sorted((folder / kind).glob("*.csv"))}
    names = sorted(path.stem for path in sweeps.SWEEPS.glob("*.yaml"))
    for name in names:
        stems = [stem for stem in committed if stem == name or (stem.startswith(f"{name}-") and stem not in names)]
        if stems and sweeps.read(name).get("sweep", {}).keys() & {"table", "figure"}:
            scale = _scale(committed[stems[0]])
            words = [name, f"scale={scale}", f"runs={runs}", f"out={out}", f"records={out}/records.csv"]
            yield name, lambda words=words: sweep.main(words)
    norms = folder / "tables" / "claims-norms.md"
    if norms.exists():
        yield norms.stem, lambda: _norms(norms, runs, out)


def _norms(path: Path, runs: Path, out: Path) -> int:
    """Check the claims on norms again with the words that the committed page names."""
    from scripts import claims_norms

    found = re.search(r"`python scripts/claims_norms\.py ?([^`]*)`", path.read_text(encoding="utf-8"))
    words = found[1].split() if found else []
    return claims_norms.main([*words, f"runs={runs}", f"out={out}/tables/{path.name}"])


def _folders(folder: Path, outcome: Outcome) -> int:
    """Compare run folders that are still there with their rows, and return how many are not recorded yet."""
    rows = {(row["experiment"], row["name"]): row for row in read_csv(folder / "records.csv")}
    missing = 0
    runs = (load_run(path.parent) for path in sorted((folder / "runs").glob("*/*/run.json")))
    for run in rows_of_runs(run for run in runs if run is not None):
        row, made = rows.get(run.key), to_csv(run)
        if row is None:
            missing += 1
            continue
        wrong = [k for k in {*FACTS, *made} if k in row and row[k] != made.get(k, "")]
        if {"commit", "wall_time_s"} <= set(wrong):  # somebody ran it again; what is recorded stays what it was
            outcome.repeated.append(f"{run.experiment}/{run.name}: best {row['best']} there, {made['best']} here")
        elif wrong:
            told = ", ".join(f"{key}: {row[key]} there, {made.get(key, '')} in the run" for key in sorted(wrong)[:3])
            outcome.problems.append(f"{folder / 'records.csv'}: {run.experiment}/{run.name}: {told}")
        else:
            outcome.same += 1
    return missing


def remake(folder: Path, out: Path, readme: Path, problems: list[str]) -> None:
    """Write tables, figures and the ledger under `out`, from the records of `folder` alone."""
    runs = out / "runs"
    restore(folder / "records.csv", runs)
    for name in FOLDERS:
        if (folder / name).exists():
            (out / name).symlink_to((folder / name).resolve())
    words = [f"runs={runs}", f"records={out}/records.csv", f"out={out}/tables"]
    calls: list[tuple[str, Callable[[], int]]] = [("tables", lambda: tables.main([*words, "--figures"]))]
    calls += makers(folder, runs, out)
    calls.append(("claims", lambda: claims.main([f"records={out}/records.csv", f"out={out}/tables"])))
    if readme.exists() and "<!-- table:" in readme.read_text(encoding="utf-8"):
        calls.append(("README", lambda: _readme(readme, out)))
    for name, call in calls:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                code = call()
        except ReadError as error:
            problems.append(f"{name}: {error}")
            continue
        if code and name == "README":
            problems.append(f"{readme}: its tables are not what the records say")


def _readme(readme: Path, out: Path) -> int:
    with contextlib.redirect_stderr(io.StringIO()):
        return tables.main([f"records={out}/records.csv", f"readme={readme}", "--check"])


def main(words: Sequence[str]) -> int:
    """Make all again, compare, and say what differs."""
    values = parse(words, options={"results": results(), "only": "", "readme": "README.md"})
    folder, outcome = Path(values["results"].rstrip("/")), Outcome()
    if not (folder / "records.csv").exists():
        raise ReadError(f"there is no {folder / 'records.csv'}; make tables writes it")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        remake(folder, out, Path(values["readme"]), outcome.problems)
        for kind in ("", "tables", "figures"):
            endings = (".csv", ".jsonl") if kind == "" else (".md", ".csv", ".tex") if kind == "tables" else (".csv",)
            for path in sorted((folder / kind).glob("*")):
                if path.suffix in endings and values["only"] in path.name and path.name != "paper.csv":
                    outcome.compare(path, out / kind / path.name)
    for picture in sorted((folder / "figures").glob("*.png")):
        if not picture.with_suffix(".csv").exists():
            outcome.problems.append(f"{picture}: the numbers behind it are not beside it as .csv")
    missing = _folders(folder, outcome)
    print(*outcome.problems, sep="\n" if outcome.problems else "")
    if outcome.repeated:
        print(f"{len(outcome.repeated)} runs were made again at another commit than the recorded ones:")
        print(*(f"  {line}" for line in outcome.repeated[:5]), sep="\n")
    if missing:
        print(f"{missing} finished runs are not in the records yet: make tables adds them")
    print("Not from records, and not compared: results/toy and results/benchmarks; their own commands make them again.")
    verdict = f"FAIL: {len(outcome.problems)} differ" if outcome.problems else "PASS"
    print(f"{verdict}; {outcome.same} files and runs are what the records say")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
