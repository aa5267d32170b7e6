"""Check the AdamP paper's claims about weight norms on our runs: projection slows their growth."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.claims.norms import page, select_runs
from evidence.records.store import rows_of_runs
from evidence.runs.run import ReadError, load_runs
from scripts.options import command, results, separated

USAGE = """
usage: python scripts/claims_norms.py [experiment=NAME] [runs=FOLDER] [out=FILE] [KEY=VALUE ...]

Compares the growth of weight norms of finished runs with opt=sgd, sgdp, adamw, adamp, weight decay 0 and seeds 0, 1, 2,
prints a table and writes it to FILE. All twelve runs must agree in data set, scale and configuration, the two of a
pair also in their learning rate. Exit code: 0 every claim holds, 1 one does not, 2 runs are missing or ambiguous.

  experiment=NAME  default imagenet-resnet18
  runs=FOLDER      default results/runs
  out=FILE         default results/tables/claims-norms.md
  seeds=0,1,2      which seeds
  KEY=VALUE        only runs with this in their configuration, e.g. train.epochs=12; also scale= and data=
  OPT.KEY=VALUE    the same for runs of one optimizer, e.g. sgd.lr=0.1

example: python scripts/claims_norms.py experiment=imagenet-resnet18 scale=mini
"""


def main(words: Sequence[str]) -> int:
    """Check the claims, print and write the table."""
    defaults = {"experiment": "imagenet-resnet18", "runs": results("runs"), "seeds": "0,1,2"}
    options, wanted = separated(words, {**defaults, "out": results("tables", "claims-norms.md")})
    try:
        seeds = sorted({int(seed) for seed in options["seeds"].split(",")})
    except ValueError:
        raise ReadError(f"seeds={options['seeds']} is no list of whole numbers such as 0,1,2") from None
    rows = rows_of_runs(load_runs(Path(options["runs"]), options["experiment"]))
    chosen, left_out = select_runs(rows, seeds, wanted, experiment=options["experiment"])
    shown = [word for word in words if not word.startswith(("runs=", "out="))]
    text, holds = page(chosen, left_out, seeds, words=shown)
    out = Path(options["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    print(text)
    print(f"{'PASS' if holds else 'FAIL'}: written to {out}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
