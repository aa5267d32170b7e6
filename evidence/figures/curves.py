"""Figures of one run and of one experiment: norms, effective steps, learning, projection, oscillation.

Every figure is written three times: SVG (for the page), PNG, and the numbers behind it as CSV. Nothing is
smoothed except where an axis says so. No display is needed: figures are made without pyplot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.figures import heatmaps
from evidence.figures.style import (
    INK,
    LINES,
    MARKERS,
    MAX_POINTS,
    Drawn,
    canvas,
    colour,
    drawable,
    plain,
    save,
    thin,
)
from evidence.records.settings import Group, R
from evidence.runs.run import Run, number, primary_score


@dataclass(frozen=True)
class Panel:
    """One metric over epochs; `band` and `others` are drawn beside it where one run is shown alone."""

    key: str
    label: str
    log: bool = False
    band: tuple[str, str] | None = None
    others: tuple[tuple[str, str], ...] = ()
    level: float | None = None
    binned: bool = False


@dataclass(frozen=True)
class Chart:
    """A figure of one or two panels."""

    stem: str
    title: str
    panels: tuple[Panel, ...]


CHARTS = (
    Chart("norms", "Weight norm and effective step", (
        Panel("norm/mean", "filter norm ‖w‖ (L2, mean over filters)", band=("norm/min", "norm/max"),
              others=(("norm/median", "median"),)),
        Panel("effective_step/mean", "effective step ‖Δŵ‖ a step (L2, mean over filters)", log=True,
              band=("effective_step/min", "effective_step/max"),
              others=(("effective_step/median", "median"),)),
    )),
    Chart("learning", "Training loss and validation score", (
        Panel("train/loss", "training loss", binned=True),
        Panel("score", ""),
    )),
    Chart("projection", "Projection", (
        Panel("projected/share", "share of probed weights projected (0 to 1)"),
        Panel("margin/max", "largest cosine / threshold (projected below 1)", log=True, level=1.0),
    )),
    Chart("oscillation", "Oscillation Q: path length / displacement", (
        Panel("oscillation/median", "median of Q over parameters"),
        Panel("oscillation/ratio", "sum of path lengths / sum of displacements"),
    )),
)  # fmt: skip
SCORE_LABELS = {
    "val/top1": "validation top-1 accuracy (%)", "val/top5": "validation top-5 accuracy (%)",
    "val/loss": "validation loss", "val/perplexity": "validation perplexity",
}  # fmt: skip

# Whose cap of effective steps without decay is drawn beside a run's
CAPPED = {"sgd": "sgd", "sgdp": "sgd", "adam": "adamw", "adamw": "adamw", "adamp": "adamw"}
CAP_NAMES = {"sgd": "SGD", "adamw": "AdamW"}


def where(run: Run) -> str:
    """Return the words that say what the numbers were measured on."""
    return f"{run.experiment} · {run.data} · scale {run.scale}"


def _charts(runs: Sequence[Run]) -> list[Chart]:
    """Return the charts that have data, each with the panels that have data."""
    score = primary_score(runs)
    charts = []
    for chart in CHARTS:
        panels = []
        for panel in chart.panels:
            if panel.key == "score" and score is not None:
                panel = Panel(score, SCORE_LABELS.get(score, plain(score)))
            if any(run.series(panel.key)[2] for run in runs):
                panels.append(panel)
        if panels:
            charts.append(Chart(chart.stem, chart.title, tuple(panels)))
    return charts


def _rows(group: str, run: Run, keys: Sequence[str]) -> list[list[Any]]:
    series = [(key, *run.series(key)) for key in keys]
    return [
        [group, run.name, run.seed, key, step, epoch, value]
        for key, steps, epochs, values in series
        for step, epoch, value in zip(steps, epochs, values, strict=True)
    ]


def _dress(axis: Axes, panel: Panel, *, longest: int) -> None:
    """Label a panel whose lines are drawn; `longest` is the number of points of its longest series."""
    averaged = panel.binned and longest > MAX_POINTS
    axis.set_xlabel("epoch")
    axis.set_title(panel.label + (" (means of neighbouring log intervals)" if averaged else ""))
    lines = [np.asarray(line.get_ydata(), float) for line in axis.lines]
    if panel.log and any(np.any(np.isfinite(data) & (data > 0)) for data in lines):
        axis.set_yscale("log")
    if panel.level is not None:
        axis.axhline(panel.level, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
    if panel.key == "projected/share":
        axis.set_ylim(-0.04, 1.04)
    axis.margins(x=0.01)


def _band(axis: Axes, run: Run, panel: Panel, hue: str) -> None:
    low_key, high_key = panel.band or ("", "")
    (steps, epochs, low), (high_steps, _, high) = run.series(low_key), run.series(high_key)
    if low and steps == high_steps:
        (x, bottom), (_, top) = thin(epochs, low, mean=False), thin(epochs, high, mean=False)
        bottom, top = drawable(bottom, panel.log), drawable(top, panel.log)
        axis.fill_between(x, bottom, top, color=hue, alpha=0.16, linewidth=0, label="minimum to maximum")


def cap_of(run: Run) -> tuple[str, list[int], list[float], list[float]]:
    """Return (optimizer, steps, epochs, caps): the effective steps that it could keep up without weight decay.

    The optimizer is SGD for SGD and SGDP, and AdamW for Adam, AdamW and AdamP: what would cap the unprojected one under
    the run's schedule and momentum. The lists are empty for other optimizers and where no learning rate was logged.
    """
    base = CAPPED.get(run.opt_name, "")
    steps, epochs, rates = run.series("lr")
    if not base or not steps or not all(0 <= rate < math.inf for rate in rates):
        return base, [], [], []
    from adamp.probes import predicted_cap  # torch takes a second, which pages without such runs need not spend

    schedule = np.interp(np.arange(1, steps[-1] + 1), steps, rates)  # between two logged steps a straight line
    if base == "sgd":
        momentum, nesterov = number(run.opt.get("momentum")) or 0.0, bool(run.opt.get("nesterov"))
    else:
        betas = run.opt.get("betas")
        beta = number(betas[0]) if isinstance(betas, list) and betas else None
        momentum, nesterov = 0.9 if beta is None else beta, False
    caps = predicted_cap(schedule.tolist(), momentum, nesterov=nesterov, adaptive=base == "adamw")
    return base, steps, epochs, [caps[step - 1] for step in steps]


def _draw_caps(axis: Axes, runs: Sequence[tuple[str, Run]]) -> list[list[Any]]:
    """Draw each cap of these runs, given with their groups, once; return the numbers as rows of the figure's CSV."""
    rows: dict[tuple[str, ...], list[list[Any]]] = {}
    for group, run in runs:
        base, steps, epochs, caps = cap_of(run)
        key = base, *(f"{step} {cap:.3g}" for step, cap in zip(steps, caps, strict=True))
        if not caps or key in rows:
            continue
        label = f"predicted cap ({CAP_NAMES[base]} without decay)"
        x, y = thin(epochs, caps, mean=False)
        axis.plot(x, drawable(y, True), color=colour(base), linestyle=(0, (4, 3)), linewidth=0.8, label=label)
        points = zip(steps, epochs, caps, strict=True)
        rows[key] = [[group, run.name, run.seed, label, step, epoch, cap] for step, epoch, cap in points]
    return [row for each in rows.values() for row in each]


