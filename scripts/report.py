"""Write reports: the static site of all runs, and a page of pictures for a single run in its folder.

Every page opens from disk, needs no network and reads well on light and dark screens. Runs in every state are shown:
finished, running, interrupted, failed and broken.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/report.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence.figures.curves import draw_comparison, draw_run  # noqa: E402
from evidence.figures.style import INK, Drawn  # noqa: E402
from evidence.records.settings import group_by_setting  # noqa: E402
from evidence.runs.run import ReadError, Run, experiments, load_run, load_runs  # noqa: E402
from evidence.site import page_data as views  # noqa: E402
from evidence.site import pages as static_site  # noqa: E402
from evidence.site.pages import environment  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

USAGE = """
usage: python scripts/report.py [experiment=NAME] [--pictures] [run=FOLDER] [runs=FOLDER] [out=FOLDER]

Writes OUT/index.html and the pages that it leads to: an overview, a page an experiment, a comparison of runs by chosen
curves, a page a run, the tables and the ledger of claims. Curves are drawn in the browser; --pictures also draws them
as files (SVG, PNG and their numbers as CSV), a few seconds an experiment.

  experiment=NAME  only this experiment's pages; without it, all that have runs
  --pictures       also draw OUT/EXPERIMENT/figures
  run=FOLDER       only the page of pictures of this run, report.html and figures/ in its folder
  runs=FOLDER      where runs lie; default results/runs
  out=FOLDER       where the site goes; default results/reports
  results=FOLDER   whose tables/ are shown; default the folder that OUT lies in

example: python scripts/report.py experiment=imagenet-resnet18
"""


@dataclass(frozen=True)
class Picture:
    """A figure as the page shows it."""

    stem: str
    title: str
    caption: str
    svg: Markup


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
    static_site.list_pictures(folder, shown)
    path = static_site.write_experiment(runs_root, experiment, out_root)
    static_site.write_site(out_root, out_root.parent)
    return path


def slug(text: str) -> str:
    """Return text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "unnamed"


def main(words: Sequence[str]) -> int:
    """Write what the command line asks for; print each page's path."""
    options = {"experiment": "", "run": "", "runs": results("runs"), "out": results("reports"), "results": ""}
    values = parse(words, options=options, flags=("pictures",))
    if values["run"]:
        print(write_run_report(Path(values["run"])))
        return 0
    root, out, chosen = Path(values["runs"]), Path(values["out"]), values["experiment"]
    known = experiments(root)
    if not known or (chosen and chosen not in known):
        load_runs(root, chosen or None)  # says what there is
    for name in [chosen] if chosen else known:
        make = write_experiment_report if values["pictures"] else static_site.write_experiment
        print(make(root, name, out))
    if not chosen:
        static_site.prune(out, known)
    print(static_site.write_site(out, Path(values["results"] or out.parent)))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
