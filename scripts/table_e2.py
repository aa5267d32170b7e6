"""The AdamP paper's Table E.2 beside our runs: clean and attacked accuracy after the last and after the best epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/table_e2.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence.csv_files import read_csv as read_rows  # noqa: E402
from evidence.records.settings import Group, group_by_setting, short  # noqa: E402
from evidence.runs.run import ReadError, Run, experiments, load_runs  # noqa: E402
from evidence.stats import mean_and_deviation  # noqa: E402
from evidence.tables.render import write_page  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

USAGE = """
usage: python scripts/table_e2.py [runs=FOLDER] [out=FOLDER] [paper=FILE]

Writes table-e2.md and table-e2.csv from the finished runs of adversarial training (make table-e2), beside the paper's
numbers. The paper's are CIFAR-10's; ours are of the data set named in each row, and no two sets share a row.

  runs=FOLDER      default results/runs
  out=FOLDER       default results/tables
  paper=FILE       default results/paper.csv
"""

# Experiment -> (its words in this table, its setting in paper.csv).
BALLS = {
    "cifar10-pgd-linf": ("Linf 4/255", "linf_eps=4/255"),
    "cifar10-pgd-l2": ("L2 80/255, sign steps", "l2_eps=80/255"),
    "cifar10-pgd-l2-gradient": ("L2 80/255, gradient steps", ""),
}
SCORES = ("val/clean_accuracy", "val/attacked_accuracy")
HEADS = (
    "attack", "optimizer", "lr", "weight decay", "epochs", "paper, CIFAR-10: clean / attacked", "data, scale",
    "ours, last epoch: clean / attacked", "ours, best epoch: clean / attacked", "n", "commit", "machine",
)  # fmt: skip
NOTES = """
Last: after the last epoch, which is presumably what the paper prints. Best: the epoch of the highest attacked accuracy,
chosen on the pictures it is measured on, so an upper bound. Mean ± sample standard deviation over n seeds. Attack: ten
PGD steps from the clean picture; sign steps make a weak L2 attack (docs/adversarial.md). Rows without a paper's number
are ours. A + behind a commit: the working tree had changes.
"""


def at_best(run: Run, key: str) -> float | None:
    """Return a score after the epoch that had the best monitored score, None where it was not logged."""
    best = run.section("best").get("epoch")
    _, epochs, values = run.series(key)
    return next((value for epoch, value in zip(epochs, values, strict=True) if epoch == best), None)


def pair(group: Group, *, best: bool) -> str:
    """Return "clean / attacked" of a group's finished runs."""
    shown = []
    for key in SCORES:
        found = [at_best(run, key) if best else run.scores.get(key) for run in group.finished]
        values = [value for value in found if value is not None]
        mean, deviation = mean_and_deviation(values) if values else (None, None)
        text = "–" if mean is None else f"{mean:.2f}"
        shown.append(text if deviation is None else f"{text} ± {deviation:.2f}")
    return " / ".join(shown)


def published(paper: Sequence[Mapping[str, str]], opt: str, setting: str) -> str:
    """Return the paper's "clean / attacked" for an optimizer, a dash where it has none."""
    found = {
        row["metric"]: row["value"]
        for row in paper
        if (row["table"], row["optimizer"], row["setting"]) == ("E.2", opt, setting) and setting
    }
    return f"{found['clean_accuracy']} / {found['attacked_accuracy']}" if len(found) == 2 else "–"


def as_in_the_paper(run: Run) -> bool:
    """Whether a run has the rate and decay of the paper's two rows; others have no published number beside them."""
    return (run.lr, run.weight_decay) == (0.01, 2e-4)


def table(runs: Sequence[Run], paper: Sequence[Mapping[str, str]]) -> Iterator[list[str]]:
    """Yield a row a setting: attacks in the paper's order, then data sets, then optimizers."""
    for name, (ball, setting) in BALLS.items():
        for (data, scale), groups in group_by_setting([run for run in runs if run.experiment == name]).items():
            for group in groups:
                run = group.first
                if not group.finished:
                    continue
                yield [
                    ball, group.label.partition(",")[0], short(run.lr), short(run.weight_decay), short(run.epochs_done),
                    published(paper, run.opt_name, setting) if as_in_the_paper(run) else "–",
                    f"{data}, {scale}", pair(group, best=False), pair(group, best=True), str(len(group.finished)),
                    ", ".join(sorted({each.commit for each in group.finished})),
                    "; ".join(sorted({each.machine for each in group.finished})),
                ]  # fmt: skip


def adversarial_runs(root: Path) -> list[Run]:
    """Return the runs of all adversarial experiments below a folder.

    Raises:
        ReadError: There are none.
    """
    names = [name for name in BALLS if root.is_dir() and name in experiments(root)]
    found = [run for name in names for run in load_runs(root, name)]
    if not any(run.finished for run in found):
        raise ReadError(f"no finished run of {', '.join(BALLS)} in {root}; make table-e2 makes them")
    return found


def main(words: Sequence[str]) -> int:
    """Write the table and print it."""
    options = {"runs": results("runs"), "out": results("tables"), "paper": "results/paper.csv"}
    values = parse(words, options=options)
    rows = list(table(adversarial_runs(Path(values["runs"])), read_rows(Path(values["paper"]))))
    title = "Adversarial training: Table E.2 of the AdamP paper"
    write_page(Path(values["out"]), "table-e2", title=title, heads=HEADS, rows=rows, notes=NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
