"""Run the findings and say which no longer hold: what real packages do that one would not guess."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.runs.run import ReadError
from scripts import options

USAGE = """
usage: python -m scripts.findings [name=NAME] [folder=findings] [--table]

Runs every findings/NAME.sh, or one. Each installs its packages in a temporary folder, so it takes minutes and an index.
Exit code 1 when one no longer holds or could not be run.

  name=NAME  only this one
  --table    run nothing; write the table of findings/README.md from the scripts' headers
"""
FIELDS = ("Guess", "Happens", "Matters", "Instead", "Versions", "Date", "Guard")
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
LIMIT_S = 900


@dataclass(frozen=True)
class Finding:
    """One script and its header: what surprises in one sentence, and the fields of `FIELDS`."""

    path: Path
    surprise: str
    fields: dict[str, str]


def read(path: Path) -> Finding:
    """Read a script's header.

    Raises:
        ReadError: It lacks a field, or has one that is not known.
    """
    header = re.match(r"#!.*\n((?:#.*\n)+)", path.read_text())
    lines = [line[1:].strip() for line in header[1].splitlines()] if header else []
    fields: dict[str, str] = {}
    for line in lines[1:]:
        key, colon, value = line.partition(": ")
        if colon and key in FIELDS:
            fields[key] = value
        elif line and fields:
            fields[next(reversed(fields))] += f" {line}"
    if tuple(fields) != FIELDS:
        raise ReadError(f"{path} has the header fields {', '.join(fields)}; it must have {', '.join(FIELDS)}")
    return Finding(path, lines[0], fields)


def table(findings: Sequence[Finding]) -> str:
    """Return the findings as a Markdown table."""
    rows = ["| finding | what surprises | versions | date | guard in this project |", "|---|---|---|---|---|"]
    for finding in findings:
        cells = [f"[{finding.path.stem}]({finding.path.name})", finding.surprise]
        cells += [finding.fields[key] for key in ("Versions", "Date", "Guard")]
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def with_table(page: str, findings: Sequence[Finding]) -> str:
    """Return the page with its table written anew."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table(findings) + END + rest.partition(END)[2]


def run(finding: Finding) -> tuple[str, str]:
    """Run one script; return "holds", "changed" or "not run", and its last line."""
    try:
        done = subprocess.run(["bash", str(finding.path)], capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return "not run", f"took more than {LIMIT_S} s"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    changed = [line for line in lines if line.startswith("changed: ")]
    if done.returncode == 0:
        return "holds", lines[-1] if lines else ""
    return ("changed", changed[-1]) if changed else ("not run", lines[-1] if lines else f"exit code {done.returncode}")


def main(argv: Sequence[str]) -> int:
    """Run the findings, or write their table; return 1 if one does not hold."""
    given = options.parse(argv, options={"name": "", "folder": "findings"}, flags=("table",))
    folder = Path(given["folder"])
    findings = [read(path) for path in sorted(folder.glob("*.sh"))]
    if given["table"]:
        page = folder / "README.md"
        page.write_text(with_table(page.read_text(), findings))
        return 0
    chosen = [finding for finding in findings if given["name"] in ("", finding.path.stem)]
    if not chosen:
        names = ", ".join(finding.path.stem for finding in findings)
        raise ReadError(f"name={given['name']} is no finding; choose one of {names}")
    verdicts = []
    for finding in chosen:
        start = time.monotonic()
        verdict, line = run(finding)
        verdicts.append(verdict)
        said = finding.surprise if verdict == "holds" else line
        print(f"{verdict:8} {finding.path.stem} ({time.monotonic() - start:.0f} s): {said}", flush=True)
    print(f"{verdicts.count('holds')} of {len(verdicts)} findings hold")
    return 0 if set(verdicts) == {"holds"} else 1


if __name__ == "__main__":
    sys.exit(options.command(main, USAGE))
