"""Choose rate and decay of each optimizer by the same number of runs, on pictures or text that no table reports."""

from __future__ import annotations

import csv
import inspect
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/tune.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from hydra.utils import get_class  # noqa: E402
from scipy.stats import qmc  # noqa: E402

from evidence.runs.run import ReadError, number  # noqa: E402
from scripts.options import command, results  # noqa: E402
from scripts.retry import PLACING, SIZING, launch  # noqa: E402
from scripts.status import separated  # noqa: E402
from tasks.base import InputError, Task  # noqa: E402
from tasks.engine.run_spec import RunSpec  # noqa: E402

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
WITHIN = 0.01  # of the best score: what counts as good enough in the picture of sensitivity
EDGE = 0.05  # of the searched range in logarithms: a choice so close to its end may lie beyond it


@dataclass
class Point:
    """One run of the search.

    Attributes:
        opt: Optimizer.
        lr: Learning rate.
        weight_decay: Weight decay, in torch's units.
        place: Where it lies in the searched square, both in [0, 1), logarithmic.
        words: Overrides of the run.
        folder: Where the run lies.
        score: The monitored score at the end, None where the run has none.
        status: What became of the run.
    """

    opt: str
    lr: float
    weight_decay: float
    place: tuple[float, float]
    words: list[str] = field(default_factory=list)
    folder: Path = Path()
    score: float | None = None
    status: str = "not run"


def points(opt: str, budget: int, *, rates: tuple[float, float], decays: tuple[float, float], draw: int) -> list[Point]:
    """Return the points of an optimizer: a scrambled Halton sequence, the same in the unit square for each optimizer.

    It fills the square more evenly than random points, and the points of a small budget are the first of a larger one.

    Args:
        opt: Optimizer.
        budget: Points.
        rates: Lowest and highest learning rate; the sequence is laid out over their logarithms.
        decays: Lowest and highest weight decay.
        draw: Seed of the scrambling.
    """
    square = qmc.Halton(2, scramble=True, rng=draw).random(budget)

    def between(ends: tuple[float, float], part: float) -> float:
        return float(f"{ends[0] * (ends[1] / ends[0]) ** part:.3g}")

    return [Point(opt, between(rates, u), between(decays, v), (float(u), float(v))) for u, v in square]


def ends(text: str, key: str) -> tuple[float, float] | None:
    """Return the two ends of LOW..HIGH, None where nothing is given.

    Raises:
        ReadError: They are no two positive numbers, the second the larger.
    """
    if not text:
        return None
    low, high = (number(part) for part in (*text.split("..", 1), "")[:2])
    if low is None or high is None or not 0 < low < high < float("inf"):
        raise ReadError(f"{key}={text}: must be LOW..HIGH, two positive numbers, such as 1e-4..1e-1")
    return low, high


def around(value: float, given: tuple[float, float] | None, key: str) -> tuple[float, float]:
    """Return the range to search: the given one, or from a tenth to ten times the recipe's value."""
    if given is not None:
        return given
    if not value > 0:
        raise ReadError(f"the recipe's {key} is {value:g}, around which nothing can be searched: give {key}=LOW..HIGH")
    return value / 10, value * 10


def validation_words(task: type[Task], given: str) -> tuple[list[str], str]:
    """Return the words that let a task score what no table reports, and what to say of it.

    Raises:
        ReadError: The task has no such data, or has its own and the option asks for other.
    """
    name = task.__name__
    if given == "none":
        return [], "the split that the tables report: the choice has seen it, so its score is no fair estimate"
    if "validation" in inspect.signature(task).parameters:
        share = number(given or "0.1")
        if share is None or not 0 < share < 1:
            raise ReadError(f"validation={given}: must be a share of the training pictures, such as 0.1, or none")
        said = f"{100 * share:g} % of the training pictures, held out from training; the reported split is not read"
        return [f"+task.validation={share:g}"], said
    if task.test_batches is not Task.test_batches:
        if given:
            raise ReadError(f"validation={given}: {name} has a validation split of its own, apart from its test split")
        return [], "the task's own validation split; the test split is scored too, and chooses nothing"
    raise ReadError(
        f"{name} scores one split only, the one that tables report: choosing on it would flatter the result\n"
        "validation=none does so nevertheless, and the page says it"
    )


def planned(opt: str, shared: Sequence[str]) -> RunSpec:
    """Return the plan of an optimizer at its recipe's values.

    Raises:
        ReadError: It cannot be composed.
    """
    from scripts import train

    try:
        return train.composed([*shared, f"opt={opt}"])
    except (InputError, HydraException) as error:
        raise ReadError(train.explain(error)) from None


