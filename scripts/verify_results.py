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

from evidence import sweeps
from evidence.csv_files import read_csv
from evidence.records.comparison import Comparison
from evidence.records.store import restore
from evidence.runs.run import ReadError
from scripts import claims, scorecard_table, tables
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/verify_results.py [results=FOLDER] [only=WORD] [page=FILE]

Makes run folders of RESULTS/records.csv, curves.jsonl and settings.jsonl, runs every command that writes tables,
figures and the ledger of claims on them, and compares with RESULTS/tables and with the numbers beside RESULTS/figures
(pictures themselves differ between machines). RESULTS/scorecards/*.md are made again from the JSON beside them.
Run folders that are still there must say what records.csv says; a run made again at another commit is named and fails
nothing.

  results=FOLDER  default results
  only=WORD       only files whose name holds this
  page=FILE       whose tables are compared too; default docs/results.md

example: python scripts/verify_results.py
"""
FOLDERS = ("toy", "benchmarks")  # results of other commands, which the ledger reads


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

    recorded = re.search(r"`python scripts/claims_norms\.py ?([^`]*)`", path.read_text(encoding="utf-8"))
    words = recorded[1].split() if recorded else []
    return claims_norms.main([*words, f"runs={runs}", f"out={out}/tables/{path.name}"])


def remake(folder: Path, out: Path, page: Path, problems: list[str]) -> None:
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
    if (cards := folder / "scorecards").exists():
        calls.append(("scorecards", lambda: scorecard_table.main([f"cards={cards}", f"out={out}/scorecards"])))
    if page.exists() and "<!-- table:" in page.read_text(encoding="utf-8"):
        checked = [f"records={out}/records.csv", f"page={page}", "--check"]
        calls.append((f"{page}: its tables are not what the records say", lambda: tables.main(checked)))
    for name, call in calls:
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = call()
        except ReadError as error:
            problems.append(f"{name}: {error}")
        else:
            problems += [name] if code and name.startswith(str(page)) else []


def main(words: Sequence[str]) -> int:
    """Make all again, compare, and say what differs."""
    values = parse(words, options={"results": results(), "only": "", "page": "docs/results.md"})
    folder, outcome = Path(values["results"].rstrip("/")), Comparison()
    if not (folder / "records.csv").exists():
        raise ReadError(f"there is no {folder / 'records.csv'}; make tables writes it")
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        remake(folder, out, Path(values["page"]), outcome.problems)
        outcome.compare_results(folder, out, only=values["only"])
    outcome.compare_runs(folder)
    print(*outcome.report(), sep="\n")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
