"""Collect finished runs into results/records.csv and write tables from it: ours beside the paper's numbers.

Run folders are not committed; `records.csv` is. Every table, and the tables in README.md, come from it alone, so a
number in a table always has a row that says which commit and machine made it.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

if __package__:
    from scripts import layout
    from scripts.groups import digest, setting
    from scripts.options import command, parse, results
    from scripts.runs import ReadError, Run, load_runs
else:  # started as `python scripts/tables.py`: this folder itself is on the path
    import layout
    from groups import digest, setting
    from options import command, parse, results
    from runs import ReadError, Run, load_runs

USAGE = """
usage: python scripts/tables.py [experiment=NAME] [--readme] [--check] [runs=FOLDER] [records=FILE] [out=FOLDER]

Adds every finished run under RUNS to RECORDS (rows of other runs stay) and writes OUT/EXPERIMENT.md, .csv and .tex:
a row an optimizer and weight decay, with the paper's number, our mean and deviation over seeds, commit and machine.

  experiment=NAME  only this experiment; without it, all
  --readme         also rewrite the blocks "<!-- table:NAME begin -->" ... "<!-- table:NAME end -->" of README.md
  --check          write nothing; exit 1 if README.md's blocks are not what RECORDS says
  runs=FOLDER      default results/runs
  records=FILE     default results/records.csv
  out=FOLDER       default results/tables
  paper=FILE       published numbers; default results/paper.csv
  readme=FILE      default README.md

example: python scripts/tables.py experiment=imagenet-resnet18 --readme
"""

FACTS = (
    "experiment", "name", "opt", "lr", "weight_decay", "seed", "scale", "data", "epochs", "setting", "norm_first",
    "norm_last", "commit", "dirty", "machine", "wall_time_s", "date", "best", "best_epoch", "monitor",
)  # fmt: skip
BLOCK = re.compile(
    r"(?P<begin><!-- table:(?P<name>[\w.-]+) begin -->\n)(?P<body>.*?)(?P<end><!-- table:(?P=name) end -->)", re.DOTALL
)
Row = dict[str, str]


def _text(value: object) -> str:
    """Return a value as it stands in the CSV; numbers in a form that reads back unchanged."""
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def record_row(run: Run) -> Row:
    """Return a finished run's row of records.csv; scores stand under their own names."""
    git, best = run.section("git"), run.section("best")
    first, last = run.ends("norm/mean")
    values: dict[str, object] = {
        "experiment": run.experiment,
        "name": run.name,
        "opt": run.opt_name,
        "lr": run.lr,
        "weight_decay": run.weight_decay,
        "seed": run.seed,
        "scale": run.scale,
        "data": run.data,
        "epochs": run.epochs_done,
        "setting": digest(setting(run)),
        "norm_first": first,
        "norm_last": last,
        "commit": str(git.get("commit") or "unknown")[:10],
        "dirty": "unknown" if git.get("dirty") is None else "yes" if git["dirty"] else "no",
        "machine": run.machine,
        "wall_time_s": run.record.get("wall_time_s"),
        "date": run.text("ended")[:10],
        "best": best.get("score"),
        "best_epoch": best.get("epoch"),
        "monitor": run.monitor,
        **run.scores,
    }
    return {key: _text(value) for key, value in values.items()}


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value or "" for key, value in row.items() if key} for row in csv.DictReader(file)]


def merge(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """Return old rows with new ones put in the place of those of the same experiment and name, in a fixed order."""
    rows = {(row.get("experiment", ""), row.get("name", "")): row for row in [*old, *new]}
    return [rows[key] for key in sorted(rows)]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write records.csv: fixed columns first, then every score that any run has."""
    scores = sorted({key for row in rows for key in row if key not in FACTS})
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*FACTS, *scores], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def collect(runs: Iterable[Run], records: Path) -> list[Row]:
    """Bring records.csv up to date with finished runs and return all of its rows."""
    rows = merge(read_rows(records), [record_row(run) for run in runs if run.finished])
    write_rows(records, rows)
    return rows


def write_tables(experiment: str, rows: Sequence[Row], paper: Sequence[Row], *, folder: Path) -> list[Path]:
    """Write one experiment's table as .md, .csv and .tex and return the paths."""
    sections = layout.sections(experiment, rows, paper)
    forms = {"md": layout.markdown_page, "csv": layout.comma_separated, "tex": layout.latex}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for ending, form in forms.items():
        path = folder / f"{experiment}.{ending}"
        path.write_text(form(experiment, sections), encoding="utf-8")
        paths.append(path)
    return paths


def rewrite(readme: str, rows: Sequence[Row], paper: Sequence[Row], *, only: str = "") -> str:
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
        return match["begin"] + layout.markdown(name, layout.sections(name, rows, paper)) + match["end"]

    return BLOCK.sub(block, readme)


def _check(values: Mapping[str, str], paper: Sequence[Row]) -> int:
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
    values = parse([word for word in words if word not in ("--readme", "--check")], options=options)
    paper = read_rows(Path(values["paper"]))
    if "--check" in words:
        return _check(values, paper)
    records, only = Path(values["records"]), values["experiment"]
    try:
        rows = collect(load_runs(Path(values["runs"]), only or None), records)
    except ReadError:
        rows = read_rows(records)  # tables can be made anew without the run folders
        if not any(only in ("", row["experiment"]) for row in rows):
            raise
    print(records)
    for name in sorted({row["experiment"] for row in rows if only in ("", row["experiment"])}):
        print(*write_tables(name, rows, paper, folder=Path(values["out"])), sep="\n")
    if "--readme" in words:
        path = Path(values["readme"])
        path.write_text(rewrite(_read(path), rows, paper, only=only), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
