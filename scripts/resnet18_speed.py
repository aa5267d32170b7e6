"""Share of data, forward, backward, optimizer and probes in a training step of ResNet18, for each optimizer.

make resnet18-speed [optimizers=sgd,sgdp,adam,adamw,adamp] [scale=mini] [data_root=FOLDER] [rounds=9] [steps=2]
[device=auto] [out=results/benchmarks] [any.key=value of the experiment, such as train.precision=bf16]

The step is that of experiment imagenet-resnet18. With a GPU: scale=full, device time between CUDA events; otherwise
scale=mini and CPU time on one thread. scale=full without data_root takes noise, and "data" is then the copy to the
device alone. Optimizers take turns, a few steps a round. A probed step is measured beside one without probes, and the
difference divided by train.probe_every: what probes cost on average. With train.num_workers above 0 "data" is what the
step waits for.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.checkout import ROOT
from launch.step_shares import measure, table
from scripts.options import command, results, split, whole

EXPERIMENT = "imagenet-resnet18"
OPTIONS = {
    "optimizers": "sgd,sgdp,adam,adamw,adamp", "scale": "", "data_root": "", "rounds": "9", "steps": "2",
    "device": "auto", "out": results("benchmarks"),
}  # fmt: skip


def overrides(options: Mapping[str, str], others: Sequence[str], *, cuda: bool) -> list[str]:
    """Return what is composed for every optimizer."""
    scale = options["scale"] or ("full" if cuda else "mini")
    words = [f"experiment={EXPERIMENT}", f"scale={scale}", *others]
    if options["data_root"]:
        words.append(f"data_root={options['data_root']}")
    elif scale == "full" and not any(word.startswith("data=") for word in others):
        words.append("data=synthetic")
    if not cuda and not any(word.startswith("train.threads=") for word in others):
        words.append("train.threads=1")
    return words


def main(argv: Sequence[str]) -> int:
    """Measure, write resnet18-speed.csv and .md, and return 0."""
    options, others = split(argv, OPTIONS)
    rounds, steps = whole(options, "rounds", "steps")
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise ReadError(f"device is {options['device']!r}; choose auto, cpu or cuda")
    import torch

    from launch import compose
    from launch.stepping import batch_length, prepare
    from tasks.engine.provenance import provenance

    if options["device"] == "cuda" and not torch.cuda.is_available():
        raise ReadError("device=cuda: torch sees no CUDA device here")
    cuda = options["device"] != "cpu" and torch.cuda.is_available()
    words = overrides(options, others, cuda=cuda)
    steppers = {}
    try:
        for name in options["optimizers"].split(","):
            planned = compose.composed([*words, f"opt={name}"])
            if planned.train.threads and not cuda:
                torch.set_num_threads(planned.train.threads)
            steppers[name] = prepare(planned, device=torch.device("cuda" if cuda else "cpu"))
        rows = measure(steppers, rounds=rounds, steps=steps)
    except (ValueError, *compose.CONFIG_ERRORS) as error:
        raise ReadError(compose.explain(error)) from error
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "resnet18-speed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    first = next(iter(steppers.values()))
    facts = first.task.describe()
    clock = "device time between CUDA events" if cuda else f"CPU time, {torch.get_num_threads()} thread(s)"
    text = (
        f"# Where a training step of {EXPERIMENT} spends its time\n\n"
        f"{facts['name']} at {facts.get('image_size', '?')} pixels, micro-batches of {batch_length(first.last)} x "
        f"{first.shard.accumulation_steps}, {first.train.precision}, {first.train.num_workers} workers, probes every "
        f"{first.train.probe_every} steps (oscillation windows left out); {rounds} rounds of {steps} steps in turns; "
        f"{clock}. Median (quartiles) over rounds.\n\n{table(rows, steppers)}\n"
        f"{provenance(ROOT)}. "
        f"Command: `make resnet18-speed {' '.join(argv)}`\n"
    )
    (out / "resnet18-speed.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
