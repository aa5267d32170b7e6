"""The ledger of the papers' claims: each with the verdict that the records give it, never one that somebody typed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.claims.ledger import read_claims
from evidence.claims.page import HEADS, page, row_of, summary
from evidence.claims.select import load
from evidence.claims.verdicts import judge_all
from evidence.csv_files import write_csv
from evidence.runs.run import ReadError
from scripts.options import command, parse, results

USAGE = """
usage: python scripts/claims.py [claim=WORD] [records=FILE] [out=FOLDER] [claims=FILE]

Judges every claim of the papers from the records and writes OUT/claims.md and claims.csv: a row a claim with where it
stands, the command that tests it, the scale of the runs it rests on, the published numbers, ours, and the verdict.

  claim=WORD     only claims whose id holds this; prints them, writes nothing
  records=FILE   default results/records.csv; toy/ and benchmarks/ are read beside it
  out=FOLDER     default results/tables
  claims=FILE    default results/claims.yaml
  paper=FILE     published numbers; default results/paper.csv

example: python scripts/claims.py claim=table-2-resnet18
"""


def main(words: Sequence[str]) -> int:
    """Judge, print and write."""
    options = {
        "claim": "",
        "records": results("records.csv"),
        "out": results("tables"),
        "claims": "results/claims.yaml",
    }
    values = parse(words, options={**options, "paper": "results/paper.csv"})
    records = load(Path(values["records"]), Path(values["paper"]))
    claims = list(read_claims(Path(values["claims"])))
    judged = zip(claims, judge_all(records, claims), strict=True)  # of all: one claim's q depends on the others
    rows = [row_of(claim, finding) for claim, finding in judged if values["claim"] in claim["id"]]
    if not rows:
        raise ReadError(f"claim={values['claim']} fits no id in {values['claims']}")
    if values["claim"]:
        for row in rows:
            told = dict(zip(HEADS, row, strict=True))
            print(f"{told['id']}: {told['verdict']}" + (f" ({told['size']})" if told["size"] else ""))
            print(f"  {told['claim']}\n  published {told['published'] or '–'}; ours {told['ours'] or '–'}")
            print(f"  {told['command']}")
        return 0
    out = Path(values["out"])
    write_csv(out / "claims.csv", HEADS, rows)
    (out / "claims.md").write_text(page(rows), encoding="utf-8")
    print(f"{summary(rows)}\nwritten to {out / 'claims.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
