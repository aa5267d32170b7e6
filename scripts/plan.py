"""Steps, FLOPs, memory and GPU hours of experiment=NAME or sweep=NAME, before it is started.

make plan experiment=NAME | sweep=NAME [gpu=here|v100|a100] [rate=IMAGES_A_SECOND] [gpus=1] [price=DOLLARS]
[calibration=3] [examples=2] [out=results/reports] [any.key=value of the experiment]

The configuration is composed as for a run (scale=full unless said otherwise), `examples` examples go through one real
training step on the CPU, and what is counted is multiplied up: steps, parameters and bytes of weights exactly, FLOPs of
matrix products and convolutions but not of LSTM layers. Hours are a prediction:
  gpu=here     from `calibration` timed steps on this machine's device, after one that warms up
  gpu=v100, a100     from the published training speed of ResNet50 on it
  rate=N       from ResNet50 training at N images a second and the run's precision, on any other device
price=N is what you pay for a GPU hour; the plan then ends in dollars.
ImageNet without data_root is replaced by noise of its sizes. Every assumption is printed with the result.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence import sweeps as grids
from evidence.runs.run import ReadError, number
from launch.budget import GPUS, Line, assumptions, lines_of, precision_on, stated_hours, table
from scripts.options import command, results, split, whole

OPTIONS = {
    "experiment": "", "sweep": "", "scale": "full", "gpu": "here", "rate": "", "gpus": "1", "price": "",
    "calibration": "3", "examples": "2", "out": results("reports"),
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Count, predict, write plan-NAME.md and return 0."""
    options, others = split(argv, OPTIONS)
    if bool(options["experiment"]) == bool(options["sweep"]):
        raise ReadError("give experiment=NAME or sweep=NAME, one of the two")
    if options["sweep"] and not grids.read(options["sweep"]):
        raise ReadError(f"sweep={options['sweep']} is not known; see configs/sweep")
    if options["gpu"] not in ("here", *GPUS) and not options["rate"]:
        raise ReadError(
            f"gpu={options['gpu']} is not known; choose here, {', '.join(GPUS)}, or give rate=IMAGES_A_SECOND"
        )
    gpus, calibration, examples = whole(options, "gpus", "calibration", "examples")
    if options["rate"]:
        whole(options, "rate")
    price = number(options["price"] or "0")
    if price is None or not 0 <= price < math.inf:
        raise ReadError(f"price is {options['price']!r}; it must be dollars of a GPU hour, e.g. price=2.5")
    from launch import compose, costs
    from tasks.engine.provenance import hardware

    lines, here = [], hardware(1)["machine"]
    try:
        for label, (words, runs) in lines_of(options, others).items():
            told = [*words, f"scale={options['scale']}", f"gpus={gpus}", "train.num_workers=0"]
            planned = compose.composed(costs.with_noise(told))
            cost = costs.count(planned, examples=examples, gpus=gpus)
            if options["rate"]:
                hours = stated_hours(cost, float(options["rate"]), None)
            elif options["gpu"] == "here":
                hours = costs.calibrated_hours(compose.composed(costs.with_noise(told)), cost, steps=calibration)
            else:
                gpu = GPUS[options["gpu"]]
                hours = stated_hours(cost, precision_on(gpu, cost), gpu.bandwidth)
            lines.append(Line(label, runs, cost, hours))
            print(f"counted {label}", file=sys.stderr, flush=True)
    except (ValueError, *compose.CONFIG_ERRORS) as error:
        raise ReadError(compose.explain(error)) from error
    name = options["sweep"] or options["experiment"]
    text = f"# Plan of {name}, scale {options['scale']}, {options['gpu'] if not options['rate'] else 'stated rate'}\n\n"
    said = "".join(f"- {line}\n" for line in assumptions(options, lines, here))
    text += f"{table(lines, price=price)}\nAssumptions\n\n{said}"
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"plan-{name}.md").write_text(text)
    print(text + f"\nwritten to {out / f'plan-{name}.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
