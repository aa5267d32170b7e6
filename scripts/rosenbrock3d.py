"""The AdamP paper's Figure 3: the published path, peak and norms, and a search of the learning rate.

Exit code: 0 if the published path, peak and norms come out as far as they can, 1 if not, 2 for wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evidence.figures import rosenbrock3d as rosenbrock3d_figures
from evidence.figures.rosenbrock3d_numbers import compare, published, search
from evidence.runs.run import ReadError, number
from evidence.tables.render import outcome, write
from scripts.options import command, parse, results
from tasks.toy import rosenbrock3d as toy

USAGE = """
usage: python scripts/rosenbrock3d.py [sweep.lr=0.001,0.1] [sweep.count=120] [sweep.spacing=log|linear] [out=FOLDER]

Momentum GD, with weight decay, and with the projection on Rosenbrock's function of a direction in space. Compares path,
peak and norms with the published figure, then searches the learning rate for the least distance to the optimum.
Writes OUT/rosenbrock3d.md, rosenbrock3d-numbers.csv and the figures rosenbrock3d-maps, -surface and -sweep.

  sweep.lr=LOW,HIGH    range of learning rates
  sweep.count=120      how many, at least 2
  sweep.spacing=log    or linear
  out=FOLDER           default results/toy

example: python scripts/rosenbrock3d.py sweep.spacing=linear
"""

NOTES = """
Published: final norms as the paper prints them, the rest from the vector figures of its project page, whose first 50
points are in rosenbrock3d-published.csv. "in place" is SGDP with the projected update written into the momentum
buffer, as the authors' package does and as that figure was made; "projected" is Algorithm 1. Settings, most of them
not printed: gradient clipped to norm 1, 200 steps, learning rate η (1 - t/199), momentum 0.9, weight decay 0.05
(docs/theory.md).

From about iteration 60 on the dynamics is chaotic, so what a path ends at is a range: "over neighbours" gives it for
40 learning rates that differ by up to 1e-7 of themselves. The distance to the optimum at the end is therefore no number
that one run could reproduce, and even the best of a search depends on its grid. The published run with weight decay
ends at 0.836, outside what its neighbours reach here; the precision in which it was computed is not known.
"""


def learning_rates(options: Mapping[str, str]) -> Tensor:
    """Return the grid of the search, (count,).

    Raises:
        ReadError: An option is not valid.
    """
    ends = [number(word) for word in options["sweep.lr"].split(",")]
    count = number(options["sweep.count"])
    if len(ends) != 2 or any(end is None for end in ends) or not 0 < ends[0] < ends[1]:  # type: ignore[operator]
        raise ReadError(f"sweep.lr={options['sweep.lr']} is not valid: two numbers LOW,HIGH with 0 < LOW < HIGH")
    if count is None or not (count >= 2 and count == int(count)):
        raise ReadError(f"sweep.count={options['sweep.count']} is not valid: a whole number, at least 2")
    if options["sweep.spacing"] not in ("log", "linear"):
        raise ReadError(f"sweep.spacing={options['sweep.spacing']} is not valid: log or linear")
    low, high = torch.tensor(ends, dtype=torch.float64)
    part = torch.linspace(0, 1, int(count), dtype=torch.float64)
    return low * (high / low) ** part if options["sweep.spacing"] == "log" else low + (high - low) * part


def main(words: Sequence[str]) -> int:
    """Run, print, write and draw."""
    defaults = {"sweep.lr": "0.001,0.1", "sweep.count": "120", "sweep.spacing": "log", "out": results("toy")}
    options = parse(words, options=defaults)
    rates = learning_rates(options)
    torch.set_num_threads(1)  # one order of summation, so the same digits everywhere
    folder = Path(options["out"])
    folder.mkdir(parents=True, exist_ok=True)
    runs = (*toy.RUNS, toy.ALGORITHM_1)
    paths = {run.method: path for run, path in zip(runs, toy.trace(runs), strict=True)}
    near = {run.method: toy.neighbours(run) for run in runs}
    swept, best = search(rates)
    numbers = compare(paths, near) + best
    title = "Three dimensions: the published path, norms and peak beside ours"
    made = " ".join(["make rosenbrock3d", *words])
    print(write(numbers, folder, "rosenbrock3d", title=title, notes=NOTES, command=made))
    rosenbrock3d_figures.draw_maps(paths, near, published(), folder)
    rosenbrock3d_figures.draw_surface(paths, folder)
    rosenbrock3d_figures.draw_sweep(swept, rates, folder)
    return outcome(numbers, folder / "rosenbrock3d.md")


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