def name_runs(found: Sequence[Point], plan: RunSpec, shared: Sequence[str]) -> None:
    """Give points of one optimizer their words and folders."""
    from scripts import train

    for point in found:
        values = {"lr": point.lr, "weight_decay": point.weight_decay}
        point.words = [*shared, f"opt={point.opt}", *(f"opt.{key}={value:g}" for key, value in values.items())]
        config = {**plan.config, "opt": {**plan.config["opt"], **values}}
        point.folder = plan.folder.parent / train.run_name(config, point.words)


def read_scores(found: Sequence[Point]) -> str:
    """Fill in what became of each run, and return the monitored score's name, with a minus where less is better."""
    monitor = ""
    for point in found:
        try:
            record = json.loads((point.folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        monitor = str(record.get("monitor") or monitor)
        point.status = "diverged" if record.get("diverged_at") is not None else str(record.get("status"))
        if point.status == "finished":
            point.score = number((record.get("scores") or {}).get(monitor.lstrip("-")))
    return monitor


def best(found: Sequence[Point], monitor: str) -> Point | None:
    """Return the point of the best score."""
    scored = [point for point in found if point.score is not None]
    sign = -1 if monitor.startswith("-") else 1
    return max(scored, key=lambda point: sign * (point.score or 0.0), default=None)


def good(found: Sequence[Point], monitor: str) -> list[Point]:
    """Return the points whose score is within 1 % of the best one's."""
    top = best(found, monitor)
    if top is None or top.score is None:
        return []
    room = WITHIN * abs(top.score)
    return [point for point in found if point.score is not None and abs(point.score - top.score) <= room]


def edges(point: Point) -> list[str]:
    """Return the ends of the searched ranges that a point lies at."""
    names = zip(("lr", "decay"), point.place, strict=True)
    return [f"{'lowest' if part < EDGE else 'highest'} {key}" for key, part in names if not EDGE <= part <= 1 - EDGE]


def facts(found: Mapping[str, Sequence[Point]], monitor: str) -> dict[str, dict[str, Any]]:
    """Return what was found for each optimizer."""
    made: dict[str, dict[str, Any]] = {}
    for opt, own in found.items():
        top, near = best(own, monitor), good(own, monitor)
        if top is None:
            made[opt] = {"runs": len(own), "scored": 0}
            continue
        made[opt] = {
            "lr": top.lr, "weight_decay": top.weight_decay, "score": top.score, "runs": len(own),
            "scored": sum(point.score is not None for point in own),
            "diverged": sum(point.status == "diverged" for point in own),
            "within_1_percent": round(len(near) / len(own), 4), "at_the_end_of": edges(top),
            "lr_within": [min(point.lr for point in near), max(point.lr for point in near)],
            "weight_decay_within": [min(p.weight_decay for p in near), max(p.weight_decay for p in near)],
        }  # fmt: skip
    return made


def write(found: Mapping[str, Sequence[Point]], out: Path, *, title: str, said: str, monitor: str) -> None:
    """Write points.csv, chosen.yaml, sensitivity.md and the picture."""
    from evidence.figures.sensitivity import draw, page

    made = facts(found, monitor)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "points.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["opt", "lr", "weight_decay", "score", "status", "run"])
        for point in (point for own in found.values() for point in own):
            score = "" if point.score is None else f"{point.score:.10g}"
            writer.writerow([point.opt, point.lr, point.weight_decay, score, point.status, point.folder.name])
    recipe = {o: {"lr": f["lr"], "weight_decay": f["weight_decay"]} for o, f in made.items() if f["scored"]}
    chosen = {"recipe": recipe, "protocol": {"chosen by": monitor.lstrip("-"), "on": said}, "found": made}
    text = yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    (out / "chosen.yaml").write_text(f"# {title}\n{text}", encoding="utf-8")
    (out / "sensitivity.md").write_text(page(made, title=title, said=said, monitor=monitor), encoding="utf-8")
    if any(facts["scored"] for facts in made.values()):
        draw(found, out / "sensitivity.svg", title=title, monitor=monitor)


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
    # An optimizer's own file adds a row for itself: those of the experiment are there whatever optimizer is composed.
    rows = first.config["recipe"].keys() & planned("adam", shared).config["recipe"].keys()
    asked = [opt for opt in options["opts"].split(",") if opt] or [o for o in first.config["recipe"] if o in rows]
    if not asked:
        raise ReadError(f"experiment={options['experiment']} has no recipes: name optimizers with opts=sgd,adamp")
    more, said = validation_words(get_class(first.config["task"]["_target_"]), options["validation"])
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
    code = launch([*sizes, "pictures=false"], cells, placing, out=out / "cells.json")
    if code >= 128:  # stopped: what there is now would be a search of another budget
        return code
    monitor = read_scores([point for own in found.values() for point in own])
    write(found, out, title=f"{options['experiment']}, scale {options['scale']}", said=said, monitor=monitor)
    print((out / "sensitivity.md").read_text(encoding="utf-8") + f"\nwritten to {out}")
    return code


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
