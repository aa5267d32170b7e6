"""Write reports: one page a run, in its folder, and one page an experiment that compares its runs.

A page is a single HTML file with its figures inside. It needs no network, opens from disk and reads well on
light and dark screens. Runs in every state are shown: finished, running, interrupted and failed.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/report.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from scripts import views  # noqa: E402
from scripts.board import INK, Drawn  # noqa: E402
from scripts.figures import draw_comparison, draw_run  # noqa: E402
from scripts.groups import sections  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402
from scripts.runs import ReadError, Run, experiments, load_run, load_runs  # noqa: E402

USAGE = """
usage: python scripts/report.py [experiment=NAME] [run=FOLDER] [runs=FOLDER] [out=FOLDER]

Writes a page for every run that has none yet or has gone on since (report.html and figures/ in its folder), and
a page for every experiment that compares its runs (OUT/EXPERIMENT/index.html). Pages hold their figures and need
no network.

  experiment=NAME  only this experiment; without it, all that have runs
  run=FOLDER       only the page of this run
  runs=FOLDER      where runs lie; default results/runs
  out=FOLDER       where comparisons go; default results/reports

example: python scripts/report.py experiment=imagenet-resnet18
"""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    stem: str
    title: str
    caption: str
    svg: Markup


def environment() -> Environment:
    """Return the templates of all pages."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def inline(figure: Drawn) -> Picture:
    """Return a figure for the page: text in the page's colour, ids that no other figure of the page has."""
    text = figure.svg.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Figures keep their proportions among each other: 10.4 inches fill the page, smaller ones do not grow to it.
    opening = text.index(">")
    sizes = dict(re.findall(r' (width|height)="([0-9.]+)pt"', text[:opening]))
    head = re.sub(r' (width|height)="[^"]*"', "", text[:opening])
    text = f'{head} style="max-width:{float(sizes["width"]) * 1.5:.0f}px"{text[opening:]}'
    text = text.replace(INK, "currentColor")
    # Images are named by their content: two colour bars alike would share an id that nothing refers to.
    text = re.sub(r' id="(image[0-9a-f]+)"', lambda m: m[0] if f"#{m[1]}" in text else "", text)
    text = re.sub(r'\bid="', f'id="{figure.stem}-', text)
    text = re.sub(r'href="#', f'href="#{figure.stem}-', text)
    text = re.sub(r"url\(#", f"url(#{figure.stem}-", text)
    # Safe: the only text from run folders that reaches an SVG is drawn as outlines, and comments are gone.
    return Picture(figure.stem, figure.title, figure.caption, Markup(text))


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
    page = environment().get_template("run.html.j2")
    path = run.folder / "report.html"
    text = page.render(title=f"{run.name} · {run.experiment}", view=views.RunView.of(run), figures=figures)
    path.write_text(text, encoding="utf-8")
    return path


def write_experiment_report(runs_root: Path, experiment: str, out_root: Path) -> Path:
    """Compare all runs of an experiment on one page.

    Args:
        runs_root: Folder of all runs, usually results/runs.
        experiment: The experiment's name, a folder in `runs_root`.
        out_root: Folder of all comparisons, usually results/reports.

    Returns:
        `<out_root>/<experiment>/index.html`; figures lie in `figures` beside it.

    Raises:
        ReadError: There are no runs of this experiment.
    """
    runs = load_runs(runs_root, experiment)
    folder = out_root / experiment
    folder.mkdir(parents=True, exist_ok=True)
    shown = []
    places = sections(runs)
    for count, ((data, scale), groups) in enumerate(places.items()):
        prefix = f"{slug(data)}-{slug(scale)}-" + (f"{count}-" if len(places) > 1 else "")
        figures = [inline(figure) for figure in draw_comparison(groups, folder / "figures", prefix=prefix)]
        shown.append(views.section_view(f"{data}, scale {scale}", groups, figures))
    unread = _unread(runs_root / experiment)
    page = environment().get_template("experiment.html.j2")
    text = page.render(
        title=f"{experiment} · report",
        experiment=experiment,
        summary=views.count_states(runs),
        notes=[(f"Left out, run.json cannot be read: {', '.join(unread)}", "bad")] if unread else [],
        sections=shown,
        runs=[views.run_row(run, folder) for run in sorted(runs, key=lambda run: run.finished)],
    )
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def _fresh(run: Run) -> bool:
    """Whether a run's page is younger than the run's files and than the code that writes pages."""
    page = run.folder / "report.html"
    code = [path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".j2")]
    sources = [*code, *(run.folder / name for name in ("run.json", "metrics.jsonl", "timing.jsonl"))]
    return page.exists() and page.stat().st_mtime > max(path.stat().st_mtime for path in sources if path.exists())


def _unread(folder: Path) -> list[str]:
    """Return the names of run folders whose run.json is broken; the page must not pass over them."""
    broken = []
    for path in sorted(folder.glob("*/run.json")):
        try:
            whole = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
        except (OSError, ValueError, RecursionError):
            whole = False
        if not whole:
            broken.append(path.parent.name)
    return broken


def slug(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unnamed"


def main(words: Sequence[str]) -> int:
    """Write what the command line asks for; print each page's path."""
    options = {"experiment": "", "run": "", "runs": results("runs"), "out": results("reports")}
    values: dict[str, Any] = parse(words, options=options)
    if values["run"]:
        print(write_run_report(Path(values["run"])))
        return 0
    root, out = Path(values["runs"]), Path(values["out"])
    for run in load_runs(root, values["experiment"] or None):
        if not _fresh(run):
            print(_write_run(run))
    for name in [values["experiment"]] if values["experiment"] else experiments(root):
        print(write_experiment_report(root, name, out))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
