"""The figure and the animation of the two-dimensional toy: paths, norms and losses, a column each momentum."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.animation import FFMpegWriter
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from PIL import Image

from evidence.figures.style import INK, STYLE, Drawn, canvas, colour, save
from evidence.runs.run import ReadError
from tasks.toy.cosine2d import MOMENTA, Run2D
from tasks.toy.descent import Path as Trajectory

LOOKS: dict[str, dict[str, Any]] = {
    "gd": {"color": colour("gd"), "label": "gradient descent"},
    "momentum": {"color": colour("sgd"), "label": "momentum"},
    "projected": {"color": colour("sgdp"), "label": "projected (Algorithm 1)"},
    "in place": {"color": colour("sgdp"), "label": "projected, buffer in place", "linestyle": ":", "linewidth": 1.1},
}
PATHS = ("momentum", "gd", "projected")  # drawn as paths, in this order
LEAST_LOSS = 1e-6  # of the loss axis
CSV_EVERY = 5
FRAME_EVERY, HOLD, FPS = 5, 2.0, 16  # iterations a frame, seconds that the end stays, frames a second
DPI, COLOURS = 80, 128  # of the animation
NORM_TICKS = (1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20)
TITLE = "Two dimensions: momentum lengthens the weight, the projection does not"
CAPTION = (
    "Dots every 25 iterations, diamond: the end. Green line: the direction of least loss; dashed: the unit "
    "circle, its surroundings in the small picture. The numbers are norms at the last iteration."
)


@dataclass(frozen=True)
class Curve:
    """A run's numbers as arrays: points (T + 1, 2), norms and losses (T + 1,)."""

    run: Run2D
    points: np.ndarray
    norms: np.ndarray
    losses: np.ndarray


def _curves(runs: Sequence[Run2D], paths: Sequence[Trajectory]) -> list[Curve]:
    return [
        Curve(run, path.points.numpy(), path.points.norm(dim=1).numpy(), path.losses.numpy())
        for run, path in zip(runs, paths, strict=True)
    ]


def _column(curves: Sequence[Curve], momentum: float, methods: Sequence[str]) -> list[Curve]:
    """Return the curves of one momentum, and gradient descent, in the order of `methods`."""
    chosen = [curve for curve in curves if curve.run.method == "gd" or curve.run.momentum == momentum]
    return sorted((c for c in chosen if c.run.method in methods), key=lambda c: methods.index(c.run.method))


def _frame_path(axis: Axes, shown: Sequence[Curve], *, zoomed: bool = False) -> None:
    """Draw the unit circle, the start and the direction of the optimum, and choose the limits."""
    points = np.concatenate([curve.points for curve in shown])
    low, high = points.min(axis=0), points.max(axis=0)
    if zoomed:
        low, high = np.array([-0.35, -1.35]), np.array([1.45, 1.2])
    middle, half = (low + high) / 2, 0.57 * max(high - low)
    axis.set_aspect("equal")
    axis.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half))
    axis.add_patch(Circle((0, 0), 1, fill=False, color=INK, alpha=0.35, linewidth=0.7, linestyle=(0, (2, 2))))
    axis.axvline(0, ymax=-(middle[1] - half) / (2 * half), color="#1b7837", linewidth=0.9, alpha=0.8)
    axis.plot([0], [0], "+", color=INK, markersize=5, markeredgewidth=0.8)
    axis.plot(*shown[0].points[0], "o", color=INK, markersize=3.2)


def _paths(axis: Axes, shown: Sequence[Curve], *, every: int = 25) -> None:
    for curve in shown:
        look = LOOKS[curve.run.method]
        axis.plot(*curve.points.T, color=look["color"], marker="o", markevery=every, markersize=2.2)
        axis.plot(*curve.points[-1], "D", color=look["color"], markersize=4.5, markeredgecolor="white", zorder=4)


def _corner(axis: Axes, line: int, curve: Curve, text: str, *, size: float) -> Text:
    """Write a line of text into the upper right corner, in the curve's colour."""
    place: dict[str, Any] = {
        "transform": axis.transAxes,
        "ha": "right",
        "va": "top",
        "fontsize": size,
        "weight": "bold",
    }
    return axis.text(0.99, 0.99 - 0.0085 * size * line, text, color=LOOKS[curve.run.method]["color"], **place)


