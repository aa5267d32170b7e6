"""Write docs/papers.md: every table and figure of the papers, its command, settings, seeds and verdict."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence import papers
from evidence.runs.run import ReadError
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/papers.py [check=true] [results=FOLDER] [out=FILE]

Makes the page of RESULTS/papers.yaml, the sweeps, and the committed numbers, tables, figures, records and claims.

  check=true      write nothing; exit code 1 if OUT is not what they say
  results=FOLDER  default results
  out=FILE        default docs/papers.md
"""


def main(words: Sequence[str]) -> int:
    """Write the page, or compare it."""
    values = parse(words, options={"check": "false", "results": results(), "out": "docs/papers.md"})
    if values["check"] not in ("true", "false"):
        raise ReadError(f"check is {values['check']!r}; it must be true or false")
    folder, out = Path(values["results"]), Path(values["out"])
    text = papers.page(papers.read_items(folder / "papers.yaml"), folder)
    if values["check"] == "true":
        if out.exists() and out.read_text(encoding="utf-8") == text:
            return 0
        print(f"{out} is stale; run: make papers", file=sys.stderr)
        return 1
    out.write_text(text, encoding="utf-8")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
