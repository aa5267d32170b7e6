"""The AdamP paper's Table 3 beside our runs: the Harmonic CNN on three audio tasks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/table_3.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

from evidence.csv_files import read_csv as read_rows  # noqa: E402
from evidence.records.settings import group_by_setting  # noqa: E402
from evidence.runs.run import ReadError, Run, experiments, load_runs  # noqa: E402
from evidence.stats import mean_and_deviation  # noqa: E402
from evidence.tables.render import write_page  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

USAGE = """
usage: python scripts/table_3.py [runs=FOLDER] [out=FOLDER] [paper=FILE]

Writes table-3.md and table-3.csv from the finished runs of mtat, speech-commands and dcase (make table-3), beside the
paper's numbers. Each row names its data set: the synthetic sets' scores do not compare with the paper's.

  runs=FOLDER      default results/runs
  out=FOLDER       default results/tables
  paper=FILE       default results/paper.csv
"""
# Experiment -> (the paper's data set, its metrics).
TASKS = {
    "mtat": ("magnatagatune", ("roc_auc", "pr_auc")),
    "speech-commands": ("speech_commands", ("top1",)),
    "dcase": ("dcase2017_task4", ("f1",)),
}
OPTIMIZERS = {"adam_sgd_paper": "adam_then_sgd", "adam_sgd_reference": "adam_then_sgd"}  # ours -> the paper's
HEADS = (
    "task",
    "optimizer",
    "metric",
    "paper",
    "ours",
    "norm, first epoch -> last",
    "n",
    "data, scale",
    "commit",
    "machine",
)
NOTES = """
Ours: the test split, scored once with the best validation weights, mean ± sample standard deviation over n seeds, in
percent. F1 is the mean over clips at a threshold of 0.1. Norm: mean filter norm of the 13 scale-invariant tensors. The
lower half of Table 1 prints norms 7.35 -> 11.56 (AdamW) and 7.30 -> 7.62 (AdamP) beside ROC-AUCs of 90.86 and 91.19,
which are not those of Table 3; the paper does not say why. A + behind a commit: the working tree had changes.
"""


def spread(values: Sequence[float | None]) -> str:
    """Return "mean ± deviation" of the values there are, a dash for none."""
    found = [value for value in values if value is not None]
    if not found:
        return "–"
    mean, deviation = mean_and_deviation(found)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def first_norm(run: Run) -> float | None:
    """Return the mean filter norm after the first epoch."""
    _, epochs, values = run.series("norm/mean")
    return next((value for epoch, value in zip(epochs, values, strict=True) if epoch >= 1), None)


def published(paper: Sequence[Mapping[str, str]], *, dataset: str, opt: str, metric: str) -> str:
    """Return the paper's number in Table 3, a dash where it has none."""
    wanted = {
        "paper": "adamp",
        "table": "3",
        "dataset": dataset,
        "optimizer": OPTIMIZERS.get(opt, opt),
        "metric": metric,
    }
    return next((row["value"] for row in paper if all(row[key] == value for key, value in wanted.items())), "–")


def table(runs: Sequence[Run], paper: Sequence[Mapping[str, str]]) -> Iterator[list[str]]:
    """Yield a row a task, data set, setting and metric."""
    for experiment, (dataset, metrics) in TASKS.items():
        for (data, scale), groups in group_by_setting([run for run in runs if run.experiment == experiment]).items():
            for group in groups:
                done = group.finished
                for metric in metrics if done else ():
                    last = [run.first_and_last("norm/mean")[1] for run in done]
                    norms = f"{spread([first_norm(r) for r in done])} -> {spread(last)}"
                    yield [
                        experiment, group.label, metric,
                        published(paper, dataset=dataset, opt=group.first.opt_name, metric=metric),
                        spread([run.scores.get(f"test/{metric}") for run in done]), norms, str(len(done)),
                        f"{data}, {scale}", ", ".join(sorted({run.commit for run in done})),
                        "; ".join(sorted({run.machine for run in done})),
                    ]  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Write the table and print it."""
    values = parse(words, options={"runs": results("runs"), "out": results("tables"), "paper": "results/paper.csv"})
    root = Path(values["runs"])
    names = [name for name in TASKS if root.is_dir() and name in experiments(root)]
    rows = list(table([run for name in names for run in load_runs(root, name)], read_rows(Path(values["paper"]))))
    if not rows:
        raise ReadError(f"no finished run of {', '.join(TASKS)} in {root}; make table-3 makes them")
    title = "The Harmonic CNN on three audio tasks: Table 3 of the AdamP paper"
    write_page(Path(values["out"]), "table-3", title=title, heads=HEADS, rows=rows, notes=NOTES)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
