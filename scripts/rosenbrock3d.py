"""The AdamP paper's Figure 3: the published path, peak and norms, and a search of the learning rate.

Exit code: 0 if the published path, peak and norms come out as far as they can, 1 if not, 2 for wrong input.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evidence.csv_files import read_csv
from evidence.figures import rosenbrock3d as rosenbrock3d_figures
from evidence.runs.run import ReadError, number
from evidence.tables.render import Number, outcome, write
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.toy import rosenbrock3d as toy
from tasks.toy.descent import Path as Trajectory

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

PUBLISHED = ROOT / "results" / "toy" / "rosenbrock3d-published.csv"
RESOLUTION = 5e-5  # of the published points: the drawing rounds to 1/256 pt, 3.8e-5 in b
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


def published() -> dict[str, Tensor]:
    """Return the published points of each method, (50, 2)."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in read_csv(PUBLISHED):
        found.setdefault(row["method"], []).append((float(row["a"]), float(row["b"])))
    return {method: torch.tensor(points, dtype=torch.float64) for method, points in found.items()}


def compare(paths: Mapping[str, Trajectory], near: Mapping[str, Trajectory]) -> list[Number]:
    """Return path, peak and norms beside the published ones.

    Args:
        paths: Method -> its path.
        near: Method -> paths at learning rates that differ by 1e-7 of themselves.
    """
    numbers = []
    points = published()
    for run in toy.RUNS:
        off = (toy.coordinates(paths[run.method])[: len(points[run.method])] - points[run.method]).abs().amax(dim=1)
        first = float(off[: toy.FIRST + 1].max())
        words = f"a and b, iterations 0 to {toy.FIRST}, largest difference"
        rule = f"at most {RESOLUTION:g}, the figure's resolution"
        numbers.append(
            Number(toy.TITLES[run.method], words, "the figure's points", f"{first:.1e}", rule, first <= RESOLUTION)
        )
        longest = int((off > RESOLUTION).nonzero()[0]) if bool((off > RESOLUTION).any()) else len(off)
        within = "iterations within the resolution, of 50"
        numbers.append(Number(toy.TITLES[run.method], within, "50", str(longest)))
    norms = paths["decay"].points.norm(dim=1)
    when, peak = int(norms.argmax()), float(norms.max())
    same = (when, round(peak, toy.PEAK_DECIMALS)) == toy.PEAK
    numbers.append(
        Number(toy.TITLES["decay"], "peak of the norm, at iteration", f"{toy.PEAK[1]} at {toy.PEAK[0]}",
               f"{peak:.4f} at {when}", "3 decimals and the iteration are the same", same)
    )  # fmt: skip
    for run in toy.RUNS:
        end = float(paths[run.method].points[-1].norm())
        around = near[run.method].norms[-1]
        assert run.low is not None and run.high is not None and run.published is not None
        rule = f"between {run.low:.2f} and {run.high:.2f}"
        holds = run.low <= end <= run.high
        title = toy.TITLES[run.method]
        numbers.append(Number(title, "norm at the end", f"{run.published:.3f}", f"{end:.3f}", rule, holds))
        spread = f"{float(around.min()):.3f} to {float(around.max()):.3f}"
        numbers.append(Number(title, "norm at the end, over neighbours", f"{run.published:.3f}", spread))
        distances = toy.end_distances(near[run.method])
        spread = f"{float(distances.min()):.2f} to {float(distances.max()):.2f}"
        numbers.append(
            Number(title, "distance to the optimum, over neighbours", f"{END_DISTANCES[run.method]:.2f}", spread)
        )
    return numbers


# Where the figure's own paths end; computed from the last points drawn.
END_DISTANCES = {"momentum": 0.26, "decay": 0.12, "in place": 0.14}


def search(rates: Tensor) -> tuple[dict[str, Trajectory], list[Number]]:
    """Return every method's paths over the learning rates, and the best distances."""
    found = {method: toy.sweep(method, rates) for method in toy.TITLES}
    numbers, best = [], {}
    for method, path in found.items():
        distances = toy.end_distances(path)
        k = int(distances.argmin())
        best[method] = float(distances[k])
        words = f"best distance of {len(rates)} learning rates"
        numbers.append(Number(toy.TITLES[method], words, "–", f"{best[method]:.3f} at lr {float(rates[k]):.4f}"))
    words = "best distance, momentum GD over projection"
    ratio = best["momentum"] / best["projected"]
    rule = "above 1: the search orders the projection first"
    numbers.append(Number(toy.TITLES["projected"], words, "–", f"{ratio:.2f}", rule, ratio > 1))
    return found, numbers


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
