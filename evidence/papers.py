"""Every table and figure of the papers: what is printed, our command, where the settings come from, seeds, verdict.

`docs/papers.md` is made of results/papers.yaml, the sweeps, results/paper.csv, and of the committed tables, figures,
records and claims. Free of Hydra and torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import yaml

from evidence import sweeps
from evidence.csv_files import read_csv
from evidence.paper import PAPER_NAMES, PaperNumber, look_up, read_paper
from evidence.stats import NONE
from evidence.tables.cells import Cell, TableSpec, published

CONFIGS = sweeps.SWEEPS.parent
REST = "Equations and propositions"  # the item of claims that belong to no table and no figure
HEAD = """\
# The papers, table by table

One row for every table and figure of the three papers, appendices included. `make papers` makes this page of
`results/papers.yaml`, the sweeps in `configs/sweep`, the committed tables, figures and records, and the
[claims](../results/tables/claims.md); a test fails where it is not what they say. Another test leads every one of the
262 numbers in `results/paper.csv` to the one command that fills it.

- **command**: as it stands, the small run. At full scale add `scale=full data_root=FOLDER` ([how](reproduce.md)); the
  column names the set. **small**, **full**: settings x seeds of the grid.
- **settings**: **P** printed; **C** from the authors' code or words, or from the code that the paper names; **O** ours,
  with the reason in the notes.
- **seeds**: those of the committed runs, (n) in n settings where they differ; all are small unless a table says `full`.
- **verdict**: the claims about this item, counted by what they are about.
"""
COLUMNS = ("", "prints", "command", "small", "full", "settings", "seeds", "verdict")


@dataclass(frozen=True)
class Item:
    """One table or figure of a paper: an entry of results/papers.yaml, which explains the keys."""

    paper: str
    entry: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As the paper calls it."""
        return str(self.entry["item"])

    @property
    def run(self) -> str:
        """The target of make, empty where nothing is run."""
        return str(self.entry.get("run", ""))

    @property
    def is_sweep(self) -> bool:
        """Whether the target is a sweep."""
        return bool(sweeps.read(self.run))


def read_items(path: Path) -> list[Item]:
    """Return the tables and figures in the papers' order."""
    papers = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [Item(paper, entry) for paper, entries in papers.items() for entry in entries]


# ------------------------------------------------------------------------------- which command fills a published row


def settings(sweep: str, scale: str) -> list[Cell]:
    """Return a sweep's cells without their seeds, each once; `keys` holds the seeds."""
    cells: dict[tuple[tuple[str, str], ...], Cell] = {}
    for block, overrides in sweeps.cells(sweep, scale):
        seed = int(overrides.pop("train.seed", "0"))
        cell = cells.setdefault(tuple(sorted(overrides.items())), Cell(overrides, block))
        cell.keys[seed] = (overrides.get("experiment", ""), "")
    return list(cells.values())


def numbers_of_sweep(sweep: str, paper: Sequence[PaperNumber]) -> list[PaperNumber]:
    """Return the published numbers beside which a sweep's table at full scale puts one of ours."""
    spec = (sweeps.read(sweep).get("sweep") or {}).get("table")
    if not spec or "paper" not in spec:
        return []
    candidates = look_up(paper, paper=spec["paper"], table=str(spec["table"]))
    cells = settings(sweep, "full")
    return [number for number in candidates if any(_fills(cell, spec, number) for cell in cells)]


def _fills(cell: Cell, spec: Mapping[str, Any], number: PaperNumber) -> bool:
    if "experiments" not in spec:
        table = cast(TableSpec, spec)
        return number.metric in (table.get("metrics") or ["top1"]) and bool(published(cell, table, [number]))
    of_experiment = spec["experiments"].get(cell.overrides.get("experiment", ""), {})
    opt = cell.overrides.get("opt", "sgd")
    metrics = {metric for row in of_experiment.get("metrics", []) for metric in row}
    wanted = {"optimizer": (spec.get("optimizer") or {}).get(opt, opt), **(of_experiment.get("published") or {})}
    return "published" in of_experiment and number.metric in metrics and bool(look_up([number], **wanted))


def commands(items: Sequence[Item], paper: Sequence[PaperNumber]) -> dict[PaperNumber, list[str]]:
    """Return published number -> the items' targets that fill it; ["none"] where an item says that no run does."""
    found: dict[PaperNumber, list[str]] = {number: [] for number in paper}
    for item in items:
        for number in numbers_of_sweep(item.run, paper) if item.is_sweep else []:
            found[number].append(item.run)
        for key, target in (("numbers", item.run), ("not_run", "none")):
            if wanted := item.entry.get(key):
                abbreviation = next(short for short, name in PAPER_NAMES.items() if name == item.paper)
                for number in look_up(paper, **{"paper": abbreviation, **wanted}):
                    found[number].append(target)
    return found


# --------------------------------------------------------------------------------------------------------- the page


def full_data(sweep: str) -> list[str]:
    """Return the names of the sets that a sweep reads at full scale, as the configurations of its tasks say."""
    default = _default(sweeps.read(sweep), "experiment")
    names = []
    for experiment in dict.fromkeys(cell.overrides.get("experiment", default) for cell in settings(sweep, "full")):
        task = _default(_load(CONFIGS / "experiment" / f"{experiment}.yaml"), "task")
        names.append(_default(_load(CONFIGS / "scale" / "full" / f"{task}.yaml"), "data"))
    return list(dict.fromkeys(names))


