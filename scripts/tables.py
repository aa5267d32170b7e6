"""Collect runs into results/records.csv and write tables from it: ours beside the paper's numbers.

Run folders are not committed; `records.csv` and its companions are (`evidence.records.store`). Every table, and the
tables in README.md, come from them alone, so a number in a table always has a row that says which commit and machine
made it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/tables.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence.paper import PaperNumber, read_paper  # noqa: E402
from evidence.records.row import ResultRow  # noqa: E402
from evidence.records.store import add, read_rows, recorded_runs, rows_of_runs  # noqa: E402
from evidence.runs.run import ReadError, load_runs  # noqa: E402
from evidence.tables import formats  # noqa: E402
from evidence.tables.sections import result_tables  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

USAGE = """
usage: python scripts/tables.py [experiment=NAME] [--readme] [--figures] [--check] [records=FILE] [out=FOLDER] ...

Adds every run under RUNS that finished or diverged to RECORDS and its companions curves.jsonl and settings.jsonl (rows
of other runs stay) and writes OUT/EXPERIMENT.md, .csv and .tex: a row an optimizer and weight decay, with the paper's
number, our mean and deviation over seeds, the interval of the paired difference to the best, and the epochs to reach a
target.

  experiment=NAME  only this experiment; without it, all
  --readme         also rewrite the blocks "<!-- table:NAME begin -->" ... "<!-- table:NAME end -->" of README.md
  --figures        also draw the norms and learning curves that README.md shows, into the folder figures beside OUT
  --check          write nothing; exit 1 if README.md's blocks are not what RECORDS says
  runs=FOLDER      default results/runs
  records=FILE     default results/records.csv
  out=FOLDER       default results/tables
  paper=FILE       published numbers; default results/paper.csv
  readme=FILE      default README.md

example: python scripts/tables.py experiment=imagenet-resnet18 --readme
"""

PICTURED = ("imagenet-resnet18",)  # whose figures README.md shows
BLOCK = re.compile(
    r"(?P<begin><!-- table:(?P<name>[\w.-]+) begin -->\n)(?P<body>.*?)(?P<end><!-- table:(?P=name) end -->)", re.DOTALL
)


def write_tables(
    experiment: str, rows: Sequence[ResultRow], paper: Sequence[PaperNumber], *, folder: Path
) -> list[Path]:
    """Write one experiment's table as .md, .csv and .tex and return the paths."""
    tables = result_tables(experiment, rows, paper)
    forms = {"md": formats.markdown_page, "csv": formats.comma_separated, "tex": formats.latex}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, form in forms.items():
        path = folder / f"{experiment}.{ending}"
        path.write_text(form(experiment, tables), encoding="utf-8")
        paths.append(path)
    return paths


def rewrite(readme: str, rows: Sequence[ResultRow], paper: Sequence[PaperNumber], *, only: str = "") -> str:
    """Return README text with its table blocks made anew from the records.

    Raises:
        ReadError: There is no block, or none of experiment `only`.
    """
    names = {match["name"] for match in BLOCK.finditer(readme)}
    if not names or (only and only not in names):
        name = only or "imagenet-resnet18"
        raise ReadError(
            f"README has no block for {name}; put these two lines where the table belongs:\n"
            f"<!-- table:{name} begin -->\n<!-- table:{name} end -->"
        )

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if only and name != only:
            return match[0]
        return match["begin"] + formats.markdown(name, result_tables(name, rows, paper)) + match["end"]

    return BLOCK.sub(block, readme)


def draw_figures(records: Path, folder: Path, *, only: str = "") -> list[Path]:
    """Draw the norms and learning curves that README.md shows from the records; return the numbers' paths."""
    from evidence.figures.curves import draw_comparison  # matplotlib
    from evidence.records.settings import group_by_setting
    from scripts.report import slug

    runs = recorded_runs(records)
    drawn = []
    for name in (name for name in PICTURED if only in ("", name)):
        for (data, scale), groups in group_by_setting([run for run in runs if run.experiment == name]).items():
            prefix = f"{name}-{slug(data)}-{slug(scale)}-"
            drawn += draw_comparison(groups, folder, prefix=prefix, only=("norms", "learning"))
    return [figure.svg.with_suffix(".csv") for figure in drawn]


def _check(values: Mapping[str, str], paper: Sequence[PaperNumber]) -> int:
    path = Path(values["readme"])
    text = _read(path)
    if rewrite(text, read_rows(Path(values["records"])), paper, only=values["experiment"]) == text:
        return 0
    print(
        f"{path} is stale: its tables are not what {values['records']} says; run: python scripts/tables.py --readme",
        file=sys.stderr,
    )
    return 1


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReadError(f"cannot read {path}: {error.strerror}") from None


def main(words: Sequence[str]) -> int:
    """Do what the command line asks for and print each file written."""
    options = {
        "experiment": "", "runs": results("runs"), "records": results("records.csv"), "out": results("tables"),
        "paper": "results/paper.csv", "readme": "README.md",
    }  # fmt: skip
    flags = ("--readme", "--check", "--figures")
    values = parse([word for word in words if word not in flags], options=options)
    paper = read_paper(Path(values["paper"]))
    if "--check" in words:
        return _check(values, paper)
    records, only = Path(values["records"]), values["experiment"]
    try:
        rows = add(rows_of_runs(load_runs(Path(values["runs"]), only or None)), records)
    except ReadError:
        rows = read_rows(records)  # tables can be made anew without the run folders
        if not any(only in ("", row.experiment) for row in rows):
            raise
    print(records)
    for name in sorted({row.experiment for row in rows if only in ("", row.experiment)}):
        print(*write_tables(name, rows, paper, folder=Path(values["out"])), sep="\n")
    if "--figures" in words:
        print(*draw_figures(records, Path(values["out"]).parent / "figures", only=only), sep="\n")
    if "--readme" in words:
        path = Path(values["readme"])
        path.write_text(rewrite(_read(path), rows, paper, only=only), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