def _norm_ticks(axis: Axes, largest: float, *, gap: float = 0.075) -> None:
    """Put ticks on a logarithmic axis of norms, each at least `gap` of its span from the next."""
    room, ticks = gap * np.log(largest), [1.0]
    for value in NORM_TICKS:
        if value < 1.05 * largest and np.log(value / ticks[-1]) > room:
            ticks.append(value)
    axis.set_yticks(ticks, [f"{value:g}" for value in ticks])
    axis.minorticks_off()


def _numbers(curves: Sequence[Curve]) -> list[list[Any]]:
    return [
        [curve.run.name, curve.run.method, "", metric, step, "", f"{values[step]:.8g}"]
        for curve in curves
        for metric, values in (
            ("x", curve.points[:, 0]), ("y", curve.points[:, 1]), ("norm", curve.norms), ("loss", curve.losses),
        )
        for step in sorted({*range(0, len(values), CSV_EVERY), len(values) - 1})
    ]  # fmt: skip


def draw(runs: Sequence[Run2D], paths: Sequence[Trajectory], folder: Path) -> Drawn:
    """Draw paths as in the paper's Figure 1, and norms and losses under them, a column each momentum."""
    curves = _curves(runs, paths)
    with canvas(TITLE, rows=3, columns=len(MOMENTA), size=(10.4, 9.4)) as (figure, axes):
        for column, momentum in enumerate(MOMENTA):
            top, middle, bottom = axes[column::3]
            shown = _column(curves, momentum, PATHS)
            _frame_path(top, shown)
            _paths(top, shown)
            for line, curve in enumerate(shown):
                _corner(top, line, curve, f"‖w‖ = {curve.norms[-1]:.2f}", size=8.5)
            top.set_title(f"momentum {momentum:g}: path of w")
            if shown[0].norms[-1] > 10:
                inset = top.inset_axes((0.03, 0.03, 0.42, 0.42))
                _frame_path(inset, shown, zoomed=True)
                _paths(inset, shown)
                inset.set(xticks=[], yticks=[])
                inset.grid(False)
                for spine in inset.spines.values():
                    spine.set(visible=True, alpha=0.5, linewidth=0.6)
                top.indicate_inset_zoom(inset, edgecolor=INK, alpha=0.35, linewidth=0.6)
            for curve in _column(curves, momentum, tuple(LOOKS)):
                middle.plot(curve.norms, **LOOKS[curve.run.method])
                bottom.plot(np.maximum(curve.losses, LEAST_LOSS), **LOOKS[curve.run.method])
            middle.set_title("norm ‖w‖ (log)")
            bottom.set_title("loss (1 - cos)² (log, cut at 1e-6)")
            for axis in (middle, bottom):
                axis.set_yscale("log")
                axis.set_xlabel("iteration")
                axis.margins(x=0.01)
            _norm_ticks(middle, shown[0].norms.max())
        handles, labels = axes[3].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=4)
        return save(figure, folder / "toy2d-paths.svg", TITLE, caption=CAPTION, rows=_numbers(curves))


@dataclass(frozen=True)
class Moving:
    """A curve's line and dot on one axis, and what they follow; or a text about it."""

    curve: Curve
    artists: tuple[Artist, ...]
    x: np.ndarray | None = None
    y: np.ndarray | None = None

    def show(self, step: int) -> None:
        """Move to an iteration."""
        if self.x is None or self.y is None:
            norm, loss = self.curve.norms[step], self.curve.losses[step]
            self.artists[0].set(text=f"{norm:.2f}   {loss:.4f}")
        else:
            self.artists[0].set(data=(self.x[: step + 1], self.y[: step + 1]))
            self.artists[1].set(data=(self.x[step : step + 1], self.y[step : step + 1]))


def _moving(axis: Axes, curve: Curve, x: np.ndarray, y: np.ndarray) -> Moving:
    hue = LOOKS[curve.run.method]["color"]
    (line,) = axis.plot([], [], color=hue, linewidth=1.5, animated=True)
    (dot,) = axis.plot([], [], "o", color=hue, markersize=5, markeredgecolor="white", zorder=4, animated=True)
    return Moving(curve, (line, dot), x, y)


