"""Many small networks trained at once beside the same runs one by one.

`make benchmark-many` or `python benchmarks/many.py [steps=400] [rounds=2] [alone=sgd,sgdp,adamw,adamp]
[out=results/benchmarks]`.
In each round every optimizer of `alone` trains one network by `scripts/train.py`, as a run by itself, and then one
process trains all 24 cells of `make projection-effect` of one seed, with launcher=many. CPU seconds of the processes,
by interleaved rounds, so that other work on the machine weighs on all alike. Runs of two lengths tell what a run costs
before its first step from what its steps cost; the times of the usual 4,000 steps follow from both.

Without pictures held in memory a run decodes, crops and mirrors each picture of a batch. What that costs is measured
too: the batches of the image tasks' own loader, at this size.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import pages
from benchmarks.processes import cpu_seconds
from launch.checkout import ROOT, TRAIN
from scripts.options import command, parse_as
from tasks.base import Shard
from tasks.data import FashionMnist
from tasks.data.image_batches import ImageBatches
from tasks.engine.provenance import provenance

DEFAULTS = {"steps": 400, "rounds": 2, "alone": "sgd,sgdp,adamw,adamp", "out": "results/benchmarks"}
USUAL, CELLS, SHORT = 4000, 24, 20  # steps of the experiment, its cells a seed, steps of the short runs
LOADER_BATCHES = 8


def trained(words: Sequence[str]) -> float:
    """Return the CPU seconds of the training command, its results in a folder that is then removed."""
    with tempfile.TemporaryDirectory() as folder:
        return cpu_seconds([str(TRAIN), *words, f"paths.runs={folder}", f"paths.reports={folder}", "pictures=false"])


def alone(optimizer: str, steps: int) -> float:
    """Return the CPU seconds of a run by itself."""
    return trained(["experiment=projection-effect-mlp", f"opt={optimizer}", f"train.max_steps={steps}"])


def together(steps: int) -> float:
    """Return the CPU seconds of all cells of one seed."""
    return trained(["sweep=projection-effect", "hydra.mode=MULTIRUN", "train.seed=0", f"train.max_steps={steps}"])


def loader_seconds() -> float:
    """Return the CPU seconds of one batch of 256 pictures of 14x14 from the image tasks' loader."""
    batches = ImageBatches(FashionMnist(image_size=14), batch_size=256, seed=0, num_workers=0, eval_batch_size=250)
    stream = iter(batches.train(0, Shard()))
    next(stream)
    begun = time.process_time()
    for _ in range(LOADER_BATCHES):
        next(stream)
    return (time.process_time() - begun) / LOADER_BATCHES


def usual(short: float, long: float, steps: int) -> float:
    """Return the time of the usual number of steps from those of the short and the long runs."""
    return short + (long - short) * (USUAL - SHORT) / (steps - SHORT)


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Return per-network CPU seconds of the usual length, by round."""
    optimizers, steps = options["alone"].split(","), options["steps"]
    rounds = []
    for _ in range(options["rounds"]):
        one_by_one = [usual(alone(name, SHORT), alone(name, steps), steps) for name in optimizers]
        at_once = usual(together(SHORT), together(steps), steps) / CELLS
        rounds.append({
            "alone": statistics.mean(one_by_one), "at_once": at_once, "loader": loader_seconds() * USUAL,
        })  # fmt: skip
    return {
        "rounds": rounds,
        "ratio": statistics.median(r["alone"] / r["at_once"] for r in rounds),
        "ratio_with_loader": statistics.median((r["alone"] + r["loader"]) / r["at_once"] for r in rounds),
        **{key: statistics.median(r[key] for r in rounds) for key in ("alone", "at_once", "loader")},
    }


def main(words: Sequence[str]) -> int:
    """Measure, print a table and write it with its provenance."""
    options = parse_as(words, DEFAULTS)
    result = measure(options)
    text = (
        f"# Many networks at once\n\nThe multilayer perceptron of `make projection-effect`, {USUAL:,} steps of 256 "
        f"pictures, one thread; from runs of {SHORT} and {options['steps']} steps, {options['rounds']} rounds, "
        "interleaved; CPU seconds per network, start of the process included.\n\n"
        "| trained | CPU seconds per network | times as long |\n| --- | --- | --- |\n"
        f"| {CELLS} cells of a seed at once | {result['at_once']:.2f} | 1 |\n"
        f"| one by one, pictures in memory | {result['alone']:.1f} | {result['ratio']:.1f} |\n"
        f"| one by one, pictures from the image tasks' loader | {result['alone'] + result['loader']:.1f} | "
        f"{result['ratio_with_loader']:.1f} |\n"
        f"\n{provenance(ROOT)}. Command: `make benchmark-many {pages.shown(words)}`\n"
    )
    pages.write(text, result, options, stem="many")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
