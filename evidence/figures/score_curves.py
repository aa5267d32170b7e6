"""Score curves of several experiments: a row of panels per experiment, a column per score, a line per setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from evidence.figures.curves import counted, over_seeds, styles
from evidence.figures.style import FEW, Drawn, canvas, last_values, legend_below, save
from evidence.records.row import ResultRow
from evidence.records.settings import Group, group_by_setting

Groups = Mapping[str, Sequence[Group[ResultRow]]]  # experiment -> its settings


class ScoreCurvesSpec(TypedDict):
    """`sweep.figure` of a file in configs/sweep that draws score curves."""

    experiments: dict[str, str]  # experiment -> its label, in the order of the rows
    scores: list[str]  # the columns
    target: str  # the optimizer whose last mean score is a dotted line
    challenger: str  # the optimizer of which it is reported when it exceeds that
    names: dict[str, str]  # optimizer -> its name in that report
    caption: str


def draw_all(
    rows: Sequence[ResultRow], spec: ScoreCurvesSpec, folder: Path, *, stem: str, title: str
) -> list[tuple[Drawn, list[str]]]:
    """Draw a figure per data set and scale, and report when the challenger exceeds the target in each."""
    complete = [row for row in rows if row.outcome == "finished"]
    drawn = []
    for data, scale in group_by_setting(complete):
        groups: dict[str, Sequence[Group[ResultRow]]] = {}
        for name in spec["experiments"]:
            chosen = [row for row in complete if (row.experiment, row.data, row.scale) == (name, data, scale)]
            if chosen:
                groups[name] = group_by_setting(chosen)[data, scale]
        path = folder / f"{stem}-{data}-{scale}.svg"
        figure = draw(groups, spec, path, title=f"{title} · {data} · scale {scale}")
        drawn.append((figure, crossings(groups, spec)))
    return drawn


def draw(groups: Groups, spec: ScoreCurvesSpec, path: Path, *, title: str) -> Drawn:
    """Draw one figure."""
    scores = spec["scores"]
    size = (10.0, 0.6 + 2.9 * len(groups))
    with canvas(title, rows=len(groups), columns=len(scores), size=size) as (figure, axes):
        for row, (name, settings) in enumerate(groups.items()):
            for axis, key in zip(axes[len(scores) * row :], scores, strict=False):
                is_curve = _draw_panel(axis, settings, key, target=spec["target"])
                axis.set_title(f"{spec['experiments'][name]}: {key.partition('/')[2].replace('_', ' ')} (%)"
                               + ("" if is_curve else ", last value"))  # fmt: skip
        entries = {}
        for settings in groups.values():
            for group, style in zip(settings, styles(settings), strict=True):
                entries[counted(group)] = Line2D([], [], **style)
        legend_below(figure, entries)
        numbers = [
            [group.label, run.name, run.seed, f"{name}/{key}", step, epoch, value]
            for name, settings in groups.items()
            for group in settings
            for run in group.runs
            for key in scores
            for step, epoch, value in zip(*run.series(key), strict=True)
        ]
        return save(figure, path, title, caption=spec["caption"], rows=numbers)


def _draw_panel(axis: Axes, groups: Sequence[Group[ResultRow]], key: str, *, target: str) -> bool:
    """Draw a score of all settings, and return whether as curves; two points or fewer are drawn as last values."""
    series = [over_seeds(group.runs, key) for group in groups]
    is_curve = max((len(epochs) for epochs, _ in series), default=0) > FEW
    for place, (group, style, (epochs, values)) in enumerate(zip(groups, styles(groups), series, strict=True)):
        if not epochs:
            continue
        if group.first.opt_name == target:
            axis.axhline(values[:, -1].mean(), color=style["color"], linestyle=":", linewidth=0.9)
        if not is_curve:
            last_values(axis, place, values[:, -1].tolist(), shade=style["color"])
            continue
        line: dict[str, Any] = {**style, "marker": style["marker"] or ("o" if len(epochs) < 10 else "")}
        axis.plot(epochs, values.mean(axis=0), markersize=3, **line)
        if len(values) > 1:
            axis.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.15, lw=0)
    axis.set_xlabel("epoch" if is_curve else "")
    return is_curve


def crossings(groups: Groups, spec: ScoreCurvesSpec) -> list[str]:
    """Return a sentence per experiment and score: when the challenger exceeds the target's last mean score."""
    target, challenger = spec["target"], spec["challenger"]
    lines = []
    for name, settings in groups.items():
        by_optimizer = {group.first.opt_name: group for group in settings}
        if not {target, challenger} <= by_optimizer.keys():
            continue
        for key in spec["scores"]:
            epochs, values = over_seeds(by_optimizer[target].runs, key)
            times, curves = over_seeds(by_optimizer[challenger].runs, key)
            if not epochs or not times:
                continue
            last = values[:, -1].mean()
            reached = next((t for t, mean in zip(times, curves.mean(axis=0), strict=True) if mean > last), None)
            when = "never" if reached is None else f"in epoch {reached:g} of {epochs[-1]:g}"
            who = f"{spec['names'][challenger]} passes {spec['names'][target]}'s last {last:.2f}"
            lines.append(f"{spec['experiments'][name]}, {key}: {who} {when}")
    return lines
