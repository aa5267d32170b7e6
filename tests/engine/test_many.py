"""Runs that are trained at once are the runs alone: weights, records, resuming, and the end of one of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adamp
from tasks.base import InputError, Shard, Task
from tasks.engine import dead_workers
from tasks.engine.errors import Diverged, RunFailed, Stopped
from tasks.engine.many import run_many
from tasks.engine.phases import Phase
from tasks.engine.run import run
from tasks.engine.run_spec import RunSpec
from tasks.engine.schedules import cosine
from tasks.engine.wide import WideNetwork
from tasks.networks import resnet18
from tasks.small_images import SmallImages, convnet, mlp
from tasks.small_images.data import AveragedImages
from tests.engine import toys

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.2, momentum=0.9, weight_decay=1e-3),
    "sgdp": partial(adamp.SGDP, lr=0.2, momentum=0.9, weight_decay=1e-3),
    "adamw": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "adamp": partial(adamp.AdamP, lr=0.01, weight_decay=0.1),
}


class Shapes(AveragedImages):
    """Seeded pictures of two channels whose class shifts their mean."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        labels = {
            split: torch.randint(3, (count,), generator=generator) for split, count in (("train", 96), ("val", 40))
        }
        images = {s: torch.randint(160, (len(y), 2, 8, 8), generator=generator) + 40 * y[:, None, None, None]
                  for s, y in labels.items()}  # fmt: skip
        splits = {split: (images[split].to(torch.uint8), labels[split]) for split in images}
        super().__init__("shapes", splits, factor=2, licence="none", classes=3)  # type: ignore[arg-type]
        self.splits = {s: (x.to(torch.get_default_dtype()), y) for s, (x, y) in self.splits.items()}


def small_images(model: Callable[..., nn.Module]) -> Task:
    return SmallImages(Shapes(), model, batch_size=32, seed=0, epoch_steps=7)


class OneByOne(SmallImages):
    """Leaves the losses of many networks to the engine, as a task does that has no code for them."""

    many_updates = Task.many_updates  # type: ignore[assignment]


class StepRates(toys.Tested):
    """Halves the rate of about half of the steps, and keeps no split for the end."""

    def test_batches(self, shard: Shard) -> Mapping[str, Any]:
        return {}


TASKS: dict[str, Callable[[], Task]] = {
    "multilayer perceptron": lambda: small_images(mlp),
    "convolutions": lambda: small_images(partial(convnet, width=3)),
    "losses one by one": lambda: OneByOne(Shapes(), mlp, batch_size=32, seed=0, epoch_steps=7),
    "two networks by turns": lambda: toys.Turns(dropout=0.0),
    "memory": lambda: toys.Memory(dropout=0.0),
    "rates of single steps": lambda: StepRates(dropout=0.0),
}


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def spec(folder: Path, name: str, make_task: Callable[[], Task], **values: Any) -> RunSpec:
    def task() -> Task:
        made = make_task()
        if "model" not in made.networks:
            made.monitor = "val/top1"
        return made

    train = toys.options(**{"eval_epochs": 1, "oscillation_window": 0} | values)
    config = {"experiment_name": "toys", "opt_name": name, "opt": {"name": name}, "train": {"seed": 0}}
    return RunSpec(
        experiment="toys", name=name, folder=folder / name, config=config, train=train, rules=[], make_task=task,
        make_phases=lambda: [Phase(3, OPTIMIZERS[name.split("-")[0]], {"lr": cosine})], make_loggers=lambda: [],
    )  # fmt: skip


def specs(folder: Path, make_task: Callable[[], Task], **values: Any) -> list[RunSpec]:
    return [spec(folder, name, make_task, **values) for name in OPTIMIZERS]


def weights(run_spec: RunSpec) -> dict[str, Tensor]:
    saved = torch.load(run_spec.folder / "checkpoints" / "last.pt", weights_only=True)
    return {f"{role}.{name}": value for role, net in saved["networks"].items() for name, value in net.items()}


def lines(run_spec: RunSpec) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_spec.folder / "metrics.jsonl").read_text().splitlines()]


