"""The gallery: one static page with the toys' figures and the claims beside the published numbers."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.csv_files import read_csv
from evidence.figures import rosenbrock3d as rosenbrock3d_figures
from evidence.figures import toy2d as toy2d_figures
from evidence.figures.style import Drawn, colour
from evidence.runs.run import ReadError
from evidence.site.inline import inline
from evidence.site.pages import environment

COMMANDS = {
    "toy2d-numbers.csv": "toy2d", "toy2d-paths.svg": "toy2d", "toy2d.gif": "toy2d",
    "rosenbrock3d-numbers.csv": "rosenbrock3d", "rosenbrock3d-maps.svg": "rosenbrock3d",
    "rosenbrock3d-surface.svg": "rosenbrock3d", "rosenbrock3d-sweep.svg": "rosenbrock3d",
    "theory-claims.csv": "theory",
}  # fmt: skip
HUES = {"gd": colour("gd"), "momentum": colour("sgd"), "projected": colour("sgdp"), "in place": colour("sgdp")}


@dataclass(frozen=True)
class Line:
    """One run of the two-dimensional toy: published and obtained norm and loss."""

    run: str
    colour: str
    norm: tuple[str, str]
    loss: tuple[str, str]
    verdict: str


@dataclass
class Entry:
    """A claim and its controls, each a row of theory-claims.csv."""

    claim: dict[str, str]
    controls: list[dict[str, str]]


def lines_2d(rows: Sequence[dict[str, str]]) -> list[Line]:
    """Return a line per run: the rows of its norm and its loss side by side."""
    by_run: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        by_run.setdefault(row["run"], {})[row["quantity"].split()[0]] = row
    lines = []
    for run, both in by_run.items():
        pairs = [(both[key]["published"], both[key]["obtained"]) for key in ("norm", "loss")]
        verdicts = {both[key]["verdict"] for key in ("norm", "loss")}
        verdict = "FAIL" if "FAIL" in verdicts else "PASS" if "PASS" in verdicts else ""
        hue = HUES.get(run.rsplit(" ", 1)[0], "")
        lines.append(Line(run, hue, pairs[0], pairs[1], verdict))
    return lines


def claims_by_paper(rows: Sequence[dict[str, str]]) -> dict[str, list[Entry]]:
    """Return the claims of each paper with their controls."""
    papers: dict[str, list[Entry]] = {}
    for row in rows:
        if row["paper"]:
            latest = Entry(row, [])
            papers.setdefault(row["paper"], []).append(latest)
        else:
            latest.controls.append(row)
    return papers


def _figures(folder: Path) -> dict[str, Any]:
    drawn = {"paths": Drawn("toy2d-paths", toy2d_figures.TITLE, toy2d_figures.CAPTION, folder / "toy2d-paths.svg")}
    for name, title in rosenbrock3d_figures.TITLES.items():
        stem = f"rosenbrock3d-{name}"
        drawn[name] = Drawn(stem, title, rosenbrock3d_figures.CAPTIONS[name], folder / f"{stem}.svg")
    return {name: inline(figure) for name, figure in drawn.items()}


def write_gallery(folder: Path, out: Path) -> Path:
    """Write the page and return its path.

    Args:
        folder: Where make toy2d, make rosenbrock3d and make theory wrote.
        out: The page's folder.

    Raises:
        ReadError: Results are missing; the text names the commands that make them.
    """
    missing = sorted({command for name, command in COMMANDS.items() if not (folder / name).exists()})
    if missing:
        raise ReadError(f"{folder} lacks results; make them with: {', '.join(f'make {name}' for name in missing)}")
    numbers_2d, numbers_3d = (read_csv(folder / f"{stem}-numbers.csv") for stem in ("toy2d", "rosenbrock3d"))
    animation = base64.b64encode((folder / "toy2d.gif").read_bytes()).decode()
    claims = claims_by_paper(read_csv(folder / "theory-claims.csv"))
    entries = [entry for group in claims.values() for entry in group]
    verdicts = [row["verdict"] for row in [*numbers_2d, *numbers_3d] if row["verdict"]]
    page = environment().get_template("gallery.html.j2")
    text = page.render(
        title="Gallery: toys and theory",
        figures=_figures(folder),
        animation=f"data:image/gif;base64,{animation}",
        lines=lines_2d(numbers_2d),
        numbers=numbers_3d,
        papers=claims,
        agreeing=(verdicts.count("PASS"), len(verdicts)),
        holding=_passing([entry.claim for entry in entries]),
        failing=_passing([control for entry in entries for control in entry.controls]),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(text, encoding="utf-8")
    return out / "index.html"


def _passing(rows: Sequence[dict[str, str]]) -> tuple[int, int]:
    """Return how many rows pass, and how many there are."""
    return sum(row["verdict"] == "PASS" for row in rows), len(rows)
