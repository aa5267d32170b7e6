"""Data files of the site: the facts of a run, its curves thinned to what a screen can show, its layers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import escape

from evidence.figures.style import colour
from evidence.runs.run import STATISTICS, Run, number, primary_score
from evidence.site import page_data as views

POINTS = 120  # of a curve
EPOCHS = 40  # columns of a map of layers
LINES = 1000  # of metrics.jsonl that are surely read, of each kind
KINDS = ("norm", "effective_step")  # what maps of layers show
BACK, LINK_WITHIN = b"<!-- back -->", 1 << 15  # where base.html.j2 has room for a link; bytes it is looked for in
Series = tuple[list[int], list[float], list[float]]  # steps, epochs, values
ENTRY = (
    "name", "opt", "lr", "weight_decay", "seed", "scale", "data", "status", "score", "best", "epochs", "planned",
    "wall_time", "started", "note", "chunk", "folder",
)  # fmt: skip


def note(run: Run) -> str:
    """Return what is wrong with a run's files, empty where nothing is."""
    broken = run.broken_lines
    problems = [f"{views.plural(broken, 'line')} of metrics.jsonl cannot be read"] if broken else []
    path = run.folder / "metrics.jsonl"
    if run.status in ("finished", "failed", "interrupted"):
        if not path.exists():
            problems.append("metrics.jsonl is missing")
        elif not _ends_whole(path):
            problems.append("metrics.jsonl ends in half a line")
    return "; ".join(problems)


def _ends_whole(path: Path) -> bool:
    """Whether a file ends with the end of a line."""
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 1))
        return file.read(1) in (b"\n", b"")


def entry(run: Run, *, score: str | None, chunk: int) -> list[Any]:
    """Return a run's row of an experiment's index, in the order of ENTRY; only a complete run has a score there."""
    complete, best = run.outcome == "finished", number(run.section("best").get("score"))
    values = (
        run.name, run.opt_name, run.lr, run.weight_decay, run.seed, run.scale, run.data, run.outcome,
        run.scores.get(score or "") if complete else None, best if complete else None, run.epochs_done, run.epochs,
        number(run.record.get("wall_time_s")), run.text("started")[:16], note(run), chunk,
        run.folder.name,
    )  # fmt: skip
    return [_finite(value) for value in values]


def _finite(value: Any) -> Any:
    """Return a value that JSON can hold: numbers that are not finite become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def columns(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    """Return metric -> (steps, epochs, values) in one pass; a step that occurs twice counts with its last value."""
    by_metric: dict[str, Series] = {}
    unordered: set[str] = set()
    for line in metrics:
        step, epoch = line["step"], line["epoch"]
        for key, value in line.items():
            if type(value) is not float and type(value) is not int:
                continue
            if (series := by_metric.get(key)) is None:
                series = by_metric[key] = ([], [], [])
            if series[0] and series[0][-1] >= step:
                unordered.add(key)
            series[0].append(step)
            series[1].append(epoch)
            series[2].append(value)
    for key in unordered:
        points = {step: (epoch, value) for step, epoch, value in zip(*by_metric[key], strict=True)}
        steps = sorted(points)
        by_metric[key] = steps, [points[step][0] for step in steps], [points[step][1] for step in steps]
    return {key: series for key, series in by_metric.items() if key not in ("step", "epoch")}


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def thin(series: Series, points: int) -> list[list[Any]]:
    """Return [steps, epochs, values] with every k-th point and the last."""
    steps, epochs, values = series
    every = math.ceil(len(steps) / points)
    kept = list(range(0, len(steps), every)) if every else []
    if kept and kept[-1] != len(steps) - 1:
        kept.append(len(steps) - 1)
    return [[steps[k] for k in kept], [_short(epochs[k]) for k in kept], [_short(values[k]) for k in kept]]


def _layers(by_metric: Mapping[str, Series], kind: str) -> dict[str, Any] | None:
    """Return a map of layers against epochs: {"layers", "epochs", "values": a row a layer}."""
    prefix = f"{kind}/"
    names = [key for key in by_metric if key.startswith(prefix) and key[len(prefix) :] not in STATISTICS]
    if not names:
        return None
    rows = [dict(zip(by_metric[name][1], by_metric[name][2], strict=True)) for name in names]
    epochs = sorted({epoch for row in rows for epoch in row})
    every = math.ceil(len(epochs) / EPOCHS)
    kept = sorted({*epochs[::every], epochs[-1]})
    values = [[_short(row[epoch]) if epoch in row else None for epoch in kept] for row in rows]
    return {"layers": [name[len(prefix) :] for name in names], "epochs": kept, "values": values}


def details(run: Run, *, site: Path) -> dict[str, Any]:
    """Return what a run's page and its curves need; links lead from the folder `site`."""
    view = views.RunView.of(run)
    report = run.folder / "report.html"
    link_back(report, site=site, experiment=run.experiment)
    by_metric = columns(run.metrics)
    maps = {kind: layer_map for kind in KINDS if (layer_map := _layers(by_metric, kind)) is not None}
    in_maps = {f"{kind}/{layer}" for kind, layer_map in maps.items() for layer in layer_map["layers"]}
    return {
        "name": run.name,
        "colour": colour(run.opt_name),
        "summary": view.summary,
        "repeat": views.repeat(run),
        "notes": [text for text, _ in view.notes] + ([found_note] if (found_note := note(run)) else []),
        "tiles": view.tiles,
        "scores": view.scores,
        "provenance": view.provenance,
        "config": view.config,
        "report": quote(Path(os.path.relpath(report, site)).as_posix()) if report.exists() else "",
        "curves": {key: thin(series, POINTS) for key, series in by_metric.items() if not _of_layer(key, in_maps)},
        "layers": maps,
    }


def link_back(report: Path, *, site: Path, experiment: str) -> None:
    """Give a run's page of pictures, which may be older than the site, a link to its experiment's page of the site."""
    try:
        with report.open("rb") as file:
            head = file.read(LINK_WITHIN)
    except OSError:
        return  # no pictures were drawn
    if BACK in head:
        page = quote(Path(os.path.relpath(site / experiment / "index.html", report.parent)).as_posix())
        link = f'<p><a href="{page}">← All runs of {escape(experiment)}</a></p>'.encode()
        report.write_bytes(report.read_bytes().replace(BACK, link, 1))


def _of_layer(key: str, in_maps: set[str]) -> bool:
    """Whether a metric is one of a single layer: these are shown as maps, or not at all."""
    _, _, rest = key.partition("/")
    return key in in_maps or rest.endswith((".weight", ".bias"))


def light(run: Run, score: str | None) -> Run:
    """Return a run with no more than the tables of settings read, so that ten thousand fit into memory."""
    keys = [key for key in ("norm/mean", "effective_step/mean", score) if key]
    metrics: list[dict[str, Any]] = []
    for key in keys:
        steps, epochs, values = run.series(key)
        last = [k for k, epoch in enumerate(epochs) if k == 0 or epoch > epochs[-1] - 1]
        metrics += [{"step": steps[k], "epoch": epochs[k], key: values[k]} for k in last]
    kept = {key: value for key, value in run.record.items() if key not in ("model", "versions", "argv")}
    return Run(run.folder, kept, metrics, run.broken_lines)


def score_of(run: Run) -> str | None:
    """Return the score that stands for a run."""
    return primary_score([run])
