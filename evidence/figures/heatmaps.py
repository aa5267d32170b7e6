"""Heat maps of layers against epochs: filter norm and effective step of every scale-invariant weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from evidence.figures.style import Drawn, canvas, drawable, plain, save
from evidence.records.settings import Group
from evidence.runs.run import Run

KINDS = (
    ("norm", "filter norm ‖w‖", "Filter norm, layer by layer"),
    ("effective_step", "effective step ‖Δŵ‖", "Effective step, layer by layer"),
)
COLUMNS = 4  # maps side by side in a comparison


def matrix(run: Run, kind: str) -> tuple[list[str], list[float], np.ndarray]:
    """Return (layers, epochs, values of shape (layers, epochs)); NaN where a layer was not logged."""
    layers = run.layers(kind)
    columns = []
    for layer in layers:
        _, epochs, values = run.series(f"{kind}/{layer}")
        columns.append(dict(zip(epochs, values, strict=True)))
    epochs = sorted({epoch for column in columns for epoch in column})
    rows = [[column.get(epoch, math.nan) for epoch in epochs] for column in columns]
    return layers, epochs, np.array(rows, float).reshape(len(layers), len(epochs))


def _scale(values: Sequence[np.ndarray]) -> Normalize:
    """Return one colour scale for all maps, logarithmic where they span more than a factor of 10."""
    flat = np.concatenate([value[np.isfinite(value)] for value in values])
    positive = flat[flat > 0]
    if len(positive) and positive.max() > 10 * positive.min():
        return LogNorm(positive.min(), positive.max())
    low, high = (flat.min(), flat.max()) if len(flat) else (0.0, 1.0)
    return Normalize(low, high if high > low else low + 1.0)


def _heat(axis: Axes, layers: Sequence[str], epochs: Sequence[float], values: np.ndarray, norm: Normalize) -> QuadMesh:
    """Draw one map; each column is centred on its epoch."""
    middle = (np.asarray(epochs[1:]) + np.asarray(epochs[:-1])) / 2
    first = epochs[0] - (middle[0] - epochs[0] if len(middle) else 0.5)
    last = epochs[-1] + (epochs[-1] - middle[-1] if len(middle) else 0.5)
    finite = drawable(values, isinstance(norm, LogNorm))
    rows = np.arange(len(layers) + 1)
    mesh = axis.pcolormesh([first, *middle, last], rows, finite, cmap="cividis", norm=norm, rasterized=True)
    every = math.ceil(len(layers) / 70)
    names = [plain(layer.removesuffix(".weight"), limit=34) for layer in layers]
    axis.set_yticks(rows[:-1:every] + 0.5, names[::every], fontsize=6.5)
    axis.invert_yaxis()
    axis.grid(False)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlabel("epoch")
    return mesh


def _numbers(label: str, run: Run, kind: str) -> list[list[Any]]:
    return [
        [label, run.name, run.seed, f"{kind}/{layer}", step, epoch, value]
        for layer in run.layers(kind)
        for step, epoch, value in zip(*run.series(f"{kind}/{layer}"), strict=True)
    ]


def draw_run(run: Run, folder: Path, *, title: str) -> list[Drawn]:
    """Draw one run's maps side by side, each with its own colour scale."""
    maps = [(label, *matrix(run, kind)) for kind, label, _ in KINDS]
    maps = [entry for entry in maps if np.isfinite(entry[3]).any()]
    if not maps:
        return []
    height = min(max(3.2, 1.4 + 0.15 * max(len(layers) for _, layers, _, _ in maps)), 12)
    heading = "Norm and effective step, layer by layer"
    size = (10.4 if len(maps) > 1 else 6.6, height)
    with canvas(f"{heading} · {title}", columns=len(maps), size=size) as (figure, axes):
        for axis, (label, layers, epochs, values) in zip(axes, maps, strict=True):
            norm = _scale([values])
            text = label + (", log" if isinstance(norm, LogNorm) else "")
            figure.colorbar(_heat(axis, layers, epochs, values, norm), ax=axis, label=text, pad=0.02)
        caption = "A row is one scale-invariant weight, the input's at the top; mean L2 over its filters."
        rows = [row for kind, _, _ in KINDS for row in _numbers("", run, kind)]
        return [save(figure, folder / "layers.svg", heading, caption=caption, rows=rows)]


def draw_comparison(groups: Sequence[Group[Run]], folder: Path, *, prefix: str, title: str) -> list[Drawn]:
    """Draw one map a group for norms and one for effective steps, all on a common colour scale."""
    drawn = []
    for kind, label, heading in KINDS:
        chosen = [(group, (group.complete or group.runs)[0]) for group in groups]
        maps = [(group, run, *matrix(run, kind)) for group, run in chosen]
        maps = [entry for entry in maps if np.isfinite(entry[4]).any()]
        if not maps:
            continue
        columns = min(COLUMNS, len(maps))
        rows = math.ceil(len(maps) / columns)
        height = rows * min(max(2.2, 1.0 + 0.11 * max(len(entry[2]) for entry in maps)), 8) + 0.5
        norm = _scale([entry[4] for entry in maps])
        size = (max(7.2, 3.0 + 2.0 * columns), height)
        with canvas(f"{heading} · {title}", rows=rows, columns=columns, size=size) as (figure, axes):
            for place, (axis, (group, _, layers, epochs, values)) in enumerate(zip(axes, maps, strict=False)):
                mesh = _heat(axis, layers, epochs, values, norm)
                axis.set_title(plain(group.label, limit=34), fontsize=7.5)
                if place % columns and layers == maps[place - 1][2]:
                    axis.set_yticks([])
            for axis in axes[len(maps) :]:
                axis.remove()
            text = label + (", log" if isinstance(norm, LogNorm) else "")
            figure.colorbar(mesh, ax=axes[: len(maps)], label=text, pad=0.01, fraction=0.03, aspect=30)
            caption = "A map a group: its first complete seed, L2, one colour scale, input on top. Blank: zero or none."
            numbers = [row for group, run, *_ in maps for row in _numbers(group.label, run, kind)]
            path = folder / f"{prefix}layers-{kind.replace('_', '-')}.svg"
            drawn.append(save(figure, path, heading, caption=caption, rows=numbers))
    return drawn
