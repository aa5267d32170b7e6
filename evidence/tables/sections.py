"""The layout of result tables: groups of records beside the paper's numbers, as Markdown, CSV and LaTeX.

A paper's number and ours never stand under one heading: each column names the data it was measured on.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evidence.records.settings import short
from evidence.runs.run import number
from evidence.stats import Difference, leader, mean_and_deviation, paired, time_to_target, times_text

Row = dict[str, str]
Curves = Mapping[tuple[str, str], Mapping[str, Any]]  # (experiment, name) -> a line of curves.jsonl
NONE = "–"
DATA_NAMES = {"imagenet": "ImageNet", "cifar10": "CIFAR-10", "coco": "COCO", "biased_mnist": "Biased-MNIST"}
SCORE_NAMES = {"top1": "top-1", "top5": "top-5"}
# Weight decay of Table 2's runs in torch's units. The AdamP paper writes that of AdamW and AdamP as lr x torch's value.
TABLE_2_DECAYS = {"sgd": 1e-4, "sgdp": 1e-5, "adam": 1e-4, "adamw": 1e-1, "adamp": 1e-2}
LOWER_IS_BETTER = ("loss", "perplexity", "ppl", "bpc", "error")


@dataclass(frozen=True)
class Line:
    """One setting: its runs' mean score beside what a paper reports for it."""

    opt: str
    weight_decay: str
    lr: str
    epochs: str
    paper: str
    source: str
    by_seed: Mapping[str, float]
    failed: tuple[str, ...]
    norm: str
    commits: str
    machines: str
    difference: Difference | None = None
    times: tuple[float | None, ...] = ()
    leads: bool = False
    best: bool = False

    @property
    def score(self) -> tuple[float, float | None] | None:
        """Mean and deviation over the seeds, None where some seed diverged or none has a score."""
        return mean_and_deviation(list(self.by_seed.values())) if self.by_seed and not self.failed else None

    @property
    def count(self) -> int:
        """The seeds that have a score."""
        return len(self.by_seed)

    @property
    def seeds(self) -> str:
        """The seeds, as "0, 1, 2", and which of them diverged."""
        found = ", ".join([*sorted(self.by_seed, key=_by_number), *(f"{seed} failed" for seed in self.failed)])
        return found or NONE

    @property
    def ours(self) -> str:
        """Mean ± deviation, without the latter for one run."""
        if self.failed:
            return "failed"
        if self.score is None:
            return NONE
        mean, deviation = self.score
        return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")

    @property
    def behind(self) -> str:
        """The paired difference to the line with the best mean."""
        return "best mean" if self.leads else NONE if self.difference is None else self.difference.text()


@dataclass(frozen=True)
class Section:
    """The lines of one data set and scale, and the headings that name them."""

    data: str
    scale: str
    score: str
    paper_data: str
    lines: tuple[Line, ...]
    target: float | None = None

    @property
    def titles(self) -> list[str]:
        """Column headings, the same in all three formats."""
        score = SCORE_NAMES.get(self.score.rpartition("/")[2], self.score.rpartition("/")[2])
        paper = f"paper: {score} on {self.paper_data}" if self.paper_data else "paper"
        ours = f"ours: {score} on {self.data}, {self.scale}"
        return [
            "optimizer",
            "weight decay",
            "lr",
            "epochs",
            paper,
            "source",
            ours,
            "seeds",
            "difference to the best mean [95 %]",
            "epochs to the target" if self.target is None else f"epochs to {self.target:.2f}",
            "norm, first → last",
            "commit",
            "machine",
        ]

    def cells(self, line: Line) -> list[str]:
        """Return a line in the order of the titles."""
        head = [line.opt, line.weight_decay, line.lr, line.epochs, line.paper, line.source, line.ours]
        return [*head, line.seeds, line.behind, times_text(line.times), line.norm, line.commits, line.machines]


def sections(
    experiment: str, rows: Sequence[Row], paper: Sequence[Row], *, curves: Curves | None = None
) -> list[Section]:
    """Group an experiment's records by data set and scale, then by setting.

    Args:
        experiment: Its name.
        rows: records.csv.
        paper: The published numbers.
        curves: (experiment, name) -> the run's line of curves.jsonl, for the time to the target.
    """
    own = [row for row in rows if row["experiment"] == experiment]
    published = _published(experiment, paper)
    made = []
    for data, scale in sorted({(row["data"], row["scale"]) for row in own}):
        here = [row for row in own if (row["data"], row["scale"]) == (data, scale)]
        score = _score_key(here)
        groups: dict[str, list[Row]] = {}
        for row in here:
            groups.setdefault(row["setting"], []).append(row)
        lower, target = _lower_is_better(here, score), _target(groups.values(), score)
        found = {}
        for name, group in groups.items():
            times = _times(group, score, curves or {}, target=target, lower_is_better=lower)
            found[name] = replace(_line(group, score, published), times=times)
        lines = _distinct(found)
        lines.sort(key=lambda line: (line.opt, number(line.weight_decay) or 0.0, line.lr, line.epochs))
        names = ", ".join(sorted({DATA_NAMES.get(row["dataset"], row["dataset"]) for row in published}))
        compared = tuple(_compare(lines, lower_is_better=lower))
        made.append(Section(data, scale, score, names, compared, target if any(x.times for x in lines) else None))
    return made


