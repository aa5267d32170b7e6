"""Where a training step of ResNet18 spends its time, for each optimizer: data, forward, backward, optimizer, probes.

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
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from evidence.runs.run import ReadError  # noqa: E402
from scripts.options import command, parse, results  # noqa: E402

EXPERIMENT = "imagenet-resnet18"
OPTIONS = {
    "optimizers": "sgd,sgdp,adam,adamw,adamp", "scale": "", "data_root": "", "rounds": "9", "steps": "2",
    "device": "auto", "out": results("benchmarks"),
}  # fmt: skip
COLUMNS = ("data", "forward", "backward", "optimizer", "probes")

Row = dict[str, Any]  # name of the optimizer, round, seconds of each column, and their sum "step"


def split(argv: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return this script's own options and the words that are for the experiment."""
    own = [word for word in argv if word.partition("=")[0] in known]
    others = [word for word in argv if word not in own]
    for word in others:
        if "=" not in word:
            raise ReadError(f"unknown argument {word!r}; known: {', '.join(f'{k}=...' for k in known)}, and options "
                            "of the experiment, such as train.batch_size=64")  # fmt: skip
    return parse(own, options=known), others


def whole(options: Mapping[str, str], *keys: str) -> list[int]:
    """Return options that must be whole numbers, at least 1."""
    for key in keys:
        if not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(f"{key} is {options[key]!r}; it must be a whole number, at least 1")
    return [int(options[key]) for key in keys]


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


def measure(steppers: Mapping[str, Any], *, rounds: int, steps: int) -> list[Row]:
    """Let the optimizers take turns, a plain block of steps and a probed one each; the first round warms up."""
    rows: list[Row] = []
    for number in range(rounds + 1):
        names = list(steppers)[number % len(steppers) :] + list(steppers)[: number % len(steppers)]
        for name in names:
            stepper = steppers[name]
            every = stepper.train.probe_every
            plain = [stepper.step(parts=stepper.shard.accumulation_steps) for _ in range(steps)]
            mean = {part: statistics.fmean(step[part] for step in plain) for part in COLUMNS[:-1]}
            probes = 0.0
            if every and stepper.probes:
                probed = [stepper.step(parts=stepper.shard.accumulation_steps, probed=True) for _ in range(steps)]
                more = statistics.fmean(step["optimizer"] for step in probed) - mean["optimizer"]
                probes = max(more, 0.0) / every
            if number:
                seconds = {**mean, "probes": probes}
                rows.append({"name": name, "round": number, **seconds, "step": sum(seconds.values())})
        print(f"\rround {number}/{rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def spread(values: Sequence[float], digits: int) -> str:
    """Return "median (quartile to quartile)"."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: Sequence[Row], names: Iterable[str]) -> str:
    """Return the Markdown table: milliseconds of a step, and each part's share of it in percent."""
    text = "| optimizer | ms a step | " + " | ".join(f"{part} %" for part in COLUMNS) + " |\n"
    text += "| --- | --- |" + " --- |" * len(COLUMNS) + "\n"
    for name in names:
        own = [row for row in rows if row["name"] == name]
        shares = [spread([100 * row[part] / row["step"] for row in own], 2) for part in COLUMNS]
        text += f"| {name} | {spread([1000 * row['step'] for row in own], 1)} | {' | '.join(shares)} |\n"
    return text


def main(argv: Sequence[str]) -> int:
    """Measure, write resnet18-speed.csv and .md, and return 0."""
    options, others = split(argv, OPTIONS)
    rounds, steps = whole(options, "rounds", "steps")
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise ReadError(f"device is {options['device']!r}; choose auto, cpu or cuda")
    import torch

    from benchmarks.stepping import batch_length, prepare
    from scripts import train
    from tasks.engine.provenance import provenance

    if options["device"] == "cuda" and not torch.cuda.is_available():
        raise ReadError("device=cuda: torch sees no CUDA device here")
    cuda = options["device"] != "cpu" and torch.cuda.is_available()
    words = overrides(options, others, cuda=cuda)
    steppers = {}
    try:
        for name in options["optimizers"].split(","):
            planned = train.composed([*words, f"opt={name}"])
            if planned.train.threads and not cuda:
                torch.set_num_threads(planned.train.threads)
            steppers[name] = prepare(planned, device=torch.device("cuda" if cuda else "cpu"))
        rows = measure(steppers, rounds=rounds, steps=steps)
    except (ValueError, train.HydraException, train.OmegaConfBaseException) as error:
        raise ReadError(train.explain(error)) from error
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
