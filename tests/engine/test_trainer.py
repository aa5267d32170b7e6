"""Phases, accumulation, rules, moving averages, and what stops a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adamp.layers import WNLinear, WSLinear
from tasks.base import InputError
from tasks.engine import checkpoint
from tasks.engine.errors import RunFailed
from tasks.engine.optim import scaled_learning_rates
from tasks.engine.phases import Phase
from tasks.engine.schedules import cosine
from tasks.engine.trainer import Trainer
from tests.engine import toys


def fitted(folder: Path, *, task: Any = None, **values: Any) -> Trainer:
    made = toys.trainer(task or toys.Toy(), folder, **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return made


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    def plain() -> toys.Toy:  # batch norm and dropout would see the micro-batch
        return toys.Toy(norm=False, dropout=0.0)

    whole = toys.weights(fitted(tmp_path / "whole", task=plain()))
    cut = toys.weights(fitted(tmp_path / "cut", task=plain(), accumulation=4))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-5, atol=1e-6)


def test_the_loss_falls_and_the_scores_are_those_of_the_last_epoch(tmp_path: Path) -> None:
    made = fitted(tmp_path, phases=toys.one_phase(10), epochs=10)
    losses = [line["val/loss"] for line in lines(tmp_path) if "val/loss" in line]
    assert losses[-1] < 0.7 * losses[0]
    assert made.state.scores["val/loss"] == losses[-1]


def test_metrics_begin_with_the_norms_at_step_0_and_count_epochs(tmp_path: Path) -> None:
    fitted(tmp_path)
    first, *_, last = lines(tmp_path)
    assert (first["step"], first["epoch"]) == (0, 0.0)
    assert first["norm/mean"] > 0 and "effective_step/mean" not in first
    assert (last["step"], last["epoch"]) == (12, 3.0)
    assert {"norm/0.weight", "effective_step/0.weight", "val/top1", "train/loss", "lr"} <= last.keys()


def test_a_frozen_phase_moves_only_what_is_trainable(tmp_path: Path) -> None:
    before = toys.weights(toys.trainer(toys.Toy(), tmp_path / "none"))
    after = toys.weights(fitted(tmp_path / "head", phases=[Phase(1, toys.adam, trainable=r"\.4\.")]))
    assert torch.equal(after["model.0.weight"], before["model.0.weight"])
    assert not torch.equal(after["model.4.weight"], before["model.4.weight"])


def test_a_phase_that_starts_from_best_goes_back_to_the_best_weights(tmp_path: Path) -> None:
    task = toys.Toy()
    scores = iter([90.0, 10.0, 20.0])
    task.score = lambda split, records: {"val/top1": next(scores)}  # type: ignore[method-assign]
    seen: list[torch.Tensor] = []
    task.before_step = lambda: seen.append(task.networks["model"][0].weight.detach().clone())  # type: ignore[index]
    fitted(tmp_path, task=task, phases=[Phase(2, toys.sgdp), Phase(1, toys.adam, start_from="best")])
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt", run="toys/toy")
    assert torch.equal(seen[8], best["networks"]["model"]["0.weight"])
    assert torch.equal(seen[4], seen[8]) and not torch.equal(seen[5], seen[8])


def test_schedules_keep_the_ratio_between_groups(tmp_path: Path) -> None:
    made = toys.trainer(toys.Toy(), tmp_path, rules=[{"match": r"\.4\.", "lr_scale": 100, "weight_decay": 0.0}])
    ratios = set()
    made.task.before_step = lambda: ratios.add(  # type: ignore[attr-defined]
        round(
            made.state.optimizers["model"].param_groups[1]["lr"] / made.state.optimizers["model"].param_groups[0]["lr"],
            6,
        )
    )
    made.fit()
    toys.close(made)
    assert ratios == {100.0}
    assert made.state.optimizers["model"].param_groups[1]["weight_decay"] == 0.0


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "nothing"}, "'nothing' matches no parameter"),
        ({"match": "("}, "is not a regular expression"),
        ({"lr_scale": 2}, "a rule without `match`"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(tmp_path: Path, rule: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        toys.trainer(toys.Toy(), tmp_path, rules=[rule])


def test_the_moving_average_is_evaluated_and_picks_the_best(tmp_path: Path) -> None:
    made = fitted(tmp_path, ema_decay=0.5)
    assert {"val/top1", "val_ema/top1"} <= made.state.scores.keys()
    average = made.state.averages["model"].module
    assert isinstance(average, nn.Sequential)
    assert not torch.equal(average[0].weight, made.state.modules["model"][0].weight)  # type: ignore[index]
    assert made.state.best.score is not None


def test_a_monitor_with_a_minus_keeps_the_lowest_score_and_the_test_split_is_scored_once_with_its_weights(
    tmp_path: Path,
) -> None:
    made = fitted(tmp_path, task=toys.Tested(), phases=toys.one_phase(6), epochs=6)
    losses = [line["val/loss"] for line in lines(tmp_path) if "val/loss" in line]
    assert made.state.best.score == min(losses)
    tested = [line for line in lines(tmp_path) if "test/loss" in line]
    assert len(tested) == 1 and tested[0]["test/loss"] == min(losses)  # the split is the same as "val"
    assert made.state.scores["test/loss"] == min(losses) and made.state.scores["val/loss"] == losses[-1]


def test_each_micro_batch_carries_its_own_state(tmp_path: Path) -> None:
    made = fitted(tmp_path, task=toys.Memory(norm=False, dropout=0.0), accumulation=2)
    assert [list(state) for state in made.state.loop_states] == [["memory"], ["memory"]]
    assert not torch.equal(made.state.loop_states[0]["memory"], made.state.loop_states[1]["memory"])


def test_a_step_at_a_scaled_rate_leaves_the_rates_as_they_were() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": torch.tensor(0.25)}], lr=0.1)
    rate = optimizer.param_groups[0]["lr"]
    weight.grad = torch.ones(2)
    with scaled_learning_rates(optimizer, 0.5):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] is rate and rate == 0.25
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.875))


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    task = toys.Toy()
    steps = 0

    def poison() -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            with torch.no_grad():
                task.networks["model"][4].weight.fill_(float("inf"))  # type: ignore[index]

    task.before_step = poison
    made = toys.trainer(task, tmp_path, checkpoint_minutes=0)
    with pytest.raises(RunFailed, match=r"not finite at step 7 .*lower opt\.lr"):
        made.fit()
    toys.close(made)
    kept = checkpoint.load(tmp_path / "checkpoints" / "last.pt", run="toys/toy")
    assert kept["step"] == 6
    assert all(torch.isfinite(value).all() for value in kept["networks"]["model"].values())


def test_a_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch_size is 100, more than the training set"):
        toys.trainer(toys.Toy(batch_size=100), tmp_path, batch_size=100)


def test_max_steps_ends_the_run_inside_an_epoch_with_its_scores(tmp_path: Path) -> None:
    made = fitted(tmp_path, max_steps=6)
    assert made.state.progress.step == 6
    assert lines(tmp_path)[-1]["step"] == 6 and "val/top1" in lines(tmp_path)[-1]


def test_probes_do_not_change_training(tmp_path: Path) -> None:
    probed = toys.weights(fitted(tmp_path / "probed"))
    bare = toys.weights(fitted(tmp_path / "bare", probe_every=0))
    assert all(torch.equal(bare[name], probed[name]) for name in probed)


@pytest.mark.parametrize(("layer", "name", "size"), [
    (WNLinear, "lr/norm/0.weight", lambda w: w.norm(dim=1)),
    (WSLinear, "lr/std/0.weight", lambda w: w.std(dim=1)),
])  # fmt: skip
def test_a_trace_holds_the_mean_of_the_rate_over_each_filters_size(
    tmp_path: Path, layer: type[nn.Module], name: str, size: Any
) -> None:
    task = toys.Toy()
    task.networks["model"][0] = layer(toys.D, 16, bias=False)  # type: ignore[index]
    made = fitted(tmp_path, task=task, trace_every=2)
    traced = {line["step"]: line for line in lines(tmp_path) if name in line}
    steps = made.state.progress.step
    assert list(traced) == [1, *range(2, steps + 1, 2)]
    weight = made.state.modules["model"].get_parameter("0.weight").detach()
    lr = made.state.optimizers["model"].param_groups[0]["lr"]
    assert steps % 2 == 0
    assert traced[steps][name] == pytest.approx((lr / size(weight)).mean().item(), rel=1e-6)
    assert traced[steps]["weight/0.weight"] == weight.flatten()[weight.numel() // 2].item()


def test_a_trace_changes_neither_training_nor_other_lines(tmp_path: Path) -> None:
    traced = toys.weights(fitted(tmp_path / "traced", trace_every=1))
    plain = toys.weights(fitted(tmp_path / "plain"))
    assert all(torch.equal(plain[name], traced[name]) for name in traced)
    assert [line for line in lines(tmp_path / "traced") if "weight/0.weight" not in line] == lines(tmp_path / "plain")


def test_channels_last_and_compile_are_options_of_the_same_loop(tmp_path: Path) -> None:
    made = fitted(tmp_path, channels_last=True)
    assert made.state.scores


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"train\.epochs is 0; it must be at least 1"),
        ({"clip_norm": float("nan")}, r"train\.clip_norm is nan; it must be positive and finite"),
        ({"ema_decay": 1.0}, r"train\.ema_decay is 1\.0; it must lie in \[0, 1\)"),
        ({"precision": "fp8"}, r"train\.precision is 'fp8'; choose one of fp32, bf16, fp16"),
        ({"device": "tpu"}, r"train\.device is 'tpu'"),
    ],
)
def test_options_out_of_range_name_value_rule_and_option(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        toys.options(**values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_rate_that_is_no_number_is_refused_by_name(tmp_path: Path, bad: float) -> None:
    from functools import partial

    made = toys.trainer(toys.Toy(), tmp_path, phases=[Phase(1, partial(torch.optim.SGD, lr=bad), {"lr": cosine})])
    with pytest.raises(InputError, match=r"opt\.lr is"):
        made.fit()
    toys.close(made)
