"""The static site: overview, a page an experiment, comparison, a page a run, tables and the ledger of claims.

Plain files that open from disk: no server, no network. Curves are drawn in the browser from data files that are script
files, since a page on disk may load scripts and nothing else; those of a run are loaded when it is looked at.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from evidence.csv_files import read_cells, read_csv
from evidence.figures.style import COLOURS, Drawn
from evidence.records.settings import group_by_setting
from evidence.runs import progress
from evidence.runs.run import OUTCOMES, BrokenRunError, Run, read_run
from evidence.site import page_data as views
from evidence.site import run_data
from evidence.site.inline import inline

CHUNK = 25  # runs of a data file
TEMPLATES = Path(__file__).parent / "templates"
PARTS = ("site.css", "site.js", "charts.js")  # copied beside the pages
MENU = (("index.html", "Overview"), ("compare.html", "Compare"), ("tables.html", "Tables"), ("claims.html", "Claims"))
HIDDEN = ("gallery", "data")  # folders of the site that are no experiments


def environment() -> Environment:
    """Return the templates of all pages."""
    loader = FileSystemLoader(TEMPLATES)
    templates = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["path"] = lambda text: quote(str(text), safe="/.")
    templates.filters["plural"] = views.plural
    templates.filters["breakable"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))  # names may wrap there
    return templates


def _script(path: Path, call: str, value: Any) -> None:
    """Write data as a script that hands it to `site`: valid JSON is valid JavaScript."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, default=str)
    path.write_text(f"site.{call}({text});\n", encoding="utf-8")


