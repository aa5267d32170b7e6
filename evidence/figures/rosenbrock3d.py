"""The figures of the three-dimensional toy: maps with paths and norms, the surface in space, the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.axes3d import Axes3D
from torch import Tensor

from evidence.figures.style import INK, STYLE, Drawn, canvas, colour, save
from tasks.toy import rosenbrock3d as toy
from tasks.toy.descent import Path as Trajectory
from tasks.toy.objectives import OPTIMUM_AB, on_sphere, rosenbrock

HUES = {
    "momentum": colour("sgd"), "decay": colour("sgd"), "in place": colour("sgdp"), "projected": colour("sgdp"),
}  # fmt: skip
DASHES = {"momentum": "-", "decay": "--", "in place": ":", "projected": "-"}  # where methods share an axis
SHOWN = ("momentum", "decay", "in place")  # the methods of the paper's figure
LIMITS = ((-2.0, 2.0), (-1.0, 3.0))  # of a and b, as in the published figure
SURFACE = ((-2.35, 2.35), (-1.0, 2.35))  # of a and b: the hemisphere in front, whose pole is at b = 1.5 pi / 2
TITLES = {
    "maps": "Rosenbrock on a hemisphere: paths and norms",
    "surface": "Rosenbrock on a hemisphere: the paths in space",
    "sweep": "Search of the learning rate",
}
CAPTIONS = {
    "maps": (
        "Grey: log of the loss, least at the star. Below: the norm; bands hold 40 runs whose learning rates differ "
        "by up to 1e-7 of themselves, the dotted line is the norm at which the published path ends."
    ),
    "surface": (
        "The unit sphere is coloured by the loss, which depends on the direction alone; the dashed ray is the "
        "optimum. Circle: start; diamond: end. Without projection the path leaves the sphere."
    ),
    "sweep": (
        "Above a rate of about 0.01 neighbouring rates end far apart: the dynamics is chaotic, and the best of a "
        "search depends on its grid. In the CSV, epoch is the learning rate."
    ),
}


def _loss_grid(
    count: int, limits: tuple[tuple[float, float], tuple[float, float]] = LIMITS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a, b and log10(1 + loss), each (count, count)."""
    a, b = torch.meshgrid(*(torch.linspace(*ends, count, dtype=torch.float64) for ends in limits), indexing="xy")
    return a.numpy(), b.numpy(), torch.log10(1 + rosenbrock(a, b)).numpy()


