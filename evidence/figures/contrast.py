"""The figure of a contrast in four panels: score over rate, norm, effective step and its cap, difference over steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from evidence.contrasts import by_seed, cells
from evidence.figures.style import Drawn, canvas, colour, legend_below, plain, save
from evidence.records.row import ResultRow
from evidence.stats import paired

Cells = Mapping[tuple[str, str, float, float], Sequence[ResultRow]]


def draw(rows: Sequence[ResultRow], spec: Mapping[str, Any], folder: Path, *, stem: str, title: str) -> list[Drawn]:
    """Draw one figure a data set.

    Args:
        rows: The runs.
        spec: `figure` of the sweep: `pairs`, ours first; `decay` and `rate`, of the curves, by the pair's first.
        folder: Where to write.
        stem: Name of the files; the name of the data set follows where there are several.
        title: Above each figure.
    """
    by_cell = cells(rows)
    names = sorted({key[0] for key in by_cell})
    return [
        _draw(
            {key: runs for key, runs in by_cell.items() if key[0] == data}, spec,
            folder / (f"{stem}-{data}.svg" if len(names) > 1 else f"{stem}.svg"), title=f"{title}: {data}",
        )
        for data in names
    ]  # fmt: skip


def _draw(by_cell: Cells, spec: Mapping[str, Any], path: Path, *, title: str) -> Drawn:
    written: list[tuple[Any, ...]] = []
    with canvas(title, rows=2, columns=2, size=(10, 7.4)) as (figure, axes):
        for number, (ours, theirs) in enumerate(spec["pairs"]):
            rate = float(spec["rate"][ours])
            for opt in (ours, theirs):
                _scores(axes[0], by_cell, opt, written)
                _curve(axes[1], by_cell, opt, rate, "norm/mean", written)
                _curve(axes[2], by_cell, opt, rate, "effective_step/mean", written)
            _difference(axes[3], by_cell, (ours, theirs), rate, written, number=number)
        momentum = spec.get("cap")
        if momentum is not None:
            _caps(axes[2], by_cell, float(momentum), written)
        labels = [
            ("learning rate", "validation top-1 (%), last step", "Score over rate"),
            ("step", "mean norm of a filter", "Norm, no decay"),
            ("step", "effective step", "Effective step, no decay"),
            ("step", "top-1, ours - theirs (points)", "Difference, no decay"),
        ]
        for axis, (x, y, heading) in zip(axes, labels, strict=True):
            axis.set_xlabel(x)
            axis.set_ylabel(y)
            axis.set_title(heading)
        axes[0].set_xscale("log")
        for axis in axes[1:3]:
            axis.set_yscale("log")
        axes[3].axhline(0, color="#8a8f98", linewidth=0.8)
        lines = {str(line.get_label()): line for axis in axes for line in axis.lines}
        legend_below(figure, {label: line for label, line in lines.items() if not label.startswith("_")})
        caption = (
            "Means over seeds, with 95 % intervals of the mean (first panel) and of the paired difference (last). "
            "Dashed in the first panel: with weight decay. Dotted in the third: the cap that schedule and momentum "
            "alone predict."
        )
        return save(figure, path, title, caption=caption, rows=written)


def _scores(axis: Axes, by_cell: Cells, opt: str, written: list[tuple[Any, ...]]) -> None:
    """Draw the last score over the rate with the interval of its mean, a line a decay."""
    for number, decay in enumerate(sorted({key[2] for key in by_cell if key[1] == opt})):
        rates, means, halves = [], [], []
        for (_, _, _, rate), runs in sorted((k, r) for k, r in by_cell.items() if k[1] == opt and k[2] == decay):
            scores = by_seed(runs, "val/top1")
            mean = paired(scores, dict.fromkeys(scores, 0.0))
            if mean is not None:
                rates.append(rate)
                means.append(mean.mean)
                halves.append(0.0 if mean.low is None else mean.mean - mean.low)
            label = f"{opt} decay {decay:g}"
            written += [(label, row.name, row.seed, "val/top1", row.steps, rate, row.scores.get("val/top1", ""))
                        for row in runs]  # fmt: skip
        axis.plot(rates, means, color=colour(opt), linestyle="--" if number else "-", marker="o", markersize=3,
                  label=plain(f"{opt}, decay {decay:g}"))  # fmt: skip
        axis.errorbar(rates, means, yerr=halves, color=colour(opt), linestyle="none", linewidth=0.8, label="_")


def _no_decay(by_cell: Cells, opt: str, rate: float) -> Sequence[ResultRow]:
    return next((runs for key, runs in by_cell.items() if key[1:] == (opt, 0.0, rate)), ())


def _curve(axis: Axes, by_cell: Cells, opt: str, rate: float, metric: str, written: list[tuple[Any, ...]]) -> None:
    """Draw the mean over seeds of a curve of the runs without decay, faint at the other rates."""
    for key, runs in sorted(by_cell.items()):
        if key[1] != opt or key[2] != 0:
            continue
        steps, mean = _mean_curve(runs, metric)
        is_main = key[3] == rate
        label = f"{opt}, lr {key[3]:g}"
        axis.plot(steps, mean, color=colour(opt), alpha=1 if is_main else 0.3, linewidth=1.5 if is_main else 0.9,
                  label=plain(label) if is_main else None)  # fmt: skip
        written += [(label, "mean", "", metric, step, "", value) for step, value in zip(steps, mean, strict=True)]


def _mean_curve(runs: Sequence[ResultRow], metric: str) -> tuple[list[int], list[float]]:
    """Return steps that all finished runs have, and the means there."""
    series = [dict(zip(*(run.series(metric)[0::2]), strict=True)) for run in runs if run.finished]
    steps = sorted(set.intersection(*(set(points) for points in series))) if series else []
    return steps, [float(np.mean([points[step] for points in series])) for step in steps]


def _caps(axis: Axes, by_cell: Cells, momentum: float, written: list[tuple[Any, ...]]) -> None:
    """Draw the predicted caps of SGD and of projected SGD, as means between the logged steps as the measured ones."""
    from adamp.probes import predicted_cap  # torch takes a second, which other figures need not spend

    run = next(iter(by_cell.values()))[0]
    steps, _, _ = run.series("norm/mean")
    schedule = [0.5 * (1 + np.cos(np.pi * step / steps[-1])) for step in range(steps[-1])]
    for label, opt, beta in ((f"cap, momentum {momentum:g}", "sgd", momentum), ("cap, projected", "sgdp", 0.0)):
        caps = predicted_cap(schedule, momentum=beta)
        means = [float(np.mean(caps[first:last])) for first, last in pairwise(steps[1:])]
        axis.plot(steps[2:], means, color="black" if opt == "sgd" else "#8a8f98", linestyle=":", label=label)
        written += [(label, "predicted", "", "effective_step/cap", step, "", value)
                    for step, value in zip(steps[2:], means, strict=True)]  # fmt: skip


def _difference(
    axis: Axes, by_cell: Cells, pair: tuple[str, str], rate: float, written: list[tuple[Any, ...]], *, number: int
) -> None:
    """Draw the paired difference of the scores over the steps, and mark the last crossing of zero."""
    sides = []
    for opt in pair:
        runs = [run for run in _no_decay(by_cell, opt, rate) if run.finished]
        sides.append({run.seed: dict(zip(*(run.series("val/top1")[0::2]), strict=True)) for run in runs})
    common = sides[0].keys() & sides[1].keys()
    if not common:
        return
    steps = sorted(set.intersection(*(set(side[seed]) for side in sides for seed in common)))
    diffs = [paired({s: sides[0][s][t] for s in common}, {s: sides[1][s][t] for s in common}) for t in steps]
    points = [(t, d) for t, d in zip(steps, diffs, strict=True) if d is not None]
    means = [d.mean for _, d in points]
    label = f"{pair[0]} - {pair[1]}, lr {rate:g}"
    written += [(label, "mean", "", "val/top1 difference", t, "", d.mean) for t, d in points]
    behind = [k for k, mean in enumerate(means) if mean <= 0]
    if behind and behind[-1] + 1 < len(means):
        k = behind[-1]
        share = -means[k] / (means[k + 1] - means[k])
        crossing = points[k][0] + (points[k + 1][0] - points[k][0]) * share
        written.append((label, "crossing", "", "ahead from step", round(crossing), "", 0))
        axis.axvline(crossing, color=colour(pair[0]), linestyle=":", linewidth=1)
        side = ("left", "right")[number % 2]  # two pairs may cross at about the same step
        axis.text(crossing, 0.04, f"ahead from {crossing:.0f}", ha=side, va="bottom", rotation=90, fontsize=6.5,
                  color=colour(pair[0]), transform=axis.get_xaxis_transform())  # fmt: skip
    axis.plot([t for t, _ in points], means, color=colour(pair[0]), label=plain(label))
    known = [(t, d.low, d.high) for t, d in points if d.low is not None and d.high is not None]
    if known:
        ts, lows, highs = zip(*known, strict=True)
        axis.fill_between(ts, lows, highs, color=colour(pair[0]), alpha=0.2, linewidth=0)
