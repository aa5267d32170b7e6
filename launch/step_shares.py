"""The parts of a training step, measured for optimizers that take turns, and their table."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = ("data", "forward", "backward", "optimizer", "probes")

Row = dict[str, Any]  # name of the optimizer, round, seconds of each column, and their sum "step"


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