def _map(axis: Axes, grid: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    filled = axis.contourf(*grid, levels=np.linspace(0, 4, 17), cmap="Greys", alpha=0.55, antialiased=False)
    filled.set_rasterized(True)  # a tenth of the bytes in the SVG
    axis.contour(*grid, levels=(1, 2, 3), colors=INK, linewidths=0.4, alpha=0.35)
    axis.plot(*OPTIMUM_AB, "*", color="#1b7837", markersize=11, markeredgecolor="white", zorder=5)
    axis.set(xlim=LIMITS[0], ylim=LIMITS[1], xlabel="a")
    axis.grid(False)


def _numbers(paths: Mapping[str, Trajectory]) -> list[list[Any]]:
    return [
        [toy.TITLES[method], method, "", metric, step, "", f"{float(values[step]):.8g}"]
        for method, path in paths.items()
        for metric, values in (
            ("a", toy.coordinates(path)[:, 0]), ("b", toy.coordinates(path)[:, 1]),
            ("norm", path.points.norm(dim=1)), ("loss", path.losses),
        )
        for step in range(0, len(values), 2)
    ]  # fmt: skip


def draw_maps(
    paths: Mapping[str, Trajectory], near: Mapping[str, Trajectory], published: Mapping[str, Tensor], folder: Path
) -> Drawn:
    """Draw each method's path over the loss, the published points on it, and its norm below."""
    grid = _loss_grid(161)
    with canvas(TITLES["maps"], rows=2, columns=len(SHOWN), size=(10.4, 6.4)) as (figure, axes):
        for column, method in enumerate(SHOWN):
            top, bottom = axes[column], axes[column + len(SHOWN)]
            _map(top, grid)
            top.plot(*toy.coordinates(paths[method]).numpy().T, color=HUES[method], linewidth=1.0)
            top.plot(*toy.coordinates(paths[method])[-1].numpy(), "D", color=HUES[method], markersize=5,
                     markeredgecolor="white", zorder=6)  # fmt: skip
            top.plot(*published[method].numpy().T, "o", color="none", markeredgecolor=INK, markersize=3.6,
                     markeredgewidth=0.6, label="published, first 50 points")  # fmt: skip
            top.set_title(toy.TITLES[method])
            top.set_ylabel("b" if column == 0 else "")
            _draw_norms(bottom, method, paths, near)
        axes[0].legend(loc="lower left")
        axes[3].set_ylabel("norm r")
        return save(
            figure, folder / "rosenbrock3d-maps.svg", TITLES["maps"], caption=CAPTIONS["maps"], rows=_numbers(paths)
        )


def _draw_norms(axis: Axes, method: str, paths: Mapping[str, Trajectory], near: Mapping[str, Trajectory]) -> None:
    norms = paths[method].points.norm(dim=1).numpy()
    around = near[method].norms.numpy()
    steps = np.arange(len(norms))
    axis.fill_between(steps, around.min(axis=1), around.max(axis=1), color=HUES[method], alpha=0.25, linewidth=0)
    axis.plot(norms, color=HUES[method])
    (run,) = [run for run in toy.RUNS if run.method == method]
    assert run.published is not None
    axis.axhline(run.published, color=INK, linewidth=0.9, linestyle=":")
    axis.text(steps[-1], run.published - 0.07, f"published {run.published:.3f}", ha="right", va="top", fontsize=8)
    if method == "decay":
        axis.annotate(
            f"{norms.max():.3f} at iteration {norms.argmax()}", (norms.argmax(), norms.max()),
            xytext=(8, 6), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axis.set(ylim=(0, 3.8), xlabel="iteration", title=f"norm, {norms[-1]:.3f} at the end")
    axis.margins(x=0.01)


def draw_surface(paths: Mapping[str, Trajectory], folder: Path) -> Drawn:
    """Draw the hemisphere, coloured by the loss, with the three paths in space."""
    a, b, loss = _loss_grid(120, SURFACE)
    title = TITLES["surface"]
    with mpl.rc_context({**STYLE, "axes.grid": True}):
        figure = Figure(figsize=(10.4, 3.9), layout="constrained")
        figure.suptitle(title, x=0.005, ha="left")
        x, y, z = on_sphere(torch.from_numpy(a), torch.from_numpy(b)).numpy().transpose(2, 0, 1)
        faces = mpl.colormaps["viridis_r"](loss / 4)
        optimum = on_sphere(*torch.tensor(OPTIMUM_AB, dtype=torch.float64)).numpy()
        for column, method in enumerate(SHOWN):
            axis = figure.add_subplot(1, len(SHOWN), column + 1, projection="3d")
            assert isinstance(axis, Axes3D)
            axis.plot_surface(x, -z, y, facecolors=faces, rstride=1, cstride=1, shade=False, alpha=0.9, linewidth=0,
                              rasterized=True)  # fmt: skip
            points = paths[method].points.numpy()
            ends = points[[0, -1]] * (1, 1, -1)  # z towards the viewer, as on a map: x to the right, y up
            axis.plot(points[:, 0], -points[:, 2], points[:, 1], color=HUES[method], linewidth=1.2, zorder=10)
            ray = np.outer([1.0, 2.9], optimum)
            axis.plot(ray[:, 0], -ray[:, 2], ray[:, 1], color="#1b7837", linewidth=1.0, linestyle="--", zorder=9)
            axis.plot(*ends[0, [0, 2, 1], None], "o", color=INK, markersize=4, zorder=11)
            axis.plot(*ends[1, [0, 2, 1], None], "D", color=HUES[method], markersize=5, markeredgecolor="white",
                      zorder=12)  # fmt: skip
            axis.set(xlim=(-1.6, 1.6), ylim=(-2.6, 0.6), zlim=(-0.75, 1.75))
            axis.set_title(f"{toy.TITLES[method]}: r = {np.linalg.norm(points[-1]):.2f}", y=0.98)
            axis.set_box_aspect((3.2, 3.2, 2.5), zoom=1.6)
            axis.view_init(elev=22, azim=-78)
            axis.set_axis_off()
        rows = [
            [toy.TITLES[method], method, "", metric, step, "", f"{float(paths[method].points[step, k]):.8g}"]
            for method in SHOWN for k, metric in enumerate("xyz") for step in range(0, toy.STEPS + 1, 2)
        ]  # fmt: skip
        return save(figure, folder / "rosenbrock3d-surface.svg", title, caption=CAPTIONS["surface"], rows=rows)


def draw_sweep(found: Mapping[str, Trajectory], rates: Tensor, folder: Path) -> Drawn:
    """Draw the distance to the optimum and the norm at the end over the learning rate."""
    title = TITLES["sweep"]
    x = rates.numpy()
    rows: list[list[Any]] = []
    with canvas(title, columns=2, size=(10.4, 3.6)) as (figure, (left, right)):
        for method, path in found.items():
            distances, norms = toy.end_distances(path).numpy(), path.norms[-1].numpy()
            look: dict[str, Any] = {"color": HUES[method], "linewidth": 1.1, "linestyle": DASHES[method]}
            face = HUES[method] if DASHES[method] == "-" else "none"
            left.plot(x, distances, "o", markersize=3.6, color=HUES[method], markerfacecolor=face, markeredgewidth=0.8)
            best = int(distances.argmin())
            left.plot(x[best], distances[best], "D", color=HUES[method], markersize=6, markeredgecolor=INK, zorder=5)
            right.plot(x, norms, label=toy.TITLES[method], **look)
            for metric, values in (("distance", distances), ("norm", norms)):
                rows += [
                    [toy.TITLES[method], method, "", metric, k, f"{x[k]:.8g}", f"{v:.8g}"] for k, v in enumerate(values)
                ]
        left.set(
            title="distance to (1, 1) at the end; diamonds: the best; hollow: the dashed and dotted",
            ylabel="distance",
            yscale="log",
        )
        right.set(title="norm at the end", ylabel="norm r", yscale="log")
        right.set_yticks([0.5, 1, 2, 3, 5], ["0.5", "1", "2", "3", "5"])
        right.minorticks_off()
        for axis in (left, right):
            axis.set(xscale="log", xlabel="learning rate")
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower left", ncols=4, handlelength=3.2)
        return save(figure, folder / "rosenbrock3d-sweep.svg", title, caption=CAPTIONS["sweep"], rows=rows)
