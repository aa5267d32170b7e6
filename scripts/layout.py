"""The layout of result tables: groups of records beside the paper's numbers, as Markdown, CSV and LaTeX.

A paper's number and ours never stand under one heading: each column names the data it was measured on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

if __package__:
    from scripts.groups import mean_and_deviation, short
    from scripts.runs import number
else:  # started as `python scripts/tables.py`: this folder itself is on the path
    from groups import mean_and_deviation, short
    from runs import number

Row = dict[str, str]
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
    score: tuple[float, float | None] | None
    count: int
    norm: str
    commits: str
    machines: str
    best: bool = False

    @property
    def ours(self) -> str:
        """Mean ± deviation, without the latter for one run."""
        if self.score is None:
            return NONE
        mean, deviation = self.score
        return f"{mean:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")


@dataclass(frozen=True)
class Section:
    """The lines of one data set and scale, and the headings that name them."""

    data: str
    scale: str
    score: str
    paper_data: str
    lines: tuple[Line, ...]

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
            "n",
            "norm, first → last",
            "commit",
            "machine",
        ]

    def cells(self, line: Line) -> list[str]:
        """Return a line in the order of the titles."""
        head = [line.opt, line.weight_decay, line.lr, line.epochs, line.paper, line.source, line.ours]
        return [*head, str(line.count), line.norm, line.commits, line.machines]


def sections(experiment: str, rows: Sequence[Row], paper: Sequence[Row]) -> list[Section]:
    """Group an experiment's records by data set and scale, then by setting."""
    own = [row for row in rows if row["experiment"] == experiment]
    published = _published(experiment, paper)
    made = []
    for data, scale in sorted({(row["data"], row["scale"]) for row in own}):
        here = [row for row in own if (row["data"], row["scale"]) == (data, scale)]
        score = _score_key(here)
        groups: dict[str, list[Row]] = {}
        for row in here:
            groups.setdefault(row["setting"], []).append(row)
        lines = _distinct({name: _line(group, score, published) for name, group in groups.items()})
        lines.sort(key=lambda line: (line.opt, number(line.weight_decay) or 0.0, line.lr, line.epochs))
        names = {DATA_NAMES.get(row["dataset"], row["dataset"]) for row in published}
        made.append(Section(data, scale, score, ", ".join(sorted(names)), tuple(_mark_best(lines, score))))
    return made


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


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [value for row in rows if (value := number(row.get(key, ""))) is not None]


def _line(rows: Sequence[Row], score: str, published: Sequence[Row]) -> Line:
    first = rows[0]
    values, norms = _values(rows, score), [_values(rows, key) for key in ("norm_first", "norm_last")]
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
        score=mean_and_deviation(values) if values else None,
        count=len(values),
        norm=" → ".join(shown),
        commits=", ".join(sorted(marks)),
        machines="; ".join(sorted({row["machine"] for row in rows})),
    )


def _mark_best(lines: Sequence[Line], score: str) -> list[Line]:
    """Mark the best mean if it leads the next by more than either's deviation; one seed proves nothing."""
    sign = -1 if any(word in score for word in LOWER_IS_BETTER) else 1
    ranked = sorted((line for line in lines if line.score), key=lambda line: -sign * (line.score or (0.0,))[0])
    if len(ranked) < 2 or min(ranked[0].count, ranked[1].count) < 2:
        return list(lines)
    (top, top_spread), (next_, next_spread) = (line.score or (0.0, 0.0) for line in ranked[:2])
    if sign * (top - next_) <= max(top_spread or 0.0, next_spread or 0.0):
        return list(lines)
    return [replace(line, best=line is ranked[0]) for line in lines]


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
    "score over n seeds. Bold: ahead of the next by more than either's deviation. Norm: mean L2 norm over the filters "
    "of all scale-invariant weights. A + behind a commit: the working tree had changes. Weight decay in torch's units."
)


def _markdown_section(section: Section) -> str:
    rows = [f"| {' | '.join(_escape(title) for title in section.titles)} |"]
    rows.append("|" + " --- |" * 4 + " ---: | --- | ---: | ---: | --- | --- | --- |")
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
    writer.writerow([*head, "mean", "deviation", "n", "norm", "commit", "machine"])
    for section in made:
        for line in section.lines:
            mean, deviation = line.score or (None, None)
            setting = (line.opt, line.weight_decay, line.lr, line.epochs, section.score)
            published = (section.paper_data, line.paper, line.source)
            ours = (section.data, section.scale, _exact(mean), _exact(deviation), line.count)
            writer.writerow([*setting, *published, *ours, line.norm, line.commits, line.machines])
    return out.getvalue()


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def latex(experiment: str, made: Sequence[Section]) -> str:
    """Return a tabular of each section, with the rules of the booktabs package."""
    return f"% {experiment}: generated by make tables; needs booktabs\n" + "\n".join(_latex_section(s) for s in made)


def _latex_section(section: Section) -> str:
    keep = slice(0, 9)  # commit and machine do not fit a paper's column; the CSV has them
    rows = [" & ".join(_tex(title) for title in section.titles[keep]) + r" \\", r"\midrule"]
    for line in section.lines:
        cells = [_tex(cell) for cell in section.cells(line)[keep]]
        cells[6] = rf"\textbf{{{cells[6]}}}" if line.best else cells[6]
        rows.append(" & ".join(cells) + r" \\")
    body = "\n".join(rows)
    return f"\\begin{{tabular}}{{llllrlrrl}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"


TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "→": r"$\to$", "–": "--", "\n": " ",
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(letter, letter) for letter in text)
