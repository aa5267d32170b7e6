"""The figure of a sweep: a row of panels per metric, a column per optimizer or network, a line per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evidence.figures import contrast, score_curves
from evidence.figures.curves import over_seeds
from evidence.figures.style import (
    FEW,
    LINES,
    Drawn,
    canvas,
    colour,
    drawable,
    last_values,
    legend_below,
    plain,
    save,
    setting_colours,
    tame,
)  # fmt: skip
from evidence.tables.build import SweepRows
from evidence.tables.cells import Cell

NAMES = {
    "norm/mean": "norm of a filter", "effective_step/mean": "effective step", "val/top1": "validation top-1 (%)",
    "train/loss": "training loss", "oscillation/ratio": "Q: sum of paths / sum of moves",
    "oscillation/median": "Q: median", "oscillation/mean": "Q: mean", "train/top1": "training top-1 (%)",
}  # fmt: skip
RATES = {"lr/norm2/": "η / ‖w‖²", "lr/norm/": "η / ‖w‖", "lr/std/": "η / std(w)"}
LOGARITHMIC = ("effective_step", "oscillation", *RATES)
WRAP = 3  # panels side by side where there is one column
CAPTION = (
    "Line: mean over the n seeds; band: smallest to largest seed; thin lines: runs that diverged. Where a run has at "
    "most two points of a metric, each dot is a seed's last value and the dash their mean."
)


def draw_figure(data: SweepRows, folder: Path) -> list[str]:
    """Draw the figure that a sweep asks for, and return what to print: paths, and what the curves say."""
    spec = data.spec.get("figure")
    if spec and data.rows and spec.get("pairs"):
        return [str(f.svg) for f in contrast.draw(data.rows, spec, folder, stem=data.sweep, title=data.title)]
    if spec and data.rows:
        drawn = score_curves.draw_all(data.rows, spec, folder, stem=data.sweep, title=data.title)
        return [line for figure, sentences in drawn for line in (str(figure.svg), *sentences)]
    if not spec or not any(cell.rows for cell in data.cells):
        return []
    # What the sweep's table holds for the same setting is no difference to be told here either.
    unsaid = (data.spec.get("table") or {}).get("loose", ())
    path = folder / f"{data.sweep}.svg"
    return [f"written to {draw(data.cells, spec, path, title=data.title, unsaid=unsaid).svg}"]


def name_of(metric: str) -> str:
    """Return what stands beside the axis of a metric."""
    rate = next((prefix for prefix in RATES if metric.startswith(prefix)), None)
    if rate is not None:
        return f"{RATES[rate]}, {plain(metric.removeprefix(rate).removesuffix('.weight'), limit=24)}"
    if metric.startswith("weight/"):
        return f"a weight of {plain(metric.removeprefix('weight/').removesuffix('.weight'), limit=24)}"
    return NAMES.get(metric, plain(metric, limit=32))


def draw(
    cells: Sequence[Cell], spec: Mapping[str, Any], path: Path, *, title: str, unsaid: Sequence[str] = ()
) -> Drawn:
    """Draw a sweep's runs: the mean over the seeds of a cell, with a band from the smallest to the largest.

    Args:
        cells: The sweep's cells.
        spec: `rows`, the metrics; `columns`, the override whose values make the columns, or nothing for one column.
        path: Ends in .svg.
        title: Above the figure.
        unsaid: Overrides that the labels leave out.
    """
    rows, key = list(spec["rows"]), spec.get("columns")
    groups = list(dict.fromkeys(cell.overrides.get(key, "") if key else "" for cell in cells if cell.rows))
    ran = [cell.overrides.get("opt", "sgd") for cell in cells if cell.rows]
    by_optimizer = key != "opt" and (len(set(ran)) > 1 or len(ran) == 1)
    known = {k for k in cells[0].overrides if len({c.overrides.get(k) for c in cells}) == 1} | {key, *unsaid}
    # One column of panels is wrapped into several; else a row of panels is a metric.
    across = len(groups) if len(groups) > 1 else min(len(rows), WRAP if len(rows) != 4 else 2)
    down = math.ceil(len(rows) * len(groups) / across)
    written: list[tuple[Any, ...]] = []
    legends: list[dict[str, Line2D]] = []  # of each column
    with canvas(title, rows=down, columns=across, size=(max(6.6, 3.4 * across), 1.0 + 2.4 * down)) as (figure, axes):
        for axis in axes[len(rows) * len(groups) :]:
            axis.set_axis_off()
        for column, group in enumerate(groups):
            inside = [c for c in cells if c.rows and (not key or c.overrides.get(key, "") == group)]
            looks = line_styles(inside, by_optimizer=by_optimizer)
            labels = [_label(cell, known) for cell in inside]
            legends.append({
                f"{plain(label, limit=40)} (n={len(cell.rows)})".strip(): Line2D([], [], **look)
                for cell, label, look in zip(inside, labels, looks, strict=True)
            })  # fmt: skip
            for line, metric in enumerate(rows):
                axis = axes[line * len(groups) + column]
                is_curve = _panel(axis, inside, looks, metric)
                name = name_of(metric) + ("" if is_curve else ", last value")
                if len(groups) == 1:
                    axis.set_title(name)
                else:
                    axis.set_ylabel(name if column == 0 else "")
                    axis.set_title(plain(group) if line == 0 else "")
                axis.set_xlabel("epoch" if is_curve and line * len(groups) + column + across >= len(rows) * len(groups)
                                else "")  # fmt: skip
                written += _numbers(inside, labels, metric)
        for line, metric in enumerate(rows):
            panels = axes[line * len(groups) : (line + 1) * len(groups)]
            # One network: optimizers side by side compare on one scale
            scales = [panels] if key == "opt" else [[panel] for panel in panels]
            for shared in scales:
                if metric.startswith(LOGARITHMIC):
                    tame(shared)
                limits = [panel.get_ylim() for panel in shared if panel.lines]
                if len(limits) > 1:
                    for panel in shared:
                        panel.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        _put_legends(figure, axes[-len(groups) :], legends)
        return save(figure, path, title, caption=CAPTION, rows=written)


def line_styles(cells: Sequence[Cell], *, by_optimizer: bool) -> list[dict[str, Any]]:
    """Return each cell's line in a panel: the optimizer's colour, or colours of settings where it is one optimizer."""
    if not by_optimizer:
        shades = setting_colours(len(cells))
        return [{"color": shade, "linestyle": LINES[n % len(LINES)]} for n, shade in enumerate(shades)]
    optimizers = [cell.overrides.get("opt", "sgd") for cell in cells]
    nth = [optimizers[:k].count(opt) for k, opt in enumerate(optimizers)]
    return [{"color": colour(o), "linestyle": LINES[n % len(LINES)]} for o, n in zip(optimizers, nth, strict=True)]


def _label(cell: Cell, known: set[Any]) -> str:
    """Return a cell's overrides that are not known, or its optimizer where nothing is left to say."""
    names = ("opt", "experiment")
    words = [v if k in names else f"{k.rpartition('.')[2]}={v}" for k, v in cell.overrides.items() if k not in known]
    return " ".join(words) or cell.overrides.get("opt", "")