# In float64: where a gradient is rounding noise, Adam's family divides it by its own size, and float32 shows the noise
@pytest.mark.parametrize("case", TASKS)
def test_each_network_ends_as_when_trained_alone(case: str, tmp_path: Path, float64: None) -> None:
    many = specs(tmp_path / "many", TASKS[case])
    assert all(error is None for error in run_many(many).values())
    for together, alone in zip(many, specs(tmp_path / "alone", TASKS[case]), strict=True):
        run(alone)
        ours, theirs = weights(together), weights(alone)
        assert ours.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )
        for line, other in zip(lines(together), lines(alone), strict=True):
            assert line.keys() == other.keys()
            assert line == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_in_float32_the_networks_of_sgd_and_sgdp_stay_within_rounding(tmp_path: Path) -> None:
    many = specs(tmp_path / "many", TASKS["multilayer perceptron"])
    run_many(many)
    for together in many[:2]:
        alone = spec(tmp_path / "alone", together.name, TASKS["multilayer perceptron"])
        run(alone)
        for name, value in weights(alone).items():
            torch.testing.assert_close(weights(together)[name], value, rtol=1e-5, atol=1e-5)


def test_a_record_is_that_of_the_run_alone(tmp_path: Path) -> None:
    together, alone = (spec(tmp_path / kind, "sgdp", TASKS["convolutions"]) for kind in ("many", "alone"))
    run_many([together, *specs(tmp_path / "many", TASKS["convolutions"])[:1]])
    run(alone)
    ours, theirs = (json.loads((s.folder / "run.json").read_text()) for s in (together, alone))
    assert ours.keys() == theirs.keys()
    same = ("status", "data", "model", "steps", "epochs", "config", "monitor", "opt_name", "seed", "diverged_at")
    assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
    assert ours["numerics"]["networks_at_once"] == 2


def files(all_specs: Sequence[RunSpec]) -> list[bytes]:
    return [(each.folder / "metrics.jsonl").read_bytes() for each in all_specs]


class StoppedInEvaluation(toys.Memory):
    """Gets a signal at its sixth prediction."""

    predictions = 0

    def predict(self, *args: Any) -> Any:
        self.predictions += 1
        if self.predictions == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().predict(*args)


@pytest.mark.parametrize("step", [1, 6, 7, 20, None])
def test_stopped_and_resumed_they_are_bitwise_the_same(step: int | None, tmp_path: Path) -> None:
    whole, parts = (specs(tmp_path / kind, lambda: toys.Memory(dropout=0.0)) for kind in ("whole", "parts"))
    run_many(whole)

    def killing() -> Task:
        if step is None:
            return StoppedInEvaluation(dropout=0.0)
        task = toys.Memory(dropout=0.0)
        task.before_step = toys.kill_at(min(step, 12) * len(parts))
        return task

    with pytest.raises(Stopped) as stop:
        run_many(specs(tmp_path / "parts", killing))
    assert stop.value.code == 128 + signal.SIGTERM
    run_many(parts)
    assert files(parts) == files(whole)
    for one, other in zip(whole, parts, strict=True):
        assert all(torch.equal(value, weights(other)[name]) for name, value in weights(one).items())
        record = json.loads((other.folder / "run.json").read_text())
        (resumed_at,) = record["resumed_from"]
        spans = [(segment["from_step"], segment["to_step"]) for segment in record["segments"]]
        assert spans == [(0, resumed_at), (resumed_at, record["steps"])]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded", "ignore:This DataLoader will create")
@pytest.mark.parametrize("evaluating", [False, True])
def test_waiting_for_a_batch_ends_and_answers_signals(
    evaluating: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_workers, "STOP_SECONDS", 0.2)

    def slow(minutes: float) -> list[RunSpec]:
        make = lambda: toys.Slow(evaluating=evaluating, dropout=0.0)  # noqa: E731
        return specs(tmp_path / "r", make, num_workers=1, timeout_minutes=minutes)[:2]

    with pytest.raises(RunFailed, match="no batch came within"):
        run_many(slow(0.01))
    toys.kill_while_reading()
    with pytest.raises(Stopped) as stopped:
        run_many(slow(1))
    assert stopped.value.saved != evaluating
    record = json.loads((tmp_path / "r" / "sgd" / "run.json").read_text())
    assert record["status"] == "interrupted" and record["segments"][-1]["to_step"] <= (4 if evaluating else 2)


