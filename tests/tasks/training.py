"""Short trainings and evaluations of a task, alone and through the engine, that the tests of all tasks share."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.base import Batch, Record, Shard, StepContext, Task
from tasks.engine.distributed import World
from tasks.engine.phases import Phase
from tests.engine import toys


def losses_on_one_batch(task: Task, batch: Batch, optimizer: torch.optim.Optimizer, *, steps: int = 2) -> list[float]:
    """Take steps on a repeated batch, one update each, and return the loss before each."""
    losses = []
    for _ in range(steps):
        (update,) = task.updates(task.networks, batch, StepContext())
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        losses.append(update.loss.item())
    return losses


def evaluate(task: Task, split: str = "val", *, count: int = 1) -> list[Record]:
    """Return the records of a split in evaluation mode, those of each of `count` shards in turn."""
    for network in task.networks.values():
        network.eval()
    with torch.no_grad():
        shards = [{**task.eval_batches(Shard(i, count)), **task.test_batches(Shard(i, count))} for i in range(count)]
        return [task.predict(task.networks, batch, {}) for shard in shards for batch in shard[split]]


def fit(
    task: Task,
    folder: Path,
    *,
    phases: Sequence[Phase],
    world: World = toys.CPU,
    stop_at: int | None = None,
    **options: Any,
) -> dict[str, Tensor]:
    """Train two epochs through the engine, killed at a step if asked, and return the weights."""
    if stop_at is not None:
        kill, updates = toys.kill_at(stop_at), task.updates

        def killed(nets: Any, batch: Any, context: Any) -> Iterator[Any]:
            kill()
            yield from updates(nets, batch, context)

        task.updates = killed
    trainer = toys.trainer(task, folder, world=world, phases=phases, epochs=2, **options)
    try:
        trainer.fit()
    finally:
        toys.close(trainer)
    return toys.weights(trainer)


def metrics(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_pair(module: str, *arguments: Path, seconds: float) -> None:
    """Run `python -m module arguments` as a pair of processes that train together, and expect that both succeed."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    code = f"import sys; from tasks.engine.processes import spawn; sys.exit(spawn({words!r}, 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
