"""The page of one run with its pictures, and the pictures that compare the runs of an experiment."""

from __future__ import annotations

import re
from pathlib import Path

from evidence.figures.curves import draw_comparison, draw_run
from evidence.records.settings import group_by_setting
from evidence.runs.run import ReadError, Run, load_run, load_runs
from evidence.site import page_data, pages
from evidence.site.inline import inline


def write_run_report(run_folder: Path) -> Path:
    """Draw a run's figures and write its page.

    Args:
        run_folder: A run's folder; whatever state the run is in.

    Returns:
        `<run_folder>/report.html`; figures lie in `<run_folder>/figures`.

    Raises:
        ReadError: The folder holds no readable run.json.
    """
    run = load_run(run_folder)
    if run is None:
        raise ReadError(f"{run_folder} holds no readable run.json; give the folder of a run")
    return _write_run(run)


def _write_run(run: Run) -> Path:
    figures = [inline(figure) for figure in draw_run(run, run.folder / "figures")]
    page = pages.environment().get_template("run.html.j2")
    path = run.folder / "report.html"
    text = page.render(title=f"{run.name} · {run.experiment}", view=page_data.RunView.of(run), figures=figures)
    path.write_text(text, encoding="utf-8")
    return path


def write_experiment_report(runs_root: Path, experiment: str, out_root: Path) -> Path:
    """Draw the pictures that compare all runs of an experiment, and write its page of the site.

    Args:
        runs_root: Folder of all runs, usually results/runs.
        experiment: The experiment's name, a folder in `runs_root`.
        out_root: Folder of the site, usually results/reports.

    Returns:
        `<out_root>/<experiment>/index.html`; pictures lie in `figures` beside it.

    Raises:
        ReadError: There are no runs of this experiment.
    """
    folder, shown = out_root / experiment / "figures", []
    places = group_by_setting(load_runs(runs_root, experiment))
    for count, ((data, scale), groups) in enumerate(places.items()):
        prefix = f"{slug(data)}-{slug(scale)}-" + (f"{count}-" if len(places) > 1 else "")
        drawn = draw_comparison(groups, folder, prefix=prefix)
        shown += [(f"{data}, scale {scale}", figure) for figure in drawn]
    pages.list_pictures(folder, shown)
    path = pages.write_experiment(runs_root, experiment, out_root)
    pages.write_site(out_root, out_root.parent)
    return path


def slug(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unnamed"
