"""The AdamP paper's Figure 1 and videos: the published norms and losses, a figure, an animation.

Exit code: 0 if every published norm and loss comes out to the digits printed, 1 if not, 2 for wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evidence.runs.run import ReadError, number
from evidence.tables.render import Number, outcome, write
from scripts.options import command, parse, results

if TYPE_CHECKING:  # torch and matplotlib are loaded once the words are checked and something is said
    from tasks.toy.cosine2d import Run2D
    from tasks.toy.descent import Path as Trajectory

USAGE = """
usage: python scripts/toy2d.py [loss=squared|linear] [lr=0.01] [steps=499] [animation=gif|mp4|none] [out=FOLDER]

Gradient descent, momentum 0.9, 0.95, 0.99 and the projection on the largest cosine in two dimensions. Prints the
published norms and losses beside ours and writes OUT/toy2d.md, toy2d-numbers.csv, the figure toy2d-paths (.svg, .png,
.csv) and the animation toy2d.gif; animation=mp4 needs ffmpeg.

  loss=squared     (1 - cos)^2, which gives the published numbers; linear: 1 - cos
  lr, steps        other values than the videos' are compared all the same
  out=FOLDER       default results/toy

example: python scripts/toy2d.py
"""

NOTES = """
Published: the numbers that the three videos of the project page print at their last iteration; the norms 2.93 and
27.87 also stand in Figure 1. Settings, none of them printed: loss (1 - cos(w, w*))², w* = (0, -1), w_0 = (0.001, 1),
learning rate 0.01, 499 steps, `p = β p + g`; docs/theory.md says how they were found. "projected" is the paper's
Algorithm 1, `SGDP`; "in place" is the authors' package, which writes the projected update into the momentum buffer,
`SGDP(project_buffer=True)`: nothing is published for it here.
"""


def compare(runs: Sequence[Run2D], paths: Sequence[Trajectory]) -> list[Number]:
    """Return every number of the videos beside ours, then how many iterations each run takes."""
    from tasks.toy.cosine2d import LOSS_REACHED, agrees

    numbers = []
    for run, path in zip(runs, paths, strict=True):
        for name, value, printed, decimals in (
            ("norm at the end", float(path.points[-1].norm()), run.norm, 2),
            ("loss at the end", float(path.losses[-1]), run.loss, 4),
        ):
            if printed is None:
                numbers.append(Number(run.name, name, "–", f"{value:.{decimals}f}"))
            else:
                rule, holds = f"{decimals} decimals are the same", agrees(value, printed, decimals=decimals)
                numbers.append(
                    Number(run.name, name, f"{printed:.{decimals}f}", f"{value:.{decimals + 2}f}", rule, holds)
                )
    for run, path in zip(runs, paths, strict=True):
        first = path.first_below(LOSS_REACHED)
        words = f"iterations to a loss below {LOSS_REACHED:g}"
        numbers.append(Number(run.name, words, "–", "never" if first is None else str(first)))
    return numbers


def main(words: Sequence[str]) -> int:
    """Run, print, write and draw."""
    defaults = {"loss": "squared", "lr": "0.01", "steps": "499", "animation": "gif"}
    options = parse(words, options={**defaults, "out": results("toy")})
    lr, steps = number(options["lr"]), number(options["steps"])
    if options["loss"] not in ("squared", "linear"):
        raise ReadError(f"loss={options['loss']} is not valid: squared or linear")
    if lr is None or not lr > 0:
        raise ReadError(f"lr={options['lr']} is not valid: a number above 0")
    if steps is None or not (steps >= 1 and steps == int(steps)):
        raise ReadError(f"steps={options['steps']} is not valid: a whole number, at least 1")
    print(f"10 runs of {steps:g} iterations, then the pictures: about ten seconds", file=sys.stderr, flush=True)
    import torch

    from evidence.figures import toy2d as toy2d_figures
    from tasks.toy.cosine2d import IN_PLACE, RUNS, trace

    toy2d_figures.check_animation(options["animation"])
    torch.set_num_threads(1)  # one order of summation, so the same digits everywhere
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    runs = (*RUNS, *IN_PLACE)
    paths = trace(runs, lr=lr, steps=int(steps), power=2 if options["loss"] == "squared" else 1)
    numbers = compare(runs, paths)
    title = "Two dimensions: published norms and losses beside ours"
    print(write(numbers, folder, "toy2d", title=title, notes=NOTES, command=" ".join(["make toy2d", *words])))
    toy2d_figures.draw(runs, paths, folder)
    toy2d_figures.animate(runs, paths, folder, kind=options["animation"])
    return outcome(numbers, folder / "toy2d.md")


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
