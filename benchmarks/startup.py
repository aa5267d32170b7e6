"""From the word to the picture: what a command costs beside its work, this build and another in turns.

`make benchmark-startup` or `python benchmarks/startup.py [rounds=3] [before=FOLDER] [out=results/benchmarks]`.
Every command runs as a process of its own, round by round, in this checkout and, where `before` names a folder, in
another checkout; a bare `import torch` that builds one torch.optim.SGD runs beside them. CPU seconds of a process and
its children, medians over rounds: other work on the machine weighs on them less than on the clock.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.processes import cpu_seconds
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse_as
from tasks.engine.provenance import provenance

DEFAULTS = {"rounds": 3, "before": "", "out": "results/benchmarks"}
BARE = "import torch; torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)"
RUN = ["experiment=imagenet-resnet18", "opt=sgdp", "train.max_steps=1"]
# name -> words of the training command, its exit code, whether its run is there already
COMMANDS: dict[str, tuple[list[str], int, bool]] = {
    "one step": ([*RUN, "pictures=false"], 0, False),
    "one step, pictures and pages": (RUN, 0, False),
    "a finished run again": ([*RUN, "pictures=false"], 0, True),
    "--help": (["--help"], 0, False),
    "--cfg job": ([*RUN, "--cfg", "job"], 0, False),
    "a typing error in a key": ([*RUN, "train.epoch=3"], 2, False),
    "a typing error in a name": (["experiment=imagenet-resnet18", "opt=sgpd"], 2, False),
    "a wrong value": ([*RUN, "opt.lr=-1"], 2, False),
}


def trained(name: str, *, checkout: Path) -> float:
    """Return the CPU seconds of one of the commands, its results in a folder that is then removed."""
    words, code, again = COMMANDS[name]
    script = str(checkout / "scripts" / "train.py")
    with tempfile.TemporaryDirectory() as folder:
        places = [] if "--help" in words else [f"paths.runs={folder}/runs", f"paths.reports={folder}/reports"]
        if again:
            cpu_seconds([script, *words, *places], checkout=checkout, code=code)
        return cpu_seconds([script, *words, *places], checkout=checkout, code=code)


def measure(rounds: int, builds: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return build -> command -> median CPU seconds, with those of a bare import of torch."""
    seconds: dict[str, dict[str, list[float]]] = {build: {} for build in builds}
    for _ in range(rounds):
        for build, checkout in builds.items():
            seconds[build].setdefault("import torch", []).append(cpu_seconds(["-c", BARE], checkout=checkout, code=0))
        for name in COMMANDS:
            for build, checkout in builds.items():
                seconds[build].setdefault(name, []).append(trained(name, checkout=checkout))
    return {
        build: {name: statistics.median(values) for name, values in found.items()} for build, found in seconds.items()
    }


def report(found: dict[str, dict[str, float]], words: Sequence[str], rounds: int) -> str:
    """Return the page."""
    this, other = found["this build"], found.get("before")
    lines = [
        "# From the word to the picture",
        "",
        f"CPU seconds of a process and its children, medians of {rounds} interleaved rounds. `import torch` "
        "builds one torch.optim.SGD and no more.",
        "",
        "| command | CPU seconds | above `import torch` |" + (" before | ratio |" if other else ""),
        "| --- | ---: | ---: |" + (" ---: | ---: |" if other else ""),
    ]
    for name, value in this.items():
        above = f"{value - this['import torch']:+.2f}" if name.startswith("one step") else ""
        line = f"| {name} | {value:.2f} | {above} |"
        if other:
            line += f" {other[name]:.2f} | {value / other[name]:.2f} |"
        lines.append(line)
    pictures = this["one step, pictures and pages"] - this["one step"]
    lines += ["", f"Pictures and pages of a run of one step: {pictures:.2f} CPU seconds."]
    lines += ["", f"{provenance(ROOT)}. Command: `make benchmark-startup {pages.shown(words)}`", ""]
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Measure, print a table and write it with its provenance."""
    options: dict[str, Any] = parse_as(words, DEFAULTS)
    builds = {"this build": ROOT}
    if options["before"]:
        builds["before"] = Path(options["before"]).resolve()
        if not (builds["before"] / "scripts" / "train.py").is_file():
            raise ReadError(f"before={options['before']} is no checkout of this repository")
    found = measure(options["rounds"], builds)
    shown = ["before=FOLDER" if word.startswith("before=") else word for word in words]
    facts = {key: value for key, value in options.items() if key != "before"}
    pages.write(report(found, shown, options["rounds"]), {"seconds": found}, facts, stem="startup")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