@cache
def _load(path: Path) -> dict[str, Any]:
    return cast(dict[str, Any], yaml.safe_load(path.read_text(encoding="utf-8")))


def _default(config: Mapping[str, Any], group: str) -> str:
    """Return what a file's defaults list chooses of a group."""
    choices = {
        key.removeprefix("override ").lstrip("/"): value
        for entry in config["defaults"]
        if isinstance(entry, dict)
        for key, value in entry.items()
    }
    return str(choices[group])


def seeds(sweep: str, results: Path) -> str:
    """Return the seeds of a sweep's committed runs, with the number of settings where they differ.

    They stand in its table or figure, or in the records where its file takes every recorded setting of experiments.
    """
    found: Counter[str] = Counter()
    spec = sweeps.read(sweep).get("sweep") or {}
    if experiments := (spec.get("table") or spec.get("figure") or {}).get("experiments"):
        records = [row for row in read_csv(results / "records.csv") if row["experiment"] in experiments]
        found.update(_by_group((f"{row['experiment']} {row['setting']}", row["seed"]) for row in records))
    elif rows := read_csv(results / "tables" / f"{sweep}.csv"):
        found.update(row["seeds"].partition(" (")[0] for row in rows)
    else:
        points = read_csv(results / "figures" / f"{sweep}.csv")
        found.update(_by_group((row["group"], row["seed"]) for row in points))
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{text} ({count})" for text, count in sorted(found.items())) or "none"


def _by_group(pairs: Iterable[tuple[str, str]]) -> list[str]:
    by_group: dict[str, set[str]] = {}
    for group, seed in pairs:
        by_group.setdefault(group, set()).add(seed)
    return [", ".join(sorted(seeds, key=int)) for seeds in by_group.values()]


Verdicts = Counter[tuple[str, str]]  # (kind of claim, verdict) -> how many


def verdicts(items: Sequence[Item], claims: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], Verdicts]:
    """Return (paper, item) -> how many claims have each verdict; a claim belongs to the longest item that it names."""
    found: dict[tuple[str, str], Verdicts] = {}
    for claim in claims:
        names = [item.name for item in items if item.paper == claim["paper"] and _begins(claim["where"], item.name)]
        place = (claim["paper"], max(names, key=len, default=REST))
        found.setdefault(place, Counter())[claim.get("kind", ""), claim["verdict"]] += 1
    return found


def _begins(where: str, name: str) -> bool:
    return where.startswith(name) and not where[len(name) :][:1].isalnum() and where[len(name) :][:2] != ".1"


def page(items: Sequence[Item], results: Path) -> str:
    """Return docs/papers.md."""
    judged = verdicts(items, read_csv(results / "tables" / "claims.csv"))
    lines, notes = [HEAD], list[str]()
    for paper in dict.fromkeys(item.paper for item in items):
        lines += [f"## {paper}\n", f"| {' | '.join(COLUMNS)} |", "|" + " --- |" * len(COLUMNS)]
        for item in (item for item in items if item.paper == paper):
            lines.append(f"| {' | '.join(_cells(item, judged.get((paper, item.name), Counter()), results, notes))} |")
        lines.append("")
    return "\n".join([*lines, "## Notes\n", *(f"[^{number}]: {note}" for number, note in enumerate(notes, 1)), ""])


def _cells(item: Item, judged: Verdicts, results: Path, notes: list[str]) -> list[str]:
    name = f"[{item.name}]({item.entry['page']})" if "page" in item.entry else item.name
    small = full = seen = NONE
    if item.is_sweep:
        small, full = (_size(settings(item.run, scale)) for scale in ("mini", "full"))
        full += f", {', '.join(full_data(item.run))}"
        seen = seeds(item.run, results)
    origins = (("P", "printed"), ("C", "code"), ("O", "ours"))
    sources = "; ".join(f"**{letter}** {item.entry[key]}" for letter, key in origins if key in item.entry) or NONE
    if "why" in item.entry:
        notes.append(str(item.entry["why"]))
        sources += f"[^{len(notes)}]"
    by_kind: dict[str, list[str]] = {}
    for (kind, verdict), count in sorted(judged.items()):
        by_kind.setdefault(f"{kind}: " if kind else "", []).append(f"{count} {verdict}")
    counts = "; ".join(kind + ", ".join(texts) for kind, texts in by_kind.items())
    linked = f"[{counts}](../results/tables/claims.md)" if counts else NONE
    command = f"`make {item.run}`" if item.run else NONE
    return [name, str(item.entry["prints"]), command, small, full, sources, seen, linked]


def _size(cells: Sequence[Cell]) -> str:
    """Return "settings x seeds"."""
    numbers = sorted({len(cell.keys) for cell in cells})
    return f"{len(cells)} x {' or '.join(map(str, numbers))}"


def published_numbers(results: Path) -> list[PaperNumber]:
    """Return all printed numbers."""
    return read_paper(results / "paper.csv")
