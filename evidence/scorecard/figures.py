"""The figures of a scorecard's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from evidence.figures.style import Drawn, canvas, colour, legend_below, save, tame
from evidence.scorecard.battery import Battery
from evidence.scorecard.card import TUNED, UNDECAYED, Card
from evidence.scorecard.profile import TAUS, profiles, target

Rows = list[tuple[Any, ...]]  # the numbers beside a figure: (group, run, seed, metric, step, epoch, value)
Panel = Callable[[Axes, Card, str, Rows], Line2D | None]


def draw(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> list[Drawn]:
    """Draw what there is of a card, beside the baselines."""
    return [
        drawn
        for make in (_profile, _curves, _trials, _norms, _effective_steps, _projected)
        if (drawn := make(card, baselines, battery, folder)) is not None
    ]


def _profile(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    found = profiles([card, *baselines], baselines, battery)
    if not found or len(found) < 2:
        return None
    title = "Performance profile over workloads"
    rows: Rows = []
    with canvas(title, columns=1, size=(7.0, 3.6)) as (figure, (axis,)):
        entries = {}
        for name, profile in found.items():
            is_own = name == card.name
            (entries[name],) = axis.step(
                TAUS, profile.shares, where="post", color=colour(name), linewidth=2.5 if is_own else 1.2
            )
            if is_own:
                axis.fill_between(TAUS, profile.low, profile.high, step="post", color=colour(name), alpha=0.2)
            for part in ("shares", "low", "high"):
                rows += [
                    (name, "", "", part, tau, "", value)
                    for tau, value in zip(TAUS, getattr(profile, part), strict=True)
                ]
        axis.set(xscale="log", xlabel="steps to the target, as a multiple of the fastest", ylabel="share of workloads")
        axis.set(ylim=(-0.02, 1.02), xticks=[1, 1.5, 2, 3, 4], xticklabels=["1", "1.5", "2", "3", "4"])
        axis.minorticks_off()
        legend_below(figure, entries)
        caption = "Higher is better. Band: 95 % of bootstrap samples of the seeds, for the optimizer of this page."
        return save(figure, folder / f"{card.name}-profile.svg", title, caption=caption, rows=rows)


def _panels(
    card: Card, baselines: Sequence[Card], battery: Battery, path: Path, *, title: str, caption: str, label: str,
    panel: Panel, x: str = "step",
) -> Drawn | None:  # fmt: skip
    """Draw a panel per workload that has something to show."""
    keys = [key for key in battery.workloads if card.points(key)]
    if not keys:
        return None
    columns = min(3, len(keys))
    lines = math.ceil(len(keys) / columns)
    rows: Rows = []
    with canvas(title, rows=lines, columns=columns, size=(3.4 * columns + 0.4, 2.5 * lines + 0.7)) as (figure, axes):
        entries: dict[str, Line2D] = {}
        for axis, key in zip(axes, keys, strict=False):
            for each in (*baselines, card):  # the card's own on top
                line = panel(axis, each, key, rows)
                if line is not None:
                    entries[each.name] = line
            axis.set_title(battery.workloads[key].title)
            axis.set_xlabel(x)
        for axis in axes[len(keys) :]:
            axis.set_visible(False)
        axes[0].set_ylabel(label)
        if not entries:
            return None
        legend_below(figure, entries)
        return save(figure, path, title, caption=caption, rows=rows)


def _series(card: Card, key: str, metric: str, choice: str = TUNED) -> tuple[list[int], np.ndarray]:
    """Return steps and the mean over seeds of a curve (metric "") or of a measure of the mechanism."""
    runs = [run for run in card.runs(key, choice).values() if run["status"] == "finished"]
    curves = [dict(map(tuple, run["mechanism"].get(metric, []) if metric else run["curve"])) for run in runs]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return steps, np.array([np.mean([curve[step] for curve in curves]) for step in steps])


def _style(card: Card, own: Card) -> dict[str, Any]:
    return {"color": colour(card.name), "linewidth": 2.2 if card is own else 1.1}


def _curves(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    def panel(axis: Axes, each: Card, key: str, rows: Rows) -> Line2D | None:
        steps, values = _series(each, key, "")
        if not steps:
            return None
        if each is card and (goal := target(baselines, battery, key)) is not None:
            axis.axhline(goal, color="#8a8f98", linestyle=":", linewidth=1)
        rows.extend((each.name, key, "", "score", step, "", value) for step, value in zip(steps, values, strict=True))
        low = float(values.min())
        axis.set_ylim(top=min(axis.get_ylim()[1], 1.6 * low) if axis.lines else 1.6 * low)
        (line,) = axis.plot(steps, values, **_style(each, card))
        axis.autoscale(axis="y")
        axis.set_yscale("log")
        return line

    return _panels(
        card, baselines, battery, folder / f"{card.name}-curves.svg", title="Test loss while training", label="loss",
        caption="Means over the seeds at the chosen rate and decay. Dotted: the target.", panel=panel,
    )  # fmt: skip


def _trials(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    def panel(axis: Axes, each: Card, key: str, rows: Rows) -> Line2D | None:
        points = sorted(each.points(key), key=lambda point: point.place[0])
        scored = [point for point in points if point.score is not None]
        rows.extend((each.name, f"lr={p.lr:g},wd={p.weight_decay:g}", "", p.status, "", "", p.score) for p in points)
        if not scored:
            return None
        best = min(point.score or 0.0 for point in scored)
        ratios = [min((point.score or 0.0) / best, 2.0) for point in scored]
        (line,) = axis.plot(
            [p.place[0] for p in scored], ratios, "o" if each is card else ".", color=colour(each.name),
            markersize=5 if each is card else 4, alpha=0.9 if each is card else 0.5,
        )  # fmt: skip
        lost = [point.place[0] for point in points if point.score is None]
        axis.plot(lost, [2.0] * len(lost), "x", color=colour(each.name))
        axis.axhline(1.01, color="#8a8f98", linewidth=0.6)
        return line

    return _panels(
        card, baselines, battery, folder / f"{card.name}-trials.svg", title="Trials: how much the choice matters",
        label="held-out loss / own best", panel=panel, x="learning rate, as a share of the searched decades",
        caption="A dot per trial; its decay differs too. Line: within 1 % of the best. Above 2 is drawn at 2; crosses "
        "diverged.",
    )  # fmt: skip


def _measure(
    card: Card, baselines: Sequence[Card], battery: Battery, path: Path, *, metric: str, title: str, label: str,
    caption: str, caps: bool = False,
) -> Drawn | None:  # fmt: skip
    def panel(axis: Axes, each: Card, key: str, rows: Rows) -> Line2D | None:
        line = None
        for choice, dashes in ((TUNED, "--"), (UNDECAYED, "-")):
            steps, values = _series(each, key, metric, choice)
            shown = [(s, v) for s, v in zip(steps, values, strict=True) if s]
            if shown:
                rows.extend((each.name, key, "", f"{metric}, {choice}", step, "", value) for step, value in shown)
                (line,) = axis.plot(*zip(*shown, strict=True), linestyle=dashes, **_style(each, card))
        if caps and each is card and line is not None:
            for beta, (steps_, means) in _caps(card, key):
                axis.plot(steps_, means, ":", color="#8a8f98", linewidth=1.2)
                rows.extend(
                    (f"cap, momentum {beta:g}", key, "", metric, s, "", v) for s, v in zip(steps_, means, strict=True)
                )
        tame([axis])
        return line

    return _panels(card, baselines, battery, path, title=title, label=label, caption=caption, panel=panel)


def _caps(card: Card, key: str) -> Iterator[tuple[float, tuple[list[int], list[float]]]]:
    """Yield momentum -> steps and predicted caps of the effective step, as means between two logged steps."""
    from adamp.probes import predicted_cap  # torch takes a second

    steps, _ = _series(card, key, "effective_step/mean", UNDECAYED)
    if not steps:
        return
    total = steps[-1]
    cosine = [0.5 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    constant = card.data["optimizer"].get("schedule") == "constant"
    for beta in (0.9, 0.0):
        caps = predicted_cap([1.0] * total if constant else cosine, momentum=beta)
        ends = [0, *[step for step in steps if step]]
        yield beta, (ends[1:], [float(np.mean(caps[first:last])) for first, last in pairwise(ends)])


def _norms(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    return _measure(
        card, baselines, battery, folder / f"{card.name}-norms.svg", metric="norm/mean", title="Weight norms",
        label="mean norm per filter",
        caption="Scale-invariant weights, or all matrices in the control. Solid: no decay. Dashed: tuned decay.",
    )  # fmt: skip


def _effective_steps(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    return _measure(
        card, baselines, battery, folder / f"{card.name}-steps.svg", metric="effective_step/mean", caps=True,
        title="Effective steps", label="change of direction per step",
        caption="Solid: no decay. Dashed: tuned decay. Dotted: the cap that the schedule predicts for SGD without "
        "decay once norms have grown, at momentum 0.9 (lower) and projected (upper).",
    )  # fmt: skip


def _projected(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Drawn | None:
    rows = [
        each for each in (card, *baselines) if any(_series(each, k, "projected/share")[0] for k in battery.workloads)
    ]
    if not rows:
        return None
    return _measure(
        card, baselines, battery, folder / f"{card.name}-projected.svg", metric="projected/share",
        title="Updates that are projected", label="share of filters",
        caption="Share of the probed weights whose updates the optimizer projects. Solid: no decay. Dashed: tuned.",
    )  # fmt: skip
