"""Memory and time of cells=1000, lines=10000000, processes=64.

usage: python tests/reliability/load.py cells=1000 lines=10000000 processes=64

Options: cells=N runs a sweep of so many runs of one step and fits the launcher's memory and time a cell; lines=N writes
a run with a metrics file of so many lines and times `scripts/status.py` and `scripts/report.py` over it; processes=N
trains the tests' toy task on so many gloo processes. A part with 0, the default, is left out. out=results/load.json.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.checkout import ROOT, TRAIN, python_path
from scripts import options

CELL = (
    "experiment=imagenet-resnet18", "data=synthetic", "data.train_examples=8", "data.val_examples=4",
    "data.num_classes=2", "data.image_size=32", "model.width=0.0625", "train.batch_size=8", "train.epochs=1",
    "train.max_steps=1", "train.threads=1", "train.probe_every=0", "train.oscillation_window=0", "train.device=cpu",
    "train.progress=false", "pictures=false",
)  # fmt: skip


def resident_mib(process: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(process: int) -> float:
    """Return the processor time that a process has used: what other work on the machine takes is not in it."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def slope(values: Sequence[float]) -> float:
    """Return the least-squares slope of values over their places."""
    count = len(values)
    middle, mean = (count - 1) / 2, sum(values) / count
    spread = sum((i - middle) ** 2 for i in range(count))
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / spread if spread else 0.0