def _draw_alone(axis: Axes, run: Run, panel: Panel) -> None:
    """Draw one run's metric with its band and companions."""
    hue = colour(run.opt_name)
    _, epochs, values = run.series(panel.key)
    x, y = thin(epochs, values, mean=panel.binned)
    marker = "o" if len(x) <= 12 else ""
    if panel.band is not None:
        _band(axis, run, panel, hue)
    axis.plot(x, drawable(y, panel.log), color=hue, marker=marker, markersize=3.5, label="mean")
    for key, label in panel.others:
        _, epochs, values = run.series(key)
        if values:
            x, y = thin(epochs, values, mean=False)
            axis.plot(x, drawable(y, panel.log), color=hue, linestyle="--", linewidth=1.1, label=label)


def draw_run(run: Run, folder: Path) -> list[Drawn]:
    """Draw one run's figures into `folder`; charts without data are left out."""
    drawn = [each for role in run.roles[1:] for each in _draw_charts(run.of_role(role), folder, role=role)]
    return (
        _draw_charts(run, folder, role=run.roles[0] if run.roles else "")
        + drawn
        + heatmaps.draw_run(run, folder, title=where(run))
    )


def _draw_charts(run: Run, folder: Path, *, role: str) -> list[Drawn]:
    """Draw the charts of one network; those that do not differ between networks with the first one alone."""
    drawn = []
    first = not run.roles or role == run.roles[0]
    stem = "" if first else f"{role}-"
    for chart in _charts([run]):
        if chart.stem == "learning" and not first:
            continue
        title = f"{chart.title}, network {role}" if role and chart.stem != "learning" else chart.title
        size = (10.4 if len(chart.panels) > 1 else 6.6, 3.6)
        with canvas(f"{title} · {where(run)}", columns=len(chart.panels), size=size) as (figure, axes):
            keys, caps = [], []
            for axis, panel in zip(axes, chart.panels, strict=True):
                _draw_alone(axis, run, panel)
                if panel.key == "effective_step/mean":
                    caps = _draw_caps(axis, [("", run)])
                if panel.band or panel.others:
                    axis.legend(loc="best")
                _dress(axis, panel, longest=len(run.series(panel.key)[2]))
                keys += [panel.key, *(panel.band or ()), *(key for key, _ in panel.others)]
            caption = f"{run.opt_name}, seed {run.seed}."
            if any(panel.band for panel in chart.panels):
                caption += " Band: smallest to largest filter; dashed: median filter."
            rows = _rows("", run, keys) + caps
            drawn.append(save(figure, folder / f"{stem}{chart.stem}.svg", title, caption=caption, rows=rows))
    return drawn


