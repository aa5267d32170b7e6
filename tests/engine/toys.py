"""Small tasks that take every shape the engine must carry, on seeded vectors. D features, K classes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import adamp
from tasks.base import LoopState, Shard, StepContext, Task, Update
from tasks.data.loader import batch_loader
from tasks.engine.config import Train
from tasks.engine.dead_workers import DEATHS
from tasks.engine.distributed import World
from tasks.engine.phases import Phase
from tasks.engine.run_record import RunRecord
from tasks.engine.schedules import cosine
from tasks.engine.trainer import Trainer

EXAMPLES, D, K = 48, 8, 3
CPU = World(0, 1, torch.device("cpu"))
OPEN: list[RunRecord] = []  # closed after each test by tests/engine/conftest.py


class Toy(Task):
    """Classify seeded vectors; with dropout, so that the generators matter, and batch norm, so that buffers do."""

    monitor = "val/top1"

    def __init__(
        self, *, batch_size: int = 12, seed: int = 0, norm: bool = True, dropout: float = 0.2, examples: int = EXAMPLES
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(examples, D, generator=generator)
        self.y = (self.x @ torch.randn(D, K, generator=generator)).argmax(1)
        self.batch_size, self.seed = batch_size, seed
        torch.manual_seed(seed)
        hidden = [nn.Linear(D, 16, bias=False), nn.BatchNorm1d(16) if norm else nn.Identity(), nn.ReLU()]
        self.networks: Mapping[str, nn.Module] = {
            "model": nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(16, K))
        }
        self.before_step: Callable[[], None] = lambda: None

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        count = len(self.x)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * self.seed + epoch))
        steps = [order[i : i + self.batch_size] for i in range(0, count - self.batch_size + 1, self.batch_size)]
        mine = [step.chunk(shard.count)[shard.index] for step in steps[start:]]
        return [(self.x[part], self.y[part]) for step in mine for part in step.chunk(shard.accumulation_steps)]

    def eval_batches(self, shard: Shard) -> Mapping[str, list[Any]]:
        batches = list(zip(self.x.split(10), self.y.split(10), strict=True))
        return {"val": batches[shard.index :: shard.count]}

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        self.before_step()
        x, y = batch
        yield Update(F.cross_entropy(nets["model"](x), y))

    def predict(self, nets: Mapping[str, nn.Module], batch: Any, state: LoopState) -> Any:
        x, y = batch
        logits = nets[next(iter(nets))](x)
        return (logits.argmax(1) == y).tolist(), F.cross_entropy(logits, y, reduction="none").tolist()

    def score(self, split: str, records: Sequence[Any]) -> dict[str, float]:
        hits = [hit for record in records for hit in record[0]]
        losses = [loss for record in records for loss in record[1]]
        return {f"{split}/top1": 100 * sum(hits) / len(hits), f"{split}/loss": sum(losses) / len(losses)}

    def describe(self) -> dict[str, Any]:
        return {"name": "toy", "train_examples": len(self.x), "val_examples": len(self.x)}


class Turns(Toy):
    """Two networks by turns, two steps of one for each of the other, as ReBias asks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.networks = {"target": self.networks["model"], "biased": nn.Linear(D, K)}

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        self.before_step()
        x, y = batch
        for _ in range(2):
            yield Update(F.cross_entropy(nets["biased"](x), y), network="biased")
        with torch.no_grad():
            biased = nets["biased"](x)
        loss = F.cross_entropy(nets["target"](x), y)
        yield Update(loss, network="target", log={"train/agreement": (biased.argmax(1) == y).float().mean()})


class Pairs(Toy):
    """A loss of all pairs in the batch, which is no mean over examples: outputs of equal classes attract."""

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        self.before_step()
        x, y = batch
        outputs, labels = context.gather(nets["model"](x)), context.gather(y)
        same = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
        yield Update(F.binary_cross_entropy_with_logits(outputs @ outputs.T, same))


class Memory(Toy):
    """Carries a state from batch to batch, as a language model's memory."""

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        self.before_step()
        x, y = batch
        memory: Tensor = context.state.get("memory", torch.zeros(D))
        context.state["memory"] = 0.9 * memory + x.mean(0)
        yield Update(F.cross_entropy(nets["model"](x + memory), y))


