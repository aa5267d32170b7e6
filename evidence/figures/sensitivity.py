"""How much the choice of rate and decay matters: a picture of the score over both, and a table of what was found."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from evidence.figures.style import canvas, save
from evidence.tuning import Point, best, facts, good

NONE = "–"
HOW = """\
Each optimizer had the same number of runs, at the same points of its own square of rate x decay (a scrambled Halton
sequence over the logarithms). A run that diverged counts as one that is not near. Near: a score within 1 % of the
optimizer's best, relative; its share of the runs estimates the share of the searched area."""


def page(facts_by_optimizer: Mapping[str, Mapping[str, Any]], *, title: str, said: str, monitor: str) -> str:
    """Return the table of what was found, as Markdown."""
    heads = [
        "optimizer", "rate", "decay", monitor.lstrip("-") or "score", "runs", "diverged", "near the best",
        "rates near", "decays near", "",
    ]  # fmt: skip
    lines = [
        f"# Tuning: {title}",
        "",
        f"Chosen by {said}.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + " --- |" * len(heads),
    ]
    for opt, row in facts_by_optimizer.items():
        if not row["scored"]:
            lines.append(f"| {opt} | {NONE} | {NONE} | {NONE} | 0 of {row['runs']} |" + f" {NONE} |" * 5)
            continue
        ends = ", ".join(row["at_the_end_of"])
        cells = [
            opt, f"{row['lr']:g}", f"{row['weight_decay']:g}", f"{row['score']:.4g}",
            f"{row['scored']} of {row['runs']}", str(row["diverged"]), f"{100 * row['within_1_percent']:.0f} %",
            "{:g} – {:g}".format(*row["lr_within"]), "{:g} – {:g}".format(*row["weight_decay_within"]),
            f"at the {ends} searched: search further" if ends else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", HOW, ""])


def draw(by_optimizer: Mapping[str, Sequence[Point]], path: Path, *, title: str, monitor: str) -> None:
    """Draw a panel an optimizer, on one scale of colours, as SVG and PNG, with its numbers as CSV.

    Rings: within 1 % of the optimizer's best. Star: the best. Cross: the loss was not finite.
    """
    scores = [point.score for points in by_optimizer.values() for point in points if point.score is not None]
    low, high = _colours(scores, monitor)
    name, scatter = monitor.lstrip("-"), None
    heading = f"Tuning, {title}"
    with canvas(heading, columns=len(by_optimizer), size=(1.2 + 3.2 * len(by_optimizer), 3.4)) as (figure, panels):
        for axes, (opt, points) in zip(panels, by_optimizer.items(), strict=True):
            scatter = _panel(axes, points, low, high) or scatter
            near, top = good(points, monitor), best(points, monitor)
            x, y = [p.lr for p in near], [p.weight_decay for p in near]
            axes.scatter(x, y, s=110, facecolors="none", edgecolors="black")
            if top is not None:
                axes.scatter(
                    [top.lr], [top.weight_decay], s=60, marker="*", color="white", edgecolors="black", zorder=4
                )
                axes.set_title(f"{opt}: {top.score:.4g}, {100 * len(near) / len(points):.0f} % near", fontsize=9)
            axes.set(xscale="log", yscale="log", xlabel="learning rate")
            axes.tick_params(labelsize=7)
        panels[0].set_ylabel("weight decay")
        if scatter is not None:
            figure.colorbar(scatter, ax=panels, label=name)
        caption = "Rings: within 1 % of the best. Star: the best. Cross: the loss was not finite."
        rows = [
            (p.opt, p.folder.name, "", key, "", "", value)
            for points in by_optimizer.values()
            for p in points
            for key, value in (("opt.lr", p.lr), ("opt.weight_decay", p.weight_decay), (name, p.score))
        ]
        save(figure, path, heading, caption=caption, rows=rows)


def _colours(scores: Sequence[float], monitor: str) -> tuple[float, float]:
    """Return the ends of the scale of colours: what is far worse than the median would leave no colours to the rest."""
    middle = float(np.median(scores))
    low, high = min(scores), max(scores)
    if monitor.startswith("-"):
        high = min(high, middle + 2 * (middle - low))
    else:
        low = max(low, middle - 2 * (high - middle))
    return low, (high if high > low else low + 1e-9 + abs(low) * 1e-9)


def _panel(axes: Axes, points: Sequence[Point], low: float, high: float) -> PathCollection | None:
    """Draw the scores of one optimizer, with areas between them where there are enough."""
    scored = [point for point in points if point.score is not None]
    lost = [point for point in points if point.status == "diverged"]
    axes.scatter([p.lr for p in lost], [p.weight_decay for p in lost], s=40, marker="x", color="black")
    if not scored:
        return None
    x, y = [p.lr for p in scored], [p.weight_decay for p in scored]
    z = [min(max(p.score if p.score is not None else math.nan, low), high) for p in scored]
    if len(scored) >= 4:
        axes.tricontourf(x, y, z, levels=np.linspace(low, high, 12), cmap="viridis", alpha=0.45)
    return axes.scatter(x, y, c=z, vmin=low, vmax=high, cmap="viridis", s=45, edgecolors="black", linewidths=0.5)


def write(found: Mapping[str, Sequence[Point]], out: Path, *, title: str, said: str, monitor: str) -> None:
    """Write points.csv, chosen.yaml, sensitivity.md and the picture."""
    made = facts(found, monitor)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "points.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["opt", "lr", "weight_decay", "score", "status", "run"])
        for point in (point for own in found.values() for point in own):
            score = "" if point.score is None else f"{point.score:.10g}"
            writer.writerow([point.opt, point.lr, point.weight_decay, score, point.status, point.folder.name])
    recipe = {o: {"lr": f["lr"], "weight_decay": f["weight_decay"]} for o, f in made.items() if f["scored"]}
    chosen = {"recipe": recipe, "protocol": {"chosen by": monitor.lstrip("-"), "on": said}, "found": made}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    (out / "chosen.yaml").write_text(f"# {title}\n{text}", encoding="utf-8")
    (out / "sensitivity.md").write_text(page(made, title=title, said=said, monitor=monitor), encoding="utf-8")
    if any(fact["scored"] for fact in made.values()):
        draw(found, out / "sensitivity.svg", title=title, monitor=monitor)
