"""The engine and its probes beside a bare loop of the same network and batch.

`make benchmark` or `python benchmarks/engine.py [rounds=15] [steps=20] [threads=1] [width=0.25] [size=64] [batch=64]
[probe_every=20] [oscillation_window=0] [out=results/benchmarks]`.
Two networks alternate within one process, a few steps at a time, so that drift of the machine affects all alike: one
under the engine without probes, one under the engine with probes, and each also under a plain loop (forward, backward,
step, schedule, mean loss). Memory placement alone changes the time of a step by some percent; the plain loop on the
same network cancels it. The ratio is taken per round, then its median over rounds.

Rounds on a noisy machine differ by several percent, more than the effect. So both costs are also measured in isolation:
the engine's on a network of one small layer, the probes' on optimizer steps of the real network without forward and
backward pass; both as a fraction of the real network's plain step.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from adamp import NormProbe
from benchmarks import pages
from launch.checkout import ROOT
from scripts.options import command, parse_as
from tasks.base import LoopState, Shard, StepContext, Task, Update
from tasks.engine.config import Train
from tasks.engine.distributed import World
from tasks.engine.phases import Phase
from tasks.engine.provenance import provenance
from tasks.engine.run_record import RunRecord
from tasks.engine.schedules import cosine
from tasks.engine.trainer import Trainer
from tasks.networks import resnet18

DEFAULTS = {
    "rounds": 15, "steps": 20, "threads": 1, "width": 0.25, "size": 64, "batch": 64, "probe_every": Train.probe_every,
    "oscillation_window": 0, "out": "results/benchmarks",
}  # fmt: skip


LOG_EVERY = 50  # steps between two lines of metrics, the engine's default


class InMemory(Task):
    """Repeats a few batches from memory, so that only the loops differ."""

    monitor = "val/none"

    def __init__(self, batches: Sequence[Any], network: nn.Module, *, steps: int) -> None:
        self.batches, self.steps = batches, steps
        self.networks = {"model": network}

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        return [self.batches[i % len(self.batches)] for i in range(start, self.steps)]

    def eval_batches(self, shard: Shard) -> Mapping[str, list[Any]]:
        return {}

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        images, labels = batch
        yield Update(F.cross_entropy(nets["model"](images), labels))

    def predict(self, nets: Mapping[str, nn.Module], batch: Any, state: LoopState) -> None: ...

    def score(self, split: str, records: Sequence[Any]) -> dict[str, float]:
        return {}


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)


def plain_loop(task: InMemory, rounds: int) -> Callable[[], None]:
    """Return one epoch of a plain loop with the engine's schedule and a mean loss, as a call."""
    net = task.networks["model"].train()
    optimizer, total, done = sgd(net.parameters()), rounds * task.steps, 0

    def epoch() -> None:
        nonlocal done
        mean = torch.zeros(())
        for images, labels in task.train_batches(0, Shard()):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * cosine(done, total)
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            mean += loss.detach()
            done += 1

    return epoch


def engine_loop(task: InMemory, rounds: int, folder: Path, **probing: int) -> Callable[[], None]:
    """Return one epoch of `Trainer.fit` as a call, log lines and file writes included."""
    train = Train(
        epochs=rounds, batch_size=len(task.batches[0][1]), progress=False, device="cpu", **probing,
        checkpoint_minutes=1e9, eval_epochs=10**9, log_every=LOG_EVERY,
    )  # fmt: skip
    record = RunRecord(folder, name="benchmark", config={"experiment_name": "benchmark"})
    named = dict(task.networks["model"].named_parameters())
    probed = {"model": [name for name, p in named.items() if p.ndim > 1]}
    made = Trainer(
        task, [Phase(rounds + 2, sgd, {"lr": cosine})], train, (), folder, World(0, 1, torch.device("cpu")),
        record=record, probed=probed,
    )  # fmt: skip
    epochs = made.epochs()
    return lambda: next(epochs) and None


def measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """Run the loops in turns and return the ratios."""
    torch.set_num_threads(options["threads"])
    generator = torch.Generator().manual_seed(0)
    shape = (options["batch"], 3, options["size"], options["size"])
    batches = [
        (torch.randn(shape, generator=generator), torch.randint(10, (options["batch"],), generator=generator))
        for _ in range(4)
    ]
    rounds, steps, width = options["rounds"], options["steps"], options["width"]

    def task() -> InMemory:
        torch.manual_seed(0)
        return InMemory(batches, resnet18(10, width=width), steps=steps)

    with tempfile.TemporaryDirectory() as folder:
        loops: dict[str, Callable[[], None]] = {}
        probing = {"probe_every": options["probe_every"], "oscillation_window": options["oscillation_window"]}
        for name, cadence in (("engine", {"probe_every": 0}), ("probes", probing)):
            trained = task()
            loops[name] = engine_loop(trained, rounds, Path(folder) / name, **cadence)
            loops[f"bare of {name}"] = plain_loop(trained, rounds + 1)
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(rounds + 1):
            # Rotate the order: the first loop of a round finds the caches of another
            names = list(loops)[number % 4 :] + list(loops)[: number % 4]
            for name in names:
                begun = time.process_time()
                loops[name]()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - begun)
            print(f"\rround {number}/{rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    engine = [x / y for x, y in zip(seconds["engine"], seconds["bare of engine"], strict=True)]
    probes = [x / y for x, y in zip(seconds["probes"], seconds["bare of probes"], strict=True)]
    bare = statistics.median(seconds["bare of engine"])
    return {
        "engine_to_bare": spread(engine), "probed_to_bare": spread(probes), "bare_ms_per_step": 1000 * bare / steps,
        "engine_ms_per_step": engine_alone(), "probes_ms_per_step": probes_alone(width, probing),
    }  # fmt: skip


def engine_alone(*, rounds: int = 21, steps: int = 200) -> float:
    """Return the milliseconds per step that the engine adds to a plain loop, measured on one small layer."""
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 12, generator=generator), torch.randint(10, (8,), generator=generator))]
    trained = InMemory(batches, nn.Sequential(nn.Linear(12, 10)), steps=steps)
    added = []
    with tempfile.TemporaryDirectory() as folder:
        loops = (engine_loop(trained, rounds, Path(folder) / "run", probe_every=0), plain_loop(trained, rounds + 1))
        for _ in range(rounds):
            times = []
            for loop in loops:
                begun = time.process_time()
                loop()
                times.append(time.process_time() - begun)
            added.append(times[0] - times[1])
    return 1000 * statistics.median(added) / steps


def probes_alone(width: float, probing: Mapping[str, int], *, rounds: int = 21, steps: int = 100) -> float:
    """Return the milliseconds per step that the probes add to optimizer steps of the real network, reads included."""
    network = resnet18(10, width=width)
    for parameter in network.parameters():
        parameter.grad = 0.01 * torch.randn_like(parameter)
    plain, probed = sgd(network.parameters()), sgd(network.parameters())
    named = [(name, p) for name, p in network.named_parameters() if p.ndim > 1]
    probe = NormProbe(named, every=probing["probe_every"], oscillation_window=probing["oscillation_window"])
    probe.attach(probed)
    added = []
    for _ in range(rounds):
        times = []
        for optimizer in (probed, plain):
            begun = time.process_time()
            for step in range(1, steps + 1):
                optimizer.step()
                if optimizer is probed and step % LOG_EVERY == 0:
                    probe.read(layers=True)
            times.append(time.process_time() - begun)
        added.append(times[0] - times[1])
    return 1000 * statistics.median(added) / steps


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}


def main(words: Sequence[str]) -> int:
    """Measure, print a table and write it with its provenance."""
    options = parse_as(words, DEFAULTS)
    result = measure(options)
    rows = [
        ("engine / bare loop", result["engine_to_bare"]),
        (f"engine with probes every {options['probe_every']} steps / bare loop", result["probed_to_bare"]),
    ]
    step = result["bare_ms_per_step"]
    alone = [
        ("engine", result["engine_ms_per_step"], "under 2 %"),
        (f"probes every {options['probe_every']} steps", result["probes_ms_per_step"], "under 1 %"),
    ]
    text = (
        f"# Engine overhead\n\nResNet18 at width {options['width']:g}, {options['batch']} images of "
        f"{options['size']} pixels, {options['threads']} thread(s), probes every {options['probe_every']} steps, "
        f"oscillation window {options['oscillation_window']}; {options['rounds']} rounds of {options['steps']} steps, "
        f"interleaved; CPU time. "
        f"A bare step takes {result['bare_ms_per_step']:.1f} ms.\n\n"
        "| ratio | median | quartiles |\n| --- | --- | --- |\n"
        + "".join(f"| {name} | {r['median']:.4f} | {r['low']:.4f} to {r['high']:.4f} |\n" for name, r in rows)
        + "\n| measured alone | ms a step | of a bare step | target |\n| --- | --- | --- | --- |\n"
        + "".join(f"| {name} | {ms:.3f} | {100 * ms / step:.2f} % | {aim} |\n" for name, ms, aim in alone)
        + f"\n{provenance(ROOT)}. Command: `make benchmark {pages.shown(words)}`\n"
    )
    pages.write(text, result, options, stem="engine")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