def _stage(curves: Sequence[Curve]) -> tuple[Figure, list[Moving]]:
    """Return the animation's figure, its title empty, and what moves in it."""
    figure = Figure(figsize=(9.2, 7.4), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle("iteration", x=0.005, ha="left", animated=True)
    axes = figure.subplots(3, 3, height_ratios=(2, 1, 1))
    moving: list[Moving] = []
    steps = np.arange(len(curves[0].losses))
    for column, momentum in enumerate(MOMENTA):
        shown = _column(curves, momentum, PATHS)
        top, middle, bottom = axes[:, column]
        _frame_path(top, shown)
        top.set_title(f"momentum {momentum:g}: path of w")
        top.text(0.99, 0.99, "‖w‖     loss", transform=top.transAxes, ha="right", va="top", fontsize=8)
        for line, curve in enumerate(shown):
            moving.append(_moving(top, curve, *curve.points.T))
            moving.append(_moving(middle, curve, steps, curve.norms))
            moving.append(_moving(bottom, curve, steps, np.maximum(curve.losses, LEAST_LOSS)))
            text = _corner(top, line + 1, curve, "", size=8)
            text.set_animated(True)
            moving.append(Moving(curve, (text,)))
        largest = max(curve.norms.max() for curve in shown)
        middle.set(yscale="log", ylim=(0.95, 1.1 * largest), xlim=(0, steps[-1] + 8), title="norm ‖w‖ (log)")
        _norm_ticks(middle, largest, gap=0.15)
        bottom.set(yscale="log", ylim=(LEAST_LOSS, 8), xlim=(0, steps[-1] + 8), title="loss (log)", xlabel="iteration")
    handles = [Line2D([], [], **LOOKS[method]) for method in ("gd", "momentum", "projected")]
    figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure, moving


def _frames(curves: Sequence[Curve], steps: Sequence[int]) -> list[Image.Image]:
    """Return a picture of each iteration. All that stands still is drawn once."""
    figure, moving = _stage(curves)
    canvas_, frames = figure.canvas, []
    assert isinstance(canvas_, FigureCanvasAgg)
    canvas_.draw()
    figure.set_layout_engine(None)
    still = canvas_.copy_from_bbox(figure.bbox)
    for step in steps:
        canvas_.restore_region(still)
        figure.suptitle(f"iteration {step}", x=0.005, y=figure.texts[0].get_position()[1], ha="left", animated=True)
        figure.draw_artist(figure.texts[0])
        for item in moving:
            item.show(step)
            for artist in item.artists:
                figure.draw_artist(artist)
        frames.append(Image.fromarray(np.asarray(canvas_.buffer_rgba())).convert("RGB"))
    return frames


def check_animation(kind: str) -> None:
    """Raise ReadError unless an animation of this kind can be written here."""
    if kind not in ("gif", "mp4", "none"):
        raise ReadError(f"animation={kind} is not valid: gif, mp4 or none")
    if kind == "mp4" and shutil.which("ffmpeg") is None:
        raise ReadError("animation=mp4 needs ffmpeg, which is not installed here; use animation=gif")


def animate(runs: Sequence[Run2D], paths: Sequence[Trajectory], folder: Path, *, kind: str) -> Path | None:
    """Write the animation of path, norm and loss as toy2d.gif or toy2d.mp4; `kind` "none" writes nothing."""
    check_animation(kind)
    if kind == "none":
        return None
    path = folder / f"toy2d.{kind}"
    curves = [curve for curve in _curves(runs, paths) if curve.run.method in PATHS]
    last = len(curves[0].losses) - 1
    with mpl.rc_context({**STYLE, "figure.facecolor": "white"}):
        frames = _frames(curves, sorted({*range(0, last, FRAME_EVERY), last}))
        if kind == "gif":
            palette = frames[-1].quantize(COLOURS)  # one for all: frames then differ only where something moved
            pictures = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
            times = [1000 // FPS] * (len(frames) - 1) + [int(1000 * HOLD)]
            pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0)
        else:
            _write_mp4(frames, path)
    return path


def _write_mp4(frames: Sequence[Image.Image], path: Path) -> None:
    width, height = frames[0].size
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    FigureCanvasAgg(figure)
    picture = figure.figimage(np.asarray(frames[0]))
    writer = FFMpegWriter(fps=FPS)
    with writer.saving(figure, str(path), dpi=DPI):
        for frame in [*frames, *[frames[-1]] * int(FPS * HOLD)]:
            picture.set_data(np.asarray(frame))
            writer.grab_frame()
