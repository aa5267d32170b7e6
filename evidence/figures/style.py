"""Style of all figures: colours, type, safe texts, and one way of writing a figure to disk."""

from __future__ import annotations

import csv
import math
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

# One colour per optimizer in every figure; of those in the papers' tables Okabe and Ito's colour-blind-safe set. Each
# has a contrast of at least 2 to 1 with the light page and with the dark one.
COLOURS = {
    "gd": "#8a8f98", "sgd": "#2a7fb8", "sgdp": "#e69f00", "adam": "#cc79a7", "adamw": "#d55e00",
    "adamp": "#009e73", "adarem": "#56b4e9", "adarem_s": "#8a6642", "rmsprop": "#7b68c8",
    "adabound": "#a8a000", "sgd_aws": "#3d5a9e", "adam_aws": "#a0427a", "adam_sgd_paper": "#b2182b",
    "adam_sgd_reference": "#ee9a76", "lamb": "#bf812d", "lambp": "#01665e", "lion": "#c51b7d", "lionp": "#4d9221",
    "muon": "#5e4fa2", "nadam": "#f781bf", "radam": "#999933", "rmsprop_tf": "#b3a2e8",
}  # fmt: skip
SPARE = ("#9b2c4e", "#1b7837", "#8e44ad", "#35978f", "#8a5a10", "#5a5fb0")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("", "o", "s", "^", "D", "v", "P", "X")
INK = "#1c2024"  # text and axes; the page replaces it by the reader's text colour
FEW = 2  # points of a series that make no curve
MAX_POINTS = 400  # drawn in a line; the CSV holds them all

STYLE: dict[Any, Any] = {  # rcParams; matplotlib types their names one by one
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "figure.titlesize": 11,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.alpha": 0.25, "grid.linewidth": 0.6,
    "axes.linewidth": 0.8, "lines.linewidth": 1.5, "legend.frameon": False, "svg.fonttype": "path",
    "axes.titlelocation": "left", "figure.titleweight": "bold", "pdf.fonttype": 42,
    "axes.formatter.useoffset": False,
}  # fmt: skip


@dataclass(frozen=True)
class Drawn:
    """A figure on disk: `<stem>.svg`, `.png` and `.csv` beside each other."""

    stem: str
    title: str
    caption: str
    svg: Path


def colour(opt_name: str) -> str:
    """Return an optimizer's colour, the same in every figure; unknown names get one of the spare colours."""
    return COLOURS.get(opt_name, SPARE[zlib.crc32(opt_name.encode()) % len(SPARE)])


def luminance(shade: str) -> float:
    """Return the relative luminance of a colour, 0 to 1 (WCAG 2.2): contrasts are ratios of it plus 0.05."""
    channels = np.array(to_rgb(shade))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def setting_colours(count: int) -> list[str]:
    """Return colours of one optimizer's settings, from dark to light; none is that of an optimizer."""
    # The ends of the map cannot be told from a dark or a light page.
    return [to_hex(shade) for shade in mpl.colormaps["viridis"](np.linspace(0.22, 0.76, max(count, 1)))]


def plain(text: str, *, limit: int = 70) -> str:
    """Make a name from a run folder safe to draw: no mathematics, no unknown glyphs, not too long."""
    shown = "".join(c if c.isprintable() and (ord(c) < 0x500 or c in "‖Δŵ…×") else "?" for c in text)
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
    return shown.replace("\\", "/").replace("$", r"\$")


def headline(title: str, *, width: float) -> str:
    """Return a figure's title in lines that fit its width in inches; the third line and what follows are cut."""
    letters = int(width / 0.093)  # a bold letter takes about 0.093 inches
    lines = textwrap.wrap(plain(title, limit=len(title)), letters)
    return "\n".join(lines[:2] if len(lines) <= 2 else [lines[0], plain(" ".join(lines[1:]), limit=letters)])


def tame(axes: Sequence[Axes]) -> None:
    """Make a scale that axes share readable where values span decades.

    Below one decade it is linear, below three it has ticks at 1, 2 and 5; all are written out, without an offset.
    """
    low = min(axis.dataLim.minposy for axis in axes)
    high = max(axis.dataLim.intervaly[1] for axis in axes)
    if not 0 < low <= high < math.inf:
        return
    for axis in axes:
        if high / low >= 10:
            axis.set_yscale("log")
        if high / low < 1000:
            if high / low >= 10:
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())


def last_values(axis: Axes, place: int, values: Sequence[float], *, shade: str) -> None:
    """Draw the last values of a setting's seeds as dots in a column of their own, and their mean as a dash."""
    last = drawable(np.array(values, float), log=False)
    axis.plot([place] * len(last), last, "o", color=shade, markersize=4, alpha=0.8)
    if np.isfinite(last).any():
        axis.hlines(np.nanmean(last), place - 0.3, place + 0.3, color=shade, linewidth=2)
    axis.set(xlim=(-0.7, place + 0.7), xticks=[])


def legend_below(figure: Figure, entries: Mapping[str, Line2D]) -> None:
    """Put one legend below all panels, in as many columns as fit."""
    longest = max(map(len, entries), default=1)
    columns = max(1, min(len(entries), int(figure.get_figwidth() / (0.065 * longest + 0.7))))
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=columns, handlelength=3.2)


@contextmanager
def canvas(
    title: str, *, rows: int = 1, columns: int, size: tuple[float, float]
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Yield an empty figure and its axes, row by row; `size` is in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        figure.suptitle(headline(title, width=size[0]), x=0.005, ha="left")
        yield figure, list(axes.flat)


def save(figure: Figure, path: Path, title: str, *, caption: str, rows: Iterable[Sequence[Any]]) -> Drawn:
    """Write `path` (an .svg), the same as .png, and the numbers behind it as .csv.

    Args:
        figure: What to write.
        path: Ends in .svg; its folder is made.
        title: What the figure shows, for the page.
        caption: How to read it, for the page.
        rows: (group, run, seed, metric, step, epoch, value).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fixed salt, no date: the same numbers give the same bytes, and ids differ between a page's figures.
    with mpl.rc_context({**STYLE, "svg.hashsalt": path.stem}):
        # Lay out once, not at each of the two drawings: that is most of the time a figure takes.
        if (engine := figure.get_layout_engine()) is not None:
            engine.execute(figure)
            figure.set_layout_engine(None)
        undated = {"Date": None, "Creator": None}
        figure.savefig(path, dpi=110, transparent=True, metadata=undated)
        figure.savefig(path.with_suffix(".png"), dpi=140, facecolor="white")
    with path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["group", "run", "seed", "metric", "step", "epoch", "value"])
        writer.writerows(rows)
    return Drawn(path.stem, title, caption, path)


def thin(x: Sequence[float], y: Sequence[float], *, mean: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return at most MAX_POINTS points: means of neighbours, or every k-th and the last."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    step = math.ceil(len(xs) / MAX_POINTS)
    if step <= 1:
        return xs, ys
    if mean:
        edges = np.arange(0, len(xs), step)
        counts = np.diff([*edges, len(xs)])
        return np.add.reduceat(xs, edges) / counts, np.add.reduceat(ys, edges) / counts
    keep = np.unique([*range(0, len(xs), step), len(xs) - 1])
    return xs[keep], ys[keep]


def drawable(values: np.ndarray, log: bool) -> np.ndarray:
    """Return values with NaN for what an axis cannot show: not finite, astronomical, on a log axis not positive."""
    shown = np.abs(values) < 1e100  # matplotlib's own arithmetic overflows on what a diverged run can log
    return np.where(shown & ((values > 0) if log else True), values, np.nan)
