"""The figure of a sweep: a row of panels per metric, a column per optimizer or network, a line per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from evidence.figures import score_curves
from evidence.figures.style import LINES, Drawn, canvas, colour, drawable, plain, save, setting_colours
from evidence.tables.build import SweepRows
from evidence.tables.cells import Cell

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
    """Draw a sweep's runs; every seed is a line of its own, and the seeds of a cell look alike.

    Args:
        cells: The sweep's cells.
        spec: `rows`, the metrics; `columns`, the override whose values make the columns, or nothing for one column.
        path: Ends in .svg.
        title: Above the figure.
    """
    rows, key = list(spec["rows"]), spec.get("columns")
    groups = list(dict.fromkeys(cell.overrides.get(key, "") if key else "" for cell in cells if cell.rows))
    size = (max(4.2, 3.2 * len(groups)), 0.6 + 2.3 * len(rows))
    by_optimizer = key != "opt" and len({cell.overrides.get("opt", "sgd") for cell in cells if cell.rows}) > 1
    written: list[tuple[Any, ...]] = []
    constant = {k for k in cells[0].overrides if len({c.overrides.get(k) for c in cells}) == 1}
    with canvas(title, rows=len(rows), columns=len(groups), size=size) as (figure, axes):
        for index, axis in enumerate(axes):
            metric, group = rows[index // len(groups)], groups[index % len(groups)]
            if key == "opt" and index % len(groups):  # one network: optimizers side by side compare on one scale
                axis.sharey(axes[index - index % len(groups)])
            inside = [c for c in cells if c.rows and (not key or c.overrides.get(key, "") == group)]
            looks = line_styles(inside, by_optimizer=by_optimizer)
            drawn = [
                _line(axis, c, look, metric, {*constant, key}, written) for c, look in zip(inside, looks, strict=True)
            ]
            axis.set_ylabel(NAMES.get(metric, plain(metric, limit=32)) if index % len(groups) == 0 else "")
            axis.set_xlabel("epoch" if index >= len(axes) - len(groups) else "")
            if any(drawn) and metric.startswith(LOGARITHMIC):
                axis.set_yscale("log")
            if index < len(groups):
                axis.set_title(plain(group))
                axis.legend(loc="best", fontsize=7) if len(inside) > 1 else None
        return save(figure, path, title, caption="Each seed is a line.", rows=written)


def line_styles(cells: Sequence[Cell], *, by_optimizer: bool) -> list[dict[str, Any]]:
    """Return each cell's line in a panel: the optimizer's colour, or colours of settings where it is one optimizer."""
    if not by_optimizer:
        return [{"color": shade, "linestyle": "-"} for shade in setting_colours(len(cells))]
    optimizers = [cell.overrides.get("opt", "sgd") for cell in cells]
    nth = [optimizers[:k].count(opt) for k, opt in enumerate(optimizers)]
    return [{"color": colour(o), "linestyle": LINES[n % len(LINES)]} for o, n in zip(optimizers, nth, strict=True)]


def _line(
    axis: Axes, cell: Cell, look: Mapping[str, Any], metric: str, known: set[Any], written: list[tuple[Any, ...]]
) -> bool:
    """Draw a cell's runs, named by the overrides not known, add their numbers; return whether any is positive."""
    overrides = {k: v for k, v in cell.overrides.items() if k not in known}
    names = ("opt", "experiment")
    label = " ".join(v if k in names else f"{k.rpartition('.')[2]}={v}" for k, v in overrides.items())
    positive, legend = False, plain(label, limit=40)
    for count, (seed, run) in enumerate(cell.rows.items()):
        _, epochs, values = run.series(metric)
        finite = drawable(np.asarray(values, float), False)
        axis.plot(epochs, finite, **look, linewidth=1.2, label=legend if count == 0 else None)
        positive |= any(value > 0 for value in values if math.isfinite(value))
        written += [(label, run.name, seed, metric, "", e, v) for e, v in zip(epochs, values, strict=True)]
    return positive