def over_seeds(runs: Sequence[R], key: str) -> tuple[list[float], np.ndarray]:
    """Return (epochs, values of shape (runs, epochs)) at the steps that all of the runs have logged."""
    logged = [series for run in runs if (series := run.series(key))[0]]
    if not logged:
        return [], np.empty((0, 0))
    common = sorted(set.intersection(*(set(steps) for steps, _, _ in logged)))
    epoch = dict(zip(logged[0][0], logged[0][1], strict=True))
    values = [dict(zip(steps, values, strict=True)) for steps, _, values in logged]
    return [epoch[step] for step in common], np.array([[v[step] for step in common] for v in values], float)


def _draw_group(axis: Axes, group: Group[Run], panel: Panel, style: dict[str, Any], *, label: str) -> None:
    """Draw the mean and band over the group's complete seeds; other runs as thin lines of their own."""
    labels = iter([label])
    epochs, values = over_seeds(group.complete, panel.key)
    every: dict[str, Any] = {"markevery": 0.13, "markersize": 4}
    if epochs:
        x, mean = thin(epochs, values.mean(axis=0), mean=panel.binned)
        line = style if len(x) > 1 else {**style, "marker": style["marker"] or "o"}  # a line of one point is invisible
        axis.plot(x, drawable(mean, panel.log), label=next(labels), **every, **line)
        if len(values) > 1:
            low, high = (thin(epochs, edge(axis=0), mean=panel.binned)[1] for edge in (values.min, values.max))
            low, high = drawable(low, panel.log), drawable(high, panel.log)
            axis.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for run in group.runs:
        _, epochs, alone = run.series(panel.key)
        if alone and run.outcome != "finished":
            x, y = thin(epochs, alone, mean=panel.binned)
            own = {**style, **every, "linewidth": 0.8, "alpha": 0.6}
            own["marker"] = style["marker"] or ("" if len(x) > 1 else "o")
            axis.plot(x, drawable(y, panel.log), label=next(labels, "_again"), **own)


