"""Filterbank, q over training and score of every tag of a trained audio network (run=FOLDER)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.trained.filterbank import write_filterbank
from scripts.options import command, parse

USAGE = """
usage: python scripts/filterbank.py run=FOLDER [checkpoint=best] [split=test] [data_root=FOLDER]

Draws the learned filterbank of an audio run and q over its training, and scores every tag or word of a split.
Writes RUN/figures/filterbank.png, .svg and .csv, and RUN/tags.csv and tags.md.

  run=FOLDER        a run of speech-commands, mtat or dcase: results/runs/EXPERIMENT/NAME
  checkpoint=best   best or last
  split=test        val or test; none draws only
  data_root=FOLDER  where the clips lie now, if not where the run had them

example: python scripts/filterbank.py run=results/runs/speech-commands/NAME
"""
OPTIONS = {"run": "", "checkpoint": "best", "split": "test", "data_root": ""}


def main(argv: Sequence[str]) -> int:
    values = parse(argv, options=OPTIONS)
    if not values["run"]:
        raise ReadError("run=FOLDER is missing; see --help")
    if values["split"] not in ("val", "test", "none"):
        raise ReadError(f"split={values['split']}: choose val, test or none")
    folder = Path(values["run"])
    written = write_filterbank(
        folder, checkpoint=values["checkpoint"], split=values["split"], data_root=values["data_root"]
    )
    if "tags.md" in written:
        print((folder / "tags.md").read_text(encoding="utf-8"))
    print(f"written to {folder}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