def _lower_is_better(rows: Sequence[Row], score: str) -> bool:
    """Whether a score is the better the smaller it is: as its task says, else by its name."""
    said = {row.get("better", "") for row in rows if row.get("monitor") == score} - {""}
    return said == {"lower"} if said else any(word in score for word in LOWER_IS_BETTER)


def _target(groups: Iterable[Sequence[Row]], score: str) -> float | None:
    """Return the median over settings of the mean last score, rounded as it is printed."""
    means = [mean_and_deviation(found)[0] for rows in groups if (found := _values(_done(rows), score))]
    return round(statistics.median(means), 2) if len(means) > 1 else None


def _times(
    rows: Sequence[Row], score: str, curves: Curves, *, target: float | None, lower_is_better: bool
) -> tuple[float | None, ...]:
    """Return the epochs in which each seed reached the target; nothing where a run's curve is not recorded."""
    found = [curves.get((row["experiment"], row["name"]), {}).get("curves", {}).get(score) for row in rows]
    if target is None or not all(found):
        return ()
    return tuple(
        time_to_target(
            [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if value is not None],
            target,
            lower_is_better=lower_is_better,
        )
        for _, epochs, values in filter(None, found)
    )


def _distinct(lines: Mapping[str, Line]) -> list[Line]:
    """Return the lines; those that show the same settings get their setting's digits beside the optimizer."""
    shown = [(line.opt, line.weight_decay, line.lr, line.epochs) for line in lines.values()]
    return [
        line if shown.count(key) == 1 else replace(line, opt=f"{line.opt} [{name}]")
        for key, (name, line) in zip(shown, lines.items(), strict=True)
    ]


def _score_key(rows: Sequence[Row]) -> str:
    """Return the score that the table shows: what the task monitors, else val/top1, else the first that is no loss."""
    if monitored := next((row["monitor"] for row in rows if row.get("monitor")), ""):
        return monitored
    keys = sorted({key for row in rows for key, value in row.items() if "/" in key and value})
    ranked = sorted(keys, key=lambda key: (key != "val/top1", "loss" in key, key))
    return ranked[0] if ranked else "score"


def _published(experiment: str, paper: Sequence[Row]) -> list[Row]:
    """Return the papers' rows for an experiment named <data set>-<model>."""
    dataset, _, model = experiment.partition("-")
    names = (dataset, model.replace("-", "_"))
    return [row for row in paper if (row["dataset"], row["model"]) == names]


def _paper_number(row: Row, score: str, published: Sequence[Row]) -> tuple[str, str]:
    """Return (numbers, where they stand) that papers report for our optimizer and decay, dashes where they do not."""
    metric, decay = score.rpartition("/")[2], number(row["weight_decay"])
    found = []
    for entry in published:
        if (entry["optimizer"], entry["metric"]) != (row["opt"], metric):
            continue
        key, _, given = entry["setting"].partition("=")
        by_decay = key == "weight_decay" and decay is not None and number(given) == decay
        tuned = (entry["paper"], entry["table"]) == ("adamp", "2") and decay == TABLE_2_DECAYS.get(row["opt"], "")
        if by_decay or tuned or (entry["paper"] == "adarem" and row["opt"].startswith("adarem")):
            found.append((entry["value"], f"{_paper_name(entry)} Table {entry['table']}"))
    numbers, sources = zip(*found, strict=True) if found else ((NONE,), (NONE,))
    return " / ".join(numbers), " / ".join(sources)


def _paper_name(entry: Row) -> str:
    return {"adamp": "AdamP", "adarem": "AdaRem", "aws": "AWS"}.get(entry["paper"], entry["paper"])


def _done(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("status") != "diverged"]


def _by_number(seed: str) -> tuple[float, str]:
    return number(seed) or 0.0, seed


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(key, ""))) is not None]


def _line(rows: Sequence[Row], score: str, published: Sequence[Row]) -> Line:
    first = rows[0]
    done = _done(rows)
    by_seed = {row["seed"]: value for row in done if (value := number(row.get(score, ""))) is not None}
    norms = [_values(done, key) for key in ("norm_first", "norm_last")]
    paper, source = _paper_number(first, score, published)
    shown = [f"{mean_and_deviation(found)[0]:.2f}" if found else NONE for found in norms]
    marks = {f"{row['commit']}{'' if row['dirty'] == 'no' else '+'}" for row in rows}
    return Line(
        opt=first["opt"],
        weight_decay=short(number(first["weight_decay"])),
        lr=short(number(first["lr"])),
        epochs=short(number(first["epochs"])),
        paper=paper,
        source=source,
        by_seed=by_seed,
        failed=tuple(sorted((row["seed"] for row in rows if row.get("status") == "diverged"), key=_by_number)),
        norm=" → ".join(shown),
        commits=", ".join(sorted(marks)),
        machines="; ".join(sorted({row["machine"] for row in rows})),
    )


