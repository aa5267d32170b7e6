"""Non-finite updates are skipped and counted alike on all processes, and drifting processes are noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.base import InputError, StepContext, Update
from tasks.engine.config import Train
from tasks.engine.distributed import World, process_group
from tasks.engine.errors import Diverged, RunFailed, Stopped
from tests.engine import toys


class Faulty(toys.Memory):
    """Spoils the losses of some steps (counted from 1), the input of others, or the gradient alone of others."""

    def __init__(self, *, losses: tuple[int, ...] = (), inputs: tuple[int, ...] = (), grads: tuple[int, ...] = ()):
        super().__init__()
        self.losses, self.inputs, self.grads = losses, inputs, grads

    def train_batches(self, epoch: int, shard: Any, start: int = 0) -> Any:
        found = super().train_batches(epoch, shard, start)
        steps = toys.EXAMPLES // self.batch_size
        return [
            (x, y, epoch * steps + start + i // shard.accumulation_steps + 1) for i, (x, y) in enumerate(found)
        ]  # the step goes with the batch, so that resuming finds it again

    def updates(self, nets: Mapping[str, nn.Module], batch: Any, context: StepContext) -> Iterator[Update]:
        x, y, step = batch
        if step in self.inputs:
            x = x * float("nan")
        for update in super().updates(nets, (x, y), context):
            if step in self.losses:
                update.loss = update.loss * float("inf")
            if step in self.grads:  # finite forwards, 0 * inf backwards
                update.loss = update.loss + (next(nets["model"].parameters()).sum() * 0).sqrt() * 0
            yield update


def fitted(folder: Path, task: toys.Toy, **values: Any) -> tuple[Any, list[dict[str, Any]]]:
    made = toys.trainer(task, folder, **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return made, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("policy", ["skip", "scale"])
def test_updates_that_are_not_finite_are_left_out_and_counted(tmp_path: Path, policy: str) -> None:
    made, lines = fitted(tmp_path, Faulty(losses=(3,), inputs=(5,), grads=(8,)), nonfinite=policy)
    assert made.state.non_finite.skipped == 3
    assert [line["train/refused"] for line in lines if "train/refused" in line][-1] == 3
    assert all(torch.isfinite(value.float()).all() for value in toys.weights(made).values())
    assert all(value is not None for line in lines for key, value in line.items() if key.startswith("train/"))
    assert made.state.non_finite.factor == (1.0 if policy == "skip" else 2.0**-3)


def test_a_refused_step_leaves_weights_buffers_and_memory_as_they_were(tmp_path: Path) -> None:
    task = Faulty(inputs=(2,))
    made = toys.trainer(task, tmp_path, nonfinite="skip", max_steps=1)
    made.fit()
    toys.close(made)
    before, memory = toys.weights(made), made.state.loop_states[0]["memory"].clone()
    made, _ = fitted(tmp_path / "two", Faulty(inputs=(2,)), nonfinite="skip", max_steps=2)
    assert all(torch.equal(value, before[name]) for name, value in toys.weights(made).items())
    assert torch.equal(made.state.loop_states[0]["memory"], memory)


@pytest.mark.parametrize("policy", ["skip", "scale"])
def test_a_policy_changes_no_bit_of_a_run_that_needs_none(tmp_path: Path, policy: str) -> None:
    plain, _ = fitted(tmp_path / "plain", toys.Turns())
    kept, _ = fitted(tmp_path / "kept", toys.Turns(), nonfinite=policy)
    assert all(torch.equal(value, toys.weights(plain)[name]) for name, value in toys.weights(kept).items())


def test_without_a_policy_the_run_ends_as_diverged_and_no_checkpoint_holds_what_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"the loss is not finite at step 3 \(epoch 0\.50\)"):
        fitted(tmp_path / "loss", Faulty(losses=(3,)))
    with pytest.raises(Diverged, match=r"the weight model\.0\.weight is not finite at step 12"):
        fitted(tmp_path / "gradient", Faulty(grads=(12,)))  # the last step: no later loss would have told
    assert not list(tmp_path.glob("gradient/checkpoints/last.pt"))


def test_a_run_that_only_skips_has_diverged(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="20 updates in a row were not finite, the last at step 22"):
        fitted(tmp_path, Faulty(inputs=tuple(range(3, 99))), nonfinite="skip", phases=toys.one_phase(9), epochs=9)


def test_counts_and_factor_survive_a_stop(tmp_path: Path) -> None:
    bad = {"losses": (2, 9), "inputs": (5,)}
    whole, lines = fitted(tmp_path / "whole", Faulty(**bad), nonfinite="scale")
    task = Faulty(**bad)
    task.before_step = toys.kill_at(6)
    with pytest.raises(Stopped):
        fitted(tmp_path / "parts", task, nonfinite="scale")
    again, resumed = fitted(tmp_path / "parts", Faulty(**bad), nonfinite="scale")
    assert resumed == lines
    assert again.state.non_finite.state_dict() == whole.state.non_finite.state_dict()
    assert all(torch.equal(value, toys.weights(whole)[name]) for name, value in toys.weights(again).items())


def test_a_policy_that_is_not_known_is_refused() -> None:
    with pytest.raises(InputError, match=r"train\.nonfinite is 'ignore'; choose skip, scale or null"):
        Train(nonfinite="ignore")


def drift(world: World, folder: Path) -> None:
    """Let process 1 move one weight by one bit after step 5, and see both end."""

    def nudge() -> None:
        nudge.seen += 1  # type: ignore[attr-defined]
        if world.rank == 1 and nudge.seen == 6:  # type: ignore[attr-defined]
            weight = task.networks["model"][4].weight  # type: ignore[index]
            with torch.no_grad():
                weight.view(torch.int32)[0, 0] += 1

    nudge.seen = 0  # type: ignore[attr-defined]
    task = toys.Toy()
    task.before_step = nudge
    made = toys.trainer(task, folder / "drift", world=world, check_every=2)
    with pytest.raises(RunFailed, match=r"weights differ at step 6, first in model\.4\.weight"):
        made.fit()
    toys.close(made)


def refuse(world: World, folder: Path) -> None:
    """Spoil the loss of process 0 alone: both leave the update out, and their weights stay the same."""
    task = Faulty(losses=(3,) if world.is_main else ())
    made = toys.trainer(task, folder / "refuse", world=world, nonfinite="skip", check_every=1)
    made.fit()
    toys.close(made)
    assert made.state.non_finite.skipped == 1


def test_two_processes_refuse_together_and_one_bit_of_drift_is_noticed(tmp_path: Path) -> None:
    code = (
        "import sys; from tasks.engine.processes import spawn; "
        f"sys.exit(spawn([sys.executable, '-m', 'tests.engine.test_non_finite', {str(tmp_path)!r}], 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=1) as pair:
        refuse(pair, Path(sys.argv[1]))
        drift(pair, Path(sys.argv[1]))


def test_updates_that_loss_scaling_skips_are_counted_told_and_left_out_of_averages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"precision": "fp16", "ema_decay": 0.9, "progress": True}
    made, lines = fitted(tmp_path / "whole", Faulty(grads=(2, 5, 6)), **values)
    assert [line["train/refused"] for line in lines if "train/refused" in line] == [1, 1, 3, 3, 3, 3]
    told = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert [line.split(";")[0] for line in told] == [
        "1 update skipped: fp16 gradients overflowed", "2 updates skipped: fp16 gradients overflowed",
    ]  # fmt: skip
    assert int(made.state.averages["model"].n_averaged) == 9
    task = Faulty(grads=(2, 5, 6))
    task.before_step = toys.kill_at(5)
    with pytest.raises(Stopped):
        fitted(tmp_path / "parts", task, **values)
    again, resumed = fitted(tmp_path / "parts", Faulty(grads=(2, 5, 6)), **values)
    assert resumed == lines and again.state.non_finite.taken == made.state.non_finite.taken == 9


@pytest.mark.parametrize(("epochs", "message"), [(3, "none of 12 updates was finite"), (9, "20 updates in a row")])
def test_a_run_of_which_loss_scaling_takes_no_update_fails(tmp_path: Path, epochs: int, message: str) -> None:
    task = Faulty(grads=tuple(range(1, 99)))
    with pytest.raises(Diverged, match=message):
        fitted(tmp_path, task, precision="fp16", phases=toys.one_phase(epochs), epochs=epochs)
