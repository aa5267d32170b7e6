"""Numbers of the AdamP paper's Figure 3: the published path, peak and norms beside ours, and a learning-rate search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evidence.csv_files import read_csv
from evidence.tables.render import Number
from tasks.toy import rosenbrock3d as toy
from tasks.toy.descent import Path as Trajectory

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "toy" / "rosenbrock3d-published.csv"
RESOLUTION = 5e-5  # of the published points: the drawing rounds to 1/256 pt, 3.8e-5 in b


def published() -> dict[str, Tensor]:
    """Return the published points of each method, (50, 2)."""
    by_method: dict[str, list[tuple[float, float]]] = {}
    for row in read_csv(PUBLISHED):
        by_method.setdefault(row["method"], []).append((float(row["a"]), float(row["b"])))
    return {method: torch.tensor(points, dtype=torch.float64) for method, points in by_method.items()}


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
    paths = {method: toy.sweep(method, rates) for method in toy.TITLES}
    numbers, best = [], {}
    for method, path in paths.items():
        distances = toy.end_distances(path)
        k = int(distances.argmin())
        best[method] = float(distances[k])
        words = f"best distance of {len(rates)} learning rates"
        numbers.append(Number(toy.TITLES[method], words, "–", f"{best[method]:.3f} at lr {float(rates[k]):.4f}"))
    words = "best distance, momentum GD over projection"
    ratio = best["momentum"] / best["projected"]
    rule = "above 1: the search orders the projection first"
    numbers.append(Number(toy.TITLES["projected"], words, "–", f"{ratio:.2f}", rule, ratio > 1))
    return paths, numbers
