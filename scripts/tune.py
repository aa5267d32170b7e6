"""The same number of runs for every optimizer over rate and decay, the choice, and how much it matters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from evidence.tuning import Point, around, ends, points, read_scores
from launch.trust import PLACING
from launch.tuning import name_runs, planned, recipes, task_class, validation_words
from scripts.options import command, results, separated
from scripts.retry import SIZING, launch

USAGE = """
usage: python scripts/tune.py experiment=NAME budget=16 [opts=sgd,adamp] [KEY=VALUE ...]

Runs each optimizer at `budget` points, rate x decay, and writes OUT/EXPERIMENT/SCALE: the point of the best score for
each (chosen.yaml), every point (points.csv), and how much the choice matters (sensitivity.svg and .md): the score over
rate and decay, and the part of the searched area whose score is within 1 % of the best. Running it again goes on; a
larger budget keeps the points of the smaller one.

  budget=16         runs of each optimizer, the same for all
  opts=sgd,adamp    default: every optimizer that the experiment has a recipe for
  lr=LOW..HIGH      the rates searched; default: from a tenth to ten times the recipe's, for each optimizer its own
  decay=LOW..HIGH   the decays searched; default likewise
  validation=0.1    share of the training pictures that choose. Tasks with a validation split of their own use that, and
                    this option is refused. validation=none chooses on the reported split, and says so: the only way
                    for tasks that have one split to score on (retrieval, detection, the two of ReBias)
  draw=0            seed of the points
  scale=mini        or full
  out=FOLDER        default results/tuning; the runs lie there too, apart from those of tables
  KEY=VALUE         anything of the runs (train.epochs=2) or of their launcher (jobs=2, launcher=slurm)

example: python scripts/tune.py experiment=imagenet-resnet18 budget=12 opts=sgd,adamp jobs=2
"""


def main(words: Sequence[str]) -> int:
    """Search, and write what was found; return the exit code of the runs."""
    defaults = {
        "experiment": "", "budget": "", "opts": "", "lr": "", "decay": "", "validation": "", "draw": "0",
        "scale": "mini", "out": results("tuning"),
    }  # fmt: skip
    options, typed = separated(words, defaults)
    for key, low in (("budget", 1), ("draw", 0)):
        if not options[key].isdecimal() or int(options[key]) < low:
            raise ReadError(f"{key}={options[key]}: must be a whole number, at least {low}")
    if not options["experiment"]:
        raise ReadError("experiment= is missing: the setting whose optimizers are tuned")
    out = Path(options["out"]) / options["experiment"] / options["scale"]
    placing = [f"{key}={value}" for key, value in typed.items() if f"{key}=".startswith(PLACING)]
    shared = [f"experiment={options['experiment']}", f"scale={options['scale']}", "pictures=false"]
    shared += [f"paths.runs={options['out']}/runs", f"paths.reports={options['out']}/reports"]
    shared += [f"{key}={value}" for key, value in typed.items() if f"{key}={value}" not in placing]

    first = planned("sgd", shared)
    asked = [opt for opt in options["opts"].split(",") if opt] or recipes(first, shared)
    if not asked:
        raise ReadError(f"experiment={options['experiment']} has no recipes: name optimizers with opts=sgd,adamp")
    more, said = validation_words(task_class(first), options["validation"])
    shared += more
    rates, decays = ends(options["lr"], "lr"), ends(options["decay"], "decay")
    found: dict[str, list[Point]] = {}
    for opt in asked:
        plan = planned(opt, shared)
        own = plan.config["opt"]
        found[opt] = points(
            opt, int(options["budget"]), draw=int(options["draw"]), rates=around(float(own["lr"]), rates, "lr"),
            decays=around(float(own.get("weight_decay", 0)), decays, "decay"),
        )  # fmt: skip
        name_runs(found[opt], plan, shared)
    cells = [point.words for own in found.values() for point in own]
    print(f"{len(asked)} optimizers x {options['budget']} points, chosen by {said}", flush=True)
    sizes = [word for word in shared if word.startswith(SIZING)]
    code = launch([*sizes, "pictures=false"], cells, placing, out=out)
    if code >= 128:  # stopped: what there is now would be a search of another budget
        return code
    monitor = read_scores([point for own in found.values() for point in own])
    from evidence.figures.sensitivity import write  # matplotlib

    write(found, out, title=f"{options['experiment']}, scale {options['scale']}", said=said, monitor=monitor)
    print((out / "sensitivity.md").read_text(encoding="utf-8") + f"\nwritten to {out}")
    return code


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
