"""Boxes that a trained detector finds on validation pictures, and precision over recall (run=FOLDER)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.trained.detections import write_detections
from scripts.options import command, parse

USAGE = """
usage: python scripts/detections.py run=FOLDER [KEY=VALUE ...]

Reads a trained detector, evaluates it on its validation pictures, and writes two pictures: pictures with the true boxes
(dashed) and those found (solid, with class and score), and precision over recall.

  run=FOLDER          a run of a detection experiment, results/runs/EXPERIMENT/NAME
  pictures=12         validation pictures to show, spread evenly over the split
  threshold=auto      least score of a box that is shown; auto: 0.3, or, while fewer boxes reach it than there are true
                      ones, the score that as many reach
  checkpoint=best     best or last
  out=FOLDER          where the pictures go; default RUN/figures
  data_root=FOLDER    where the pictures and boxes lie now, if not where the run had them

example: python scripts/detections.py run=results/runs/coco-centernet/NAME threshold=0.5
"""
OPTIONS = {"run": "", "pictures": "12", "threshold": "auto", "checkpoint": "best", "out": "", "data_root": ""}


def main(words: Sequence[str]) -> int:
    """Read, evaluate, draw and print the scores."""
    options = parse(words, options=OPTIONS)
    if not options["run"]:
        raise ReadError("run= is missing: the folder of a run, results/runs/EXPERIMENT/NAME")
    if not options["pictures"].isdecimal() or int(options["pictures"]) < 1:
        raise ReadError(f"pictures={options['pictures']}: must be a whole number, at least 1")
    threshold = None
    if options["threshold"] != "auto":
        try:
            threshold = float(options["threshold"])
        except ValueError:
            threshold = -1.0
        if not 0 <= threshold <= 1:
            raise ReadError(f"threshold={options['threshold']}: must lie in 0 to 1, or be auto")
    scores = write_detections(
        Path(options["run"]), pictures=int(options["pictures"]), threshold=threshold,
        checkpoint=options["checkpoint"], out=options["out"], data_root=options["data_root"],
    )  # fmt: skip
    print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