class _ExperimentData:
    """An experiment's data while its runs pass by one at a time."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.data = name, folder / "data"
        self.runs: list[Run] = []
        self.entries: list[list[Any]] = []
        self.broken: list[tuple[str, str]] = []
        self.pending: list[dict[str, Any]] = []
        self.score: str | None = None
        self.lower = False

    def add(self, run: Run) -> None:
        """Take a run in; every CHUNK runs their details are written and forgotten."""
        if run.status == "running":  # a killed process leaves this status behind
            status = progress.read_progress(run.folder).status
            run = replace(run, record={**run.record, "status": status}) if status == "interrupted" else run
        if self.score is None:
            self.score, self.lower = run_data.score_of(run), run.lower_is_better
        chunk = len(self.entries) // CHUNK
        self.entries.append(run_data.entry(run, score=self.score, chunk=chunk))
        if text := run_data.note(run):
            self.broken.append((run.folder.name, text))
        self.pending.append(run_data.details(run, site=self.data.parent.parent))
        self.runs.append(run_data.light(run, self.score))
        if len(self.pending) == CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write the pending details."""
        if self.pending:
            number = (len(self.entries) - 1) // CHUNK
            _script(self.data / f"{number:04d}.js", "chunk", [self.name, number, self.pending])
            self.pending = []

    def close(self) -> dict[str, Any]:
        """Write the index and return the experiment's row of the overview."""
        self.flush()
        index = {"experiment": self.name, "score": self.score, "lower": self.lower, "keys": run_data.ENTRY}
        _script(self.data / "index.js", "index", {**index, "runs": self.entries, "broken": self.broken})
        outcomes = Counter(row[run_data.ENTRY.index("status")] for row in self.entries)
        summary = {
            "experiment": self.name, "runs": len(self.entries), "outcomes": dict(outcomes), "broken": self.broken,
            "score": self.score,
        }  # fmt: skip
        (self.data / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
        return summary


def write_experiment(root: Path, experiment: str, out: Path) -> Path:
    """Write an experiment's data and its page; pictures that lie in its folder are shown on it.

    Args:
        root: Folder of all runs.
        experiment: A folder in it.
        out: Folder of the site.

    Returns:
        `<out>/<experiment>/index.html`.
    """
    folder = out / experiment
    shutil.rmtree(folder / "data", ignore_errors=True)
    (folder / "data").mkdir(parents=True)
    data = _ExperimentData(experiment, folder)
    for path in sorted((root / experiment).iterdir()):
        if not path.is_dir():
            continue
        try:
            data.add(read_run(path, most=run_data.LINES))
        except BrokenRunError as error:
            data.broken.append((path.name, str(error)))
    data.close()
    pictures = _pictures(folder / "figures")
    sections = [
        views.section_view(title, groups, pictures.get(title, []))
        for place, groups in group_by_setting(data.runs).items()
        for title in ["{}, scale {}".format(*place)]
    ]
    text = (
        environment()
        .get_template("site_experiment.html.j2")
        .render(
            title=f"{experiment} · report", experiment=experiment, menu=MENU, base="../", page="experiment",
            summary=views.count_outcomes(data.runs), broken=data.broken, sections=sections,
        )
    )  # fmt: skip
    path = folder / "index.html"
    path.write_text(text, encoding="utf-8")
    return path


def _pictures(folder: Path) -> dict[str, list[Any]]:
    """Return section title -> pictures that were drawn for it, for the page."""
    try:
        listed = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    by_section: dict[str, list[Any]] = {}
    for title, stem, heading, caption in listed:
        svg = folder / f"{stem}.svg"
        if svg.exists():
            by_section.setdefault(title, []).append(inline(Drawn(stem, heading, caption, svg)))
    return by_section


def list_pictures(folder: Path, drawn: Iterable[tuple[str, Drawn]]) -> None:
    """Leave a list of pictures beside them, from which the page is made again without drawing."""
    rows = [(title, figure.stem, figure.title, figure.caption) for title, figure in drawn]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").write_text(json.dumps(rows), encoding="utf-8")


# ------------------------------------------------------------------------------------------------- the other pages


def write_site(out: Path, results: Path) -> Path:
    """Write the pages that are of no single experiment, from the summaries of those that have pages.

    Args:
        out: Folder of the site.
        results: Folder with tables/ and gallery.

    Returns:
        `<out>/index.html`.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        shutil.copyfile(TEMPLATES / name, out / name)
    summaries = []
    for path in sorted(out.glob("*/data/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        # Pages of an earlier version that were not made again count two outcomes alone.
        summary.setdefault("outcomes", {key: summary[key] for key in ("finished", "failed") if key in summary})
        summaries.append(summary)
    _script(out / "data" / "site.js", "experiments", {"experiments": summaries, "colours": COLOURS})
    claims = read_csv(results / "tables" / "claims.csv")
    common = {"menu": MENU, "base": "", "experiments": summaries, "outcomes": OUTCOMES}
    pages: dict[str, dict[str, Any]] = {
        "index": {"title": "Overview", "claims": _count(claims), "gallery": (out / "gallery" / "index.html").exists()},
        "compare": {"title": "Compare runs"},
        "run": {"title": "Run"},
        "tables": {"title": "Tables", "tables": list(_tables(results / "tables"))},
        "claims": {"title": "Claims", "rows": claims, "verdicts": _count(claims)},
    }
    templates = environment()
    for name, facts in pages.items():
        text = templates.get_template(f"site_{name}.html.j2").render(page=name, **common, **facts)
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def prune(out: Path, experiments: Sequence[str]) -> None:
    """Forget the data of experiments that have no runs any more; pictures stay."""
    for path in out.glob("*/data/summary.json"):
        if path.parent.parent.name not in (*experiments, *HIDDEN):
            shutil.rmtree(path.parent)
            path.parent.parent.joinpath("index.html").unlink(missing_ok=True)


def _count(claims: Sequence[Mapping[str, str]]) -> dict[str, int]:
    from evidence.claims.verdicts import VERDICTS

    return {verdict: sum(row["verdict"] == verdict for row in claims) for verdict in VERDICTS} if claims else {}


def _tables(folder: Path) -> Iterable[dict[str, Any]]:
    """Yield every table of a folder as its Markdown has it, or as the CSV where there is no Markdown."""
    for path in sorted(folder.glob("*.csv")):
        if path.stem == "claims":
            continue
        page = path.with_suffix(".md")
        lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
        title = next((line[2:] for line in lines if line.startswith("# ")), path.stem)
        notes = [line for line in lines if line and not re.match(r"[#|*]", line)]
        parts = list(_markdown_tables(lines))
        if not parts:
            heads, *rows = read_cells(path) or [[]]
            parts = [{"title": "", "heads": heads, "rows": rows}]
        yield {"stem": path.stem, "title": title, "parts": parts, "notes": " ".join(notes)}


def _markdown_tables(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Yield the tables of a Markdown page, each with the bold line above it."""
    title, table = "", list[list[str]]()
    for line in [*lines, ""]:
        if line.startswith("|"):
            table.append([_plain_text(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
            continue
        if table:
            yield {"title": title, "heads": table[0], "rows": table[2:]}
            title, table = "", []
        title = _plain_text(line) if line.startswith("**") else title


def _plain_text(markdown: str) -> str:
    """Return a cell or a heading of our own Markdown without its marks."""
    text = re.sub(r"^\*\*(.*)\*\*$", r"\1", markdown.strip()).replace("&lt;", "<")
    return re.sub(r"\\(.)", r"\1", text)