def _panel(axis: Axes, cells: Sequence[Cell], looks: Sequence[Mapping[str, Any]], metric: str) -> bool:
    """Draw a metric of all cells, and return whether as curves; two points or fewer are drawn as last values."""
    series = [[run.series(metric) for run in cell.rows.values()] for cell in cells]
    if max((len(values) for runs in series for _, _, values in runs), default=0) <= FEW:
        for place, (runs, look) in enumerate(zip(series, looks, strict=True)):
            last_values(axis, place, [values[-1] for _, _, values in runs if values], shade=look["color"])
        return False
    for cell, look in zip(cells, looks, strict=True):
        epochs, values = over_seeds([row for row in cell.rows.values() if row.finished], metric)
        if epochs:
            values = drawable(values, log=False)
            axis.plot(epochs, values.mean(axis=0), **look, linewidth=1.4)
            if len(values) > 1:
                axis.fill_between(
                    epochs, values.min(axis=0), values.max(axis=0), color=look["color"], alpha=0.18, linewidth=0
                )
        for row in (row for row in cell.rows.values() if not row.finished):
            _, epochs, alone = row.series(metric)
            axis.plot(epochs, drawable(np.asarray(alone, float), log=False), **look, linewidth=0.8, alpha=0.6)
    axis.margins(x=0.01)
    return True


def _numbers(cells: Sequence[Cell], labels: Sequence[str], metric: str) -> list[tuple[Any, ...]]:
    """Return the numbers behind a panel: every point of every seed."""
    runs = [(label, seed, run) for cell, label in zip(cells, labels, strict=True) for seed, run in cell.rows.items()]
    return [
        (label, run.name, seed, metric, "", epoch, value)
        for label, seed, run in runs
        for epoch, value in zip(*run.series(metric)[1:], strict=True)
    ]


def _put_legends(figure: Figure, bottom: Sequence[Axes], legends: Sequence[Mapping[str, Line2D]]) -> None:
    """Put one legend below all panels; one below each column where a label means another line in each."""
    looks: dict[str, set[tuple[Any, ...]]] = {}
    for entries in legends:
        for label, handle in entries.items():
            looks.setdefault(label, set()).add((handle.get_color(), handle.get_linestyle()))
    if all(len(found) == 1 for found in looks.values()):
        legend_below(figure, {label: handle for entries in legends for label, handle in entries.items()})
        return
    for axis, entries in zip(bottom, legends, strict=True):
        axis.legend(list(entries.values()), list(entries), loc="upper left", bbox_to_anchor=(-0.02, -0.16),
                    borderaxespad=0, handlelength=3.2)  # fmt: skip