class Tested(Toy):
    """Monitors a loss and keeps a split for the end; the rate of about half of the steps is halved."""

    monitor = "-val/loss"
    testing = False

    def test_batches(self, shard: Shard) -> Mapping[str, Any]:
        def batches() -> Iterator[Any]:
            self.testing = True
            yield from self.eval_batches(shard)["val"]

        return {"test": batches()}

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        for update in super().updates(nets, batch, context):
            update.lr_scale = 0.5 if float(batch[0].sum()) > 0 else 1.0
            yield update


class Attack(Toy):
    """Perturbs its input through the gradient, as adversarial training does, with a random start, in eval mode."""

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        self.before_step()
        x, y = batch
        net = nets["model"]
        net.eval()
        moved = (x + 0.1 * torch.randn_like(x)).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(net(moved), y), moved)
        net.train()
        yield Update(F.cross_entropy(net(x + 0.1 * grad.sign()), y))


class Loaded(Sequence[Any]):
    """Batches loaded by processes of their own, or here; something happens where one of them is loaded."""

    def __init__(self, batches: Sequence[Any], happens: Callable[[int], None], *, num_workers: int = 1) -> None:
        self.batches, self.happens, self.num_workers = batches, happens, num_workers

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: Any) -> Any:
        self.happens(number)
        return self.batches[number]

    def __iter__(self) -> Iterator[Any]:
        return iter(batch_loader(self, range(len(self)), self.num_workers))  # type: ignore[arg-type]


class Slow(Toy):
    """Its third batch, or first picture of an evaluation, does not come; in a worker or, with none, in this process."""

    def __init__(self, *, evaluating: bool = False, num_workers: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.evaluating, self.num_workers = evaluating, num_workers

    def _wait(self, number: int) -> None:
        if number == (0 if self.evaluating else 2):
            while True:
                time.sleep(60)

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        batches = super().train_batches(epoch, shard, start)
        return batches if self.evaluating else Loaded(batches, self._wait, num_workers=self.num_workers)

    def eval_batches(self, shard: Shard) -> Mapping[str, Any]:
        batches = super().eval_batches(shard)["val"]
        return {"val": Loaded(batches, self._wait, num_workers=self.num_workers) if self.evaluating else batches}


def sgdp(groups: Any) -> torch.optim.Optimizer:
    return adamp.SGDP(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)


def adam(groups: Any) -> torch.optim.Optimizer:
    return adamp.AdamP(groups, lr=1e-2, weight_decay=1e-2)


def one_phase(epochs: int = 3) -> list[Phase]:
    return [Phase(epochs, sgdp, {"lr": cosine})]


def two_phases() -> list[Phase]:
    """A warm-up of the head, then the Adam family, then SGDP from the best weights."""
    return [
        Phase(1, adam, trainable=r"\.4\."),
        Phase(1, None, {"lr": cosine}),
        Phase(1, sgdp, {"lr": cosine}, start_from="best"),
    ]


def options(**values: Any) -> Train:
    return Train(**{"epochs": 3, "batch_size": 12, "log_every": 3, "probe_every": 2, "oscillation_window": 2,
                    "checkpoint_minutes": 1e9, "progress": False, "device": "cpu"} | values)  # fmt: skip


def trainer(
    task: Task, folder: Path, *, phases: list[Phase] | None = None, world: World = CPU, rules: Any = (), **values: Any
) -> Trainer:
    record = None
    if world.is_main:
        record = RunRecord(folder, name="toy", config={"experiment_name": "toys"}, processes=world.size)
        OPEN.append(record)
    return Trainer(task, phases or one_phase(), options(**values), rules, folder, world, name="toys/toy", record=record)


def weights(made: Trainer) -> dict[str, Tensor]:
    nets = {**made.state.modules, **{f"{role}_ema": net for role, net in made.state.averages.items()}}
    return {f"{role}.{name}": value.clone() for role, net in nets.items() for name, value in net.state_dict().items()}


def close(made: Trainer) -> None:
    if made.record is not None:
        made.record.close()


def kill_at(step: int, number: int = signal.SIGTERM) -> Callable[[], None]:
    """Return a hook that sends this process a signal at the n-th batch it sees."""
    seen = 0

    def hook() -> None:
        nonlocal seen
        seen += 1
        if seen == step:
            os.kill(os.getpid(), number)

    return hook


def kill_while_waiting(made: Trainer, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal as soon as the trainer waits for a batch after a step."""

    def send() -> None:
        while not (made.state.progress.step == step and DEATHS.reading):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def kill_while_reading(number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it waits for a batch, longer than for most."""

    def send() -> None:
        waited = 0
        while waited < 50:
            time.sleep(0.01)
            waited = waited + 1 if DEATHS.reading else 0
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