def test_killed_between_two_saves_all_go_on_from_the_earlier_one(tmp_path: Path) -> None:
    make = TASKS["multilayer perceptron"]
    whole, parts = specs(tmp_path / "whole", make), specs(tmp_path / "parts", make)
    run_many(whole)
    run_many(specs(tmp_path / "parts", make, max_steps=7))
    ahead = parts[1].folder / "checkpoints"
    for each in parts:  # as a run that was killed leaves it
        record = json.loads((each.folder / "run.json").read_text())
        (each.folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    earlier = tmp_path / "earlier.pt"
    shutil.copy(ahead / "last.pt", earlier)
    # One of them saved at step 14, the others at step 7
    run_many([spec(tmp_path / "parts", parts[1].name, make, max_steps=14)])
    shutil.copy(earlier, ahead / "last.previous.pt")
    record = json.loads((parts[1].folder / "run.json").read_text())
    (parts[1].folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    run_many(parts)
    assert [line["step"] for line in lines(parts[1])] == [line["step"] for line in lines(whole[1])]
    assert all(torch.equal(v, weights(parts[1])[n]) for n, v in weights(whole[1]).items())


def test_killed_in_the_first_save_all_begin_anew(tmp_path: Path) -> None:
    make = TASKS["multilayer perceptron"]
    whole, parts = specs(tmp_path / "whole", make), specs(tmp_path / "parts", make)
    run_many(whole)
    run_many(specs(tmp_path / "parts", make, max_steps=7))
    for each in parts:
        record = json.loads((each.folder / "run.json").read_text())
        (each.folder / "run.json").write_text(json.dumps({**record, "status": "running"}))
    for each in parts[2:]:
        (each.folder / "checkpoints" / "last.pt").unlink()
    # One that never began is no reason to give the others' checkpoints up
    lines_written = (parts[3].folder / "metrics.jsonl").read_bytes()
    (parts[3].folder / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match="holds no checkpoint of step 0, where the runs that are trained with it are"):
        run_many(parts)
    assert (parts[0].folder / "checkpoints" / "last.pt").exists()
    (parts[3].folder / "metrics.jsonl").write_bytes(lines_written)
    run_many(parts)
    assert files(parts) == files(whole)


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = TASKS["multilayer perceptron"]
    whole, parts = specs(tmp_path / "whole", make), specs(tmp_path / "parts", make)
    run_many(whole)
    doomed = spec(tmp_path / "parts", "doomed", make)
    monkeypatch.setitem(OPTIMIZERS, "doomed", partial(torch.optim.SGD, lr=1e30))
    outcomes = run_many([parts[0], doomed, *parts[1:]])
    assert isinstance(outcomes["doomed"], Diverged)
    record = json.loads((doomed.folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["diverged_at"] is not None
    for one, other in zip(whole, parts, strict=True):
        assert lines(other)[-1] == pytest.approx(lines(one)[-1], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accumulation": 2}, "train.accumulation is 2"),
        ({"precision": "bf16"}, "train.precision is bf16"),
        ({"ema_decay": 0.9}, "train.ema_decay is 0.9"),
    ],
)
def test_what_only_a_run_alone_has_is_refused(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        run_many(specs(tmp_path, TASKS["convolutions"], **values))


def test_a_split_that_is_scored_with_the_best_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="best weights"):
        run_many(specs(tmp_path, lambda: toys.Tested(dropout=0.0)))


def test_a_layer_that_mixes_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Dropout \(3\) is no layer"):
        run_many(specs(tmp_path, toys.Toy))


class MeanOfChannels(nn.Module):
    """Mixes channels in code of its own, which a list of layers cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) / self.linear(x).mean(1, keepdim=True)


def test_a_block_that_mixes_channels_is_refused() -> None:
    wide = WideNetwork(MeanOfChannels(), 3)
    with torch.no_grad():
        wide.members[1].linear.weight.mul_(2)  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="computes something else"):
        wide.check((torch.randn(5, 4),))


def test_a_residual_network_stands_beside_others() -> None:
    torch.manual_seed(0)
    network = resnet18(num_classes=4, width=0.0625).double()
    wide = WideNetwork(network, 3)
    with torch.no_grad():
        for index, member in enumerate(wide.members):
            for parameter in member.parameters():
                parameter.add_(0.05 * index * torch.randn_like(parameter))
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    outputs = wide.module(images)
    outputs.square().sum().backward()
    for index, member in enumerate(wide.members):
        alone = resnet18(num_classes=4, width=0.0625).double()
        alone.load_state_dict({k: v for k, v in member.state_dict().items() if "running" not in k}, strict=False)
        own = alone(images)
        torch.testing.assert_close(outputs[:, 4 * index : 4 * index + 4], own, rtol=1e-9, atol=1e-9)
        own.square().sum().backward()
        for ours, theirs in zip(member.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-9)