def _compare(lines: Sequence[Line], *, lower_is_better: bool) -> list[Line]:
    """Add each line's paired difference to the best mean; bold needs every interval to exclude 0."""
    sides = {str(place): line.by_seed for place, line in enumerate(lines) if line.score}
    if len(sides) < 2:
        return list(lines)
    first, ahead = leader(sides, lower_is_better=lower_is_better)
    return [
        replace(line, leads=True, best=ahead)
        if str(place) == first
        else replace(line, difference=paired(line.by_seed, sides[first]) if str(place) in sides else None)
        for place, line in enumerate(lines)
    ]


def markdown(experiment: str, made: Sequence[Section]) -> str:
    """Return the tables of one experiment, or a line that says that there are none yet."""
    if not made:
        made_by = f"`make {experiment}` makes one, `python scripts/tables.py --readme` fills this table"
        return f"No runs recorded yet; {made_by}.\n"
    return "\n".join(_markdown_section(section) for section in made)


def markdown_page(experiment: str, made: Sequence[Section]) -> str:
    """Return a page: heading, tables, and how to read them."""
    return f"# {experiment}\n\n{markdown(experiment, made)}\n{NOTE}\n"


NOTE = (
    "Generated from `results/records.csv` by `make tables`. Ours: mean ± sample standard deviation of the last epoch's "
    "score over the seeds. Difference: to the best mean over the seeds that both have, with the 95 % interval of "
    "Student's t for pairs; bold only where every such interval excludes 0. Epochs to the target: until the score "
    "first reaches the median of the settings' means, mean ± deviation over the seeds that do. Norm: mean L2 norm over "
    "the filters of all scale-invariant weights. A + behind a commit: the working tree had changes. Weight decay in "
    "torch's units."
)


def _markdown_section(section: Section) -> str:
    rows = [f"| {' | '.join(_escape(title) for title in section.titles)} |"]
    rows.append("|" + " --- |" * 4 + " ---: | --- | ---: | --- | ---: | ---: | --- | --- | --- |")
    for line in section.lines:
        cells = [_escape(cell) for cell in section.cells(line)]
        cells[6] = f"**{cells[6]}**" if line.best else cells[6]
        rows.append(f"| {' | '.join(cells)} |")
    return f"**{_escape(section.data)}, scale {_escape(section.scale)}**\n\n" + "\n".join(rows) + "\n"


def _escape(text: str) -> str:
    """Return text that cannot leave its Markdown cell or become HTML."""
    text = text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
    return text.replace("*", "\\*").replace("`", "\\`")


def comma_separated(_: str, made: Sequence[Section]) -> str:
    """Return all sections as one CSV; the data sets are columns there, so that every row stands alone."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["optimizer", "weight_decay", "lr", "epochs", "score", "paper_data", "paper", "source", "data", "scale"]
    numbers = ["mean", "deviation", "n", "seeds", "difference", "low", "high", "pairs", "target", "epochs_to_target"]
    writer.writerow([*head, *numbers, "norm", "commit", "machine"])
    for section in made:
        for line in section.lines:
            mean, deviation = line.score or (None, None)
            setting = (line.opt, line.weight_decay, line.lr, line.epochs, section.score)
            published = (section.paper_data, line.paper, line.source)
            ours = (section.data, section.scale, _exact(mean), _exact(deviation), line.count, line.seeds)
            gap = line.difference
            apart = ("", "", "", "") if gap is None else (*map(_exact, (gap.mean, gap.low, gap.high)), gap.pairs)
            when = (_exact(section.target), times_text(line.times))
            writer.writerow([*setting, *published, *ours, *apart, *when, line.norm, line.commits, line.machines])
    return out.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def latex(experiment: str, made: Sequence[Section]) -> str:
    """Return a tabular of each section, with the rules of the booktabs package."""
    return f"% {experiment}: generated by make tables; needs booktabs\n" + "\n".join(_latex_section(s) for s in made)


def _latex_section(section: Section) -> str:
    keep = slice(0, 11)  # commit and machine do not fit a paper's column; the CSV has them
    rows = [" & ".join(_tex(title) for title in section.titles[keep]) + r" \\", r"\midrule"]
    for line in section.lines:
        cells = [_tex(cell) for cell in section.cells(line)[keep]]
        cells[6] = rf"\textbf{{{cells[6]}}}" if line.best else cells[6]
        rows.append(" & ".join(cells) + r" \\")
    body = "\n".join(rows)
    return f"\\begin{{tabular}}{{llllrlrlrrl}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$", "–": "--", "\n": " ",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)
