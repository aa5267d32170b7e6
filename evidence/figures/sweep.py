"""The figure of a sweep: a row of panels a metric, a column an optimizer or network, a line a setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evidence.figures import score_curves
from evidence.figures.style import LINES, Drawn, canvas, colour, drawable, plain, save
from evidence.tables.build import SweepRows
from evidence.tables.cells import Cell

SPREAD = ("#2a7fb8", "#e69f00", "#009e73", "#d55e00", "#8a6642", "#7b68c8", "#8a8f98")
NAMES = {
    "norm/mean": "norm of a filter", "effective_step/mean": "effective step", "val/top1": "validation top-1 (%)",
    "train/loss": "training loss", "oscillation/ratio": "Q: sum of paths / sum of moves",
    "oscillation/median": "Q: median", "oscillation/mean": "Q: mean", "train/top1": "training top-1 (%)",
}  # fmt: skip
LOGARITHMIC = ("effective_step", "oscillation", "lr/norm", "lr/norm2")


def draw_figure(data: SweepRows, folder: Path) -> list[str]:
    """Draw the figure that a sweep asks for, and return what to print: paths, and what the curves say."""
    spec = data.spec.get("figure")
    if spec and data.rows:
        drawn = score_curves.draw_all(data.rows, spec, folder, stem=data.sweep, title=data.title)
        return [line for figure, sentences in drawn for line in (str(figure.svg), *sentences)]
    if not spec or not any(cell.rows for cell in data.cells):
        return []
    return [f"written to {draw(data.cells, spec, folder / f'{data.sweep}.svg', title=data.title).svg}"]


def draw(cells: Sequence[Cell], spec: Mapping[str, Any], path: Path, *, title: str) -> Drawn:
    """Draw a sweep's runs; every seed is a line of its own, the seeds of a cell have one colour.

    Args:
        cells: The sweep's cells.
        spec: `rows`, the metrics; `columns`, the override whose values make the columns, or nothing for one column.
        path: Ends in .svg.
        title: Above the figure.
    """
    rows, key = list(spec["rows"]), spec.get("columns")
    groups = list(dict.fromkeys(cell.overrides.get(key, "") if key else "" for cell in cells if cell.rows))
    size = (max(4.2, 3.2 * len(groups)), 0.6 + 2.3 * len(rows))
    written: list[tuple[Any, ...]] = []
    constant = {k for k in cells[0].overrides if len({c.overrides.get(k) for c in cells}) == 1}
    with canvas(title, rows=len(rows), columns=len(groups), size=size) as (figure, axes):
        for index, axis in enumerate(axes):
            metric, group = rows[index // len(groups)], groups[index % len(groups)]
            if key == "opt" and index % len(groups):  # one network: optimizers side by side compare on one scale
                axis.sharey(axes[index - index % len(groups)])
            inside = [c for c in cells if c.rows and (not key or c.overrides.get(key, "") == group)]
            drawn = [_line(axis, cell, place, metric, {*constant, key}, written) for place, cell in enumerate(inside)]
            axis.set_ylabel(NAMES.get(metric, plain(metric, limit=32)) if index % len(groups) == 0 else "")
            axis.set_xlabel("epoch" if index >= len(axes) - len(groups) else "")
            if any(drawn) and metric.startswith(LOGARITHMIC):
                axis.set_yscale("log")
            if index < len(groups):
                axis.set_title(plain(group))
                axis.legend(loc="best", fontsize=7) if len(inside) > 1 else None
        return save(figure, path, title, caption="Each seed is a line.", rows=written)


def _line(axis: Any, cell: Cell, place: int, metric: str, known: set[Any], written: list[tuple[Any, ...]]) -> bool:
    """Draw a cell's runs, named by what is not known, and note their numbers; return whether any is positive."""
    given = {k: v for k, v in cell.overrides.items() if k not in known}
    names = ("opt", "experiment")
    label = " ".join(v if k in names else f"{k.rpartition('.')[2]}={v}" for k, v in given.items())
    shade = colour(given["opt"]) if set(given) == {"opt"} else SPREAD[place % len(SPREAD)]
    positive, shown_as = False, plain(label, limit=40)
    for count, (seed, run) in enumerate(cell.rows.items()):
        _, epochs, values = run.series(metric)
        shown = drawable(np.asarray(values, float), False)
        style = LINES[place // len(SPREAD) % len(LINES)]
        axis.plot(epochs, shown, color=shade, linestyle=style, linewidth=1.2, label=shown_as if count == 0 else None)
        positive |= any(value > 0 for value in values if math.isfinite(value))
        written += [(label, run.name, seed, metric, "", e, v) for e, v in zip(epochs, values, strict=True)]
    return positive