def cells(count: int, folder: Path) -> dict[str, Any]:
    """Run a sweep in one launcher, and follow its memory and the time of each cell."""
    words = [
        sys.executable, str(TRAIN), "--multirun", *CELL, f"train.seed=range({count})",
        f"paths.runs={folder}/runs", f"paths.reports={folder}/reports", f"hydra.sweep.dir={folder}/sweeps",
    ]  # fmt: skip
    env = {**os.environ, "ADAMP_RESULTS": str(folder), "PYTHONPATH": python_path()}
    process = subprocess.Popen(words, env=env, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    memory, moments, used = [], [], []
    while process.poll() is None:
        done = sum(1 for _ in folder.glob("runs/*/*/checkpoints/last.pt"))
        while len(moments) < done:
            moments.append(time.monotonic())
            memory.append(resident_mib(process.pid))
            used.append(cpu_seconds(process.pid))
        time.sleep(0.05)
    reader.join()
    finished = sum(json.loads(p.read_text())["status"] == "finished" for p in folder.glob("runs/*/*/run.json"))
    seconds, cpu = ([b - a for a, b in itertools.pairwise(values)] for values in (moments, used))
    tail = max(1, len(memory) // 10)  # the first cells load what the others find loaded
    return {
        "cells": count, "finished": finished, "code": process.returncode, "said": "".join(said)[-300:],
        "memory_mib": [round(memory[tail], 1), round(memory[-1], 1)] if len(memory) > tail else memory,
        "memory_mib_per_cell": round(slope(memory[tail:]), 4) if len(memory) > tail + 1 else None,
        "seconds_per_cell": round(sum(seconds) / len(seconds), 3) if seconds else None,
        "cpu_seconds_per_cell": round(sum(cpu) / len(cpu), 3) if cpu else None,
        "cpu_seconds_per_cell_per_cell": round(slope(cpu[tail:]), 6) if len(cpu) > tail + 1 else None,
    }  # fmt: skip


def lines(count: int, folder: Path) -> dict[str, Any]:
    """Write a run with so many lines and time the tools that read it, each with its peak memory."""
    run = folder / "runs" / "imagenet-resnet18" / "long"
    run.mkdir(parents=True)
    record = {
        "name": "long", "experiment": "imagenet-resnet18", "status": "finished", "opt_name": "sgd", "scale": "mini",
        "seed": 0, "steps": count, "data": {"name": "none"}, "scores": {"val/top1": 1.0}, "monitor": "val/top1",
        "config": {"opt": {"lr": 0.1}, "train": {"epochs": count // 1000 + 1}},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    with (run / "metrics.jsonl").open("w") as file:
        for step in range(count):
            file.write(f'{{"step":{step},"epoch":{step / 1000},"train/loss":{1 / (step + 1)},"norm/mean":1.0}}\n')
    found: dict[str, Any] = {"lines": count, "mib": round((run / "metrics.jsonl").stat().st_size / 2**20, 1)}
    for name, words in {"status": [], "report": [f"run={run}"]}.items():
        script = ROOT / "scripts" / f"{name}.py"
        if not script.exists():
            found[name] = "no such script"
            continue
        begun = time.monotonic()
        given = words or [f"runs={folder}/runs"]
        env = {**os.environ, "ADAMP_RESULTS": str(folder), "PYTHONPATH": python_path()}
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen([sys.executable, str(script), *given], env=env, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            said.seek(0)
            found[name] = {
                "code": os.waitstatus_to_exitcode(status), "seconds": round(time.monotonic() - begun, 1),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
                "peak_mib": round(usage.ru_maxrss / 2**10), "said": said.read()[-200:],
            }  # fmt: skip
    return found


# One process loads torch and splits into all: by themselves 64 would fill 30 GB with 64 copies of its tables.
TOY = """
import os, sys
from pathlib import Path
import torch, torch._dynamo
from tasks.engine.distributed import process_group
from tasks.engine.processes import free_port
from tests.engine import toys
count, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
size = str(count)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size)

def member(rank):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    with process_group("cpu", timeout_minutes=30) as world:
        task = toys.Toy(examples=2 * world.size, batch_size=2 * world.size)
        made = toys.trainer(task, folder / "run", world=world, batch_size=task.batch_size)
        made.fit()
        ranks = world.broadcast_object(world.gather_objects(world.rank))
        toys.close(made)
    return int(ranks != list(range(count)))

children = []
for rank in range(count):
    child = os.fork()
    if not child:
        code = 1
        try:
            code = member(rank)
        finally:
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(map(abs, codes)))
"""


def processes(count: int, folder: Path) -> dict[str, Any]:
    """Start so many processes over gloo and train the tests' toy task on them: three epochs of a step, scored."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", TOY, str(count), str(folder)]
    begun, before = time.monotonic(), available_mib()
    least = before
    process = subprocess.Popen(words, env=env, cwd=folder, stderr=subprocess.PIPE, text=True)
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    while process.poll() is None:
        least = min(least, available_mib())
        time.sleep(0.2)
    reader.join()
    lines = sum(1 for _ in (folder / "run" / "metrics.jsonl").open()) if process.returncode == 0 else 0
    return {
        "processes": count, "code": process.returncode, "seconds": round(time.monotonic() - begun, 1),
        "lines_of_metrics": lines, "memory_mib_a_process": round((before - least) / count),
        "said": "".join(said)[-300:],
    }  # fmt: skip


def available_mib() -> float:
    """Return the memory that Linux could still hand out."""
    (line,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) / 1024


def quiet(part: dict[str, Any]) -> None:
    """Leave out what was said by what went well."""
    for each in [part, *(value for value in part.values() if isinstance(value, dict))]:
        if each.get("code") == 0:
            each.pop("said", None)


def main(argv: Sequence[str]) -> int:
    """Run the parts asked for, write and print what was measured, and return the exit code."""
    defaults = {"cells": "0", "lines": "0", "processes": "0", "out": options.results("load.json")}
    values = options.parse(argv, options=defaults)
    parts = {"cells": cells, "lines": lines, "processes": processes}
    if not all(values[name].isdigit() for name in parts):
        raise options.ReadError("cells, lines and processes are whole numbers")
    found: dict[str, Any] = {}
    for name, measure in parts.items():
        if count := int(values[name]):
            with tempfile.TemporaryDirectory(prefix="load-") as folder:
                found[name] = measure(count, Path(folder))
            quiet(found[name])
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    if not found:
        raise options.ReadError("nothing to do; say cells=1000, lines=10000000 or processes=64")
    from tasks.engine.provenance import provenance  # it loads torch: not before memory has been measured

    out = Path(values["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"where": provenance(ROOT), **found}, indent=1) + "\n")
    bad = [part for part in found.values() if part.get("code") or part.get("finished", 1) != part.get("cells", 1)]
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
