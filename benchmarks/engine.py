"""What the engine and its probes cost beside a bare loop of the same network and batch.

`make benchmark` or `python benchmarks/engine.py [rounds=15] [steps=20] [threads=1] [width=0.25] [size=64] [batch=64]
[probe_every=20] [oscillation_window=0] [out=results/benchmarks]`.
Three loops train the same ResNet18 on the same batches in memory, in turns within one process, so that a drift of the
machine meets all three: a bare loop (forward, backward, step, schedule, mean loss), the engine without probes, and the
engine with probes at their default cadence. The ratio of each round is taken first, then its median over rounds.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from tasks.base import Shard, Task, Update  # noqa: E402
from tasks.engine.config import Train  # noqa: E402
from tasks.engine.distributed import World  # noqa: E402
from tasks.engine.loop import Trainer  # noqa: E402
from tasks.engine.phases import Phase  # noqa: E402
from tasks.engine.records import RunRecord, git_state, hardware, now, versions  # noqa: E402
from tasks.engine.schedules import cosine  # noqa: E402
from tasks.networks import resnet18  # noqa: E402

DEFAULTS = {
    "rounds": 15, "steps": 20, "threads": 1, "width": 0.25, "size": 64, "batch": 64, "probe_every": Train.probe_every,
    "oscillation_window": 0, "out": "results/benchmarks",
}  # fmt: skip


class InMemory(Task):
    """The same few batches for ever, so that only the loops differ."""

    monitor = "val/none"

    def __init__(self, batches: Sequence[Any], *, steps: int, width: float) -> None:
        self.batches, self.steps = batches, steps
        torch.manual_seed(0)
        self.networks = {"model": resnet18(10, width=width)}

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        return [self.batches[i % len(self.batches)] for i in range(start, self.steps)]

    def eval_batches(self, shard: Shard) -> Mapping[str, list[Any]]:
        return {}

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, carry: dict[str, Any]) -> Iterator[Update]:
        images, labels = batch
        yield Update(F.cross_entropy(nets["model"](images), labels))

    def predict(self, nets: Mapping[str, nn.Module], batch: Any, carry: dict[str, Any]) -> None: ...

    def score(self, split: str, records: Sequence[Any]) -> dict[str, float]:
        return {}


def sgd(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True)


def bare_loop(task: InMemory, rounds: int) -> Callable[[], None]:
    """The loop anybody would write, with the engine's schedule and a mean loss, its epochs one call each."""
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
    """The engine's own loop, one epoch a call: what `Trainer.fit` runs, log lines and file writes included."""
    train = Train(
        epochs=rounds, batch_size=len(task.batches[0][1]), progress=False, device="cpu", **probing,
        checkpoint_minutes=1e9, eval_epochs=10**9, log_every=50,
    )  # fmt: skip
    record = RunRecord(folder, name="benchmark", config={"experiment_name": "benchmark"})
    named = dict(task.networks["model"].named_parameters())
    probed = {"model": [name for name, p in named.items() if p.ndim == 4]}
    made = Trainer(
        task, [Phase(rounds + 2, sgd, {"lr": cosine})], train, (), folder, World(0, 1, torch.device("cpu")),
        record=record, probed=probed,
    )  # fmt: skip
    epochs = made.epochs()
    return lambda: next(epochs) and None


def measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """Run the three loops in turns and return the ratios."""
    torch.set_num_threads(options["threads"])
    generator = torch.Generator().manual_seed(0)
    shape = (options["batch"], 3, options["size"], options["size"])
    batches = [
        (torch.randn(shape, generator=generator), torch.randint(10, (options["batch"],), generator=generator))
        for _ in range(4)
    ]
    rounds, steps, width = options["rounds"], options["steps"], options["width"]

    def task() -> InMemory:
        return InMemory(batches, steps=steps, width=width)

    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "bare": bare_loop(task(), rounds + 1),
            "engine": engine_loop(task(), rounds, Path(folder) / "engine", probe_every=0),
            "probes": engine_loop(
                task(),
                rounds,
                Path(folder) / "probes",
                probe_every=options["probe_every"],
                oscillation_window=options["oscillation_window"],
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for number in range(rounds + 1):
            # Turn the order round by round: whoever comes first would always find the caches of another.
            names = list(loops)[number % 3 :] + list(loops)[: number % 3]
            for name in names:
                begun = time.process_time()
                loops[name]()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - begun)
            print(f"\rround {number}/{rounds}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    def ratio(a: str, b: str) -> dict[str, float]:
        each = sorted(x / y for x, y in zip(seconds[a], seconds[b], strict=True))
        return {"median": statistics.median(each), "low": each[len(each) // 4], "high": each[-1 - len(each) // 4]}

    return {
        "engine_to_bare": ratio("engine", "bare"), "probes_to_engine": ratio("probes", "engine"),
        "bare_ms_per_step": 1000 * statistics.median(seconds["bare"]) / steps,
    }  # fmt: skip


def main(words: Sequence[str]) -> int:
    """Measure, print a table and write it with its provenance."""
    options: dict[str, Any] = dict(DEFAULTS)
    for word in words:
        key, _, value = word.partition("=")
        if key not in DEFAULTS or not value:
            print(f"error: {word} is no option; the options are {', '.join(DEFAULTS)}, as key=value", file=sys.stderr)
            return 2
        try:
            options[key] = type(DEFAULTS[key])(value)
        except ValueError:
            print(f"error: {key}={value} is not a {type(DEFAULTS[key]).__name__}", file=sys.stderr)
            return 2
    found = measure(options)
    rows = [
        ("engine / bare loop", found["engine_to_bare"], "under 1.02"),
        (f"engine with probes every {options['probe_every']} steps / without", found["probes_to_engine"], "under 1.01"),
    ]
    text = (
        f"# Engine overhead\n\nResNet18 at width {options['width']:g}, {options['batch']} images of "
        f"{options['size']} pixels, {options['threads']} thread(s), probes every {options['probe_every']} steps, "
        f"oscillation window {options['oscillation_window']}; {options['rounds']} rounds of {options['steps']} steps, "
        f"interleaved; CPU time. "
        f"A bare step takes {found['bare_ms_per_step']:.1f} ms.\n\n"
        "| ratio | median | quartiles | target |\n| --- | --- | --- | --- |\n"
        + "".join(
            f"| {name} | {r['median']:.4f} | {r['low']:.4f} to {r['high']:.4f} | {aim} |\n" for name, r, aim in rows
        )
        + f"\n{now()}, commit {git_state(ROOT)['commit']}, {hardware(1)['machine']}, torch {versions()['torch']}. "
        f"Command: `make benchmark {' '.join(words)}`\n"
    )
    print(text)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "engine.md").write_text(text)
    (out / "engine.json").write_text(
        json.dumps({**found, "options": options, "hardware": hardware(1), "git": git_state(ROOT)}, indent=2) + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