def counted(group: Group[R]) -> str:
    """Return a group's label with the number of its runs."""
    unfinished = len(group.runs) - len(group.complete)
    return f"{group.label} (n={len(group.complete)}" + (f", {unfinished} unfinished)" if unfinished else ")")


def styles(groups: Sequence[Group[R]]) -> list[dict[str, Any]]:
    """Return each group's line: colour by optimizer, dashes by weight decay, marker by what else differs."""
    decays = sorted({group.first.weight_decay or 0.0 for group in groups})
    count: dict[tuple[str, float], int] = {}
    chosen = []
    for group in groups:
        place = (group.first.opt_name, group.first.weight_decay or 0.0)
        count[place] = count.get(place, -1) + 1
        dashes = LINES[decays.index(place[1]) % len(LINES)]
        marker = MARKERS[count[place] % len(MARKERS)]
        chosen.append({"color": colour(place[0]), "linestyle": dashes, "marker": marker})
    return chosen


def draw_comparison(
    groups: Sequence[Group[Run]], folder: Path, *, prefix: str = "", only: Sequence[str] = ()
) -> list[Drawn]:
    """Draw all groups of one data set and scale into common figures.

    Args:
        groups: Groups of one section.
        folder: Where the figures go.
        prefix: Put before each file's name.
        only: Stems of CHARTS to draw; without it all of them, and the maps of layers.

    Returns:
        The figures that have data.
    """
    runs = [run for group in groups for run in group.runs]
    caption = (
        "Line: mean over complete seeds; band: smallest to largest seed; thin lines: runs that are not complete. "
        "Colour: optimizer; dashes: weight decay; markers: what else differs."
    )
    drawn = []
    for chart in _charts(runs):
        if only and chart.stem not in only:
            continue
        columns = _legend_columns(groups, panels=len(chart.panels))
        rows = math.ceil(len(groups) / columns)
        size = (10.4 if len(chart.panels) > 1 else 6.6, 3.6 + 0.17 * rows)  # 0.17 inches a legend row
        with canvas(f"{chart.title} · {where(runs[0])}", columns=len(chart.panels), size=size) as (
            figure,
            axes,
        ):
            caps = []
            for axis, panel in zip(axes, chart.panels, strict=True):
                if panel.key == "effective_step/mean":
                    caps = _draw_caps(axis, [(group.label, run) for group in groups for run in group.runs])
                for group, style in zip(groups, styles(groups), strict=True):
                    _draw_group(axis, group, panel, style, label=counted(group))
                _dress(axis, panel, longest=max(len(run.series(panel.key)[2]) for run in runs))
            _legend(figure, columns)
            keys = [panel.key for panel in chart.panels]
            numbers = [row for group in groups for run in group.runs for row in _rows(group.label, run, keys)] + caps
            path = folder / f"{prefix}{chart.stem}.svg"
            drawn.append(save(figure, path, chart.title, caption=caption, rows=numbers))
    return drawn if only else drawn + heatmaps.draw_comparison(groups, folder, prefix=prefix, title=where(runs[0]))


def _legend_columns(groups: Sequence[Group[Run]], *, panels: int) -> int:
    """Return how many legend entries fit side by side: a letter takes about 0.065 inches, the line 0.5."""
    longest = max(len(plain(counted(group))) for group in groups)
    return max(1, min(4, int((10.0 if panels > 1 else 6.3) / (0.065 * longest + 0.55))))


def _legend(figure: Figure, columns: int) -> None:
    """Put one legend for all panels below them."""
    entries: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(plain(label), handle)
    if entries:
        labels, handles = list(entries), list(entries.values())
        figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=3.2)
