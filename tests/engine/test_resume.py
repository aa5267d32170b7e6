"""A run that was stopped anywhere and resumed leaves, bit for bit, the weights and metrics of one that was not."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.base import InputError, Task
from tasks.engine import checkpointing
from tasks.engine.checkpointing import Checkpoints
from tasks.engine.errors import Stopped
from tests.engine import toys

CASES: dict[str, tuple[Callable[[], Task], dict[str, Any]]] = {
    "plain": (toys.Toy, {}),
    "averaged, accumulated, clipped": (toys.Toy, {"ema_decay": 0.9, "accumulation": 2, "clip_norm": 1.0}),
    "phases": (toys.Toy, {"phases": toys.two_phases}),
    "turns": (toys.Turns, {}),
    "memory": (toys.Memory, {}),
    "memory of each micro-batch": (toys.Memory, {"accumulation": 2}),
    "tested": (toys.Tested, {}),
    "attack": (toys.Attack, {}),
    "bf16": (toys.Toy, {"precision": "bf16"}),
    "fp16 with loss scaling": (toys.Toy, {"precision": "fp16"}),
}


def run(
    case: str, folder: Path, before_step: Callable[[], None] | None = None
) -> tuple[dict[str, torch.Tensor], bytes]:
    make, values = CASES[case]
    values = dict(values)
    phases = values.pop("phases", toys.one_phase)()
    task = make()
    if case == "turns":
        task.monitor = "val/top1"
    if before_step is not None:
        task.before_step = before_step  # type: ignore[attr-defined]
    made = toys.trainer(task, folder, phases=phases, **values)
    try:
        made.fit()
    finally:
        toys.close(made)
    return toys.weights(made), (folder / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("case", CASES)
def test_stopping_at_any_step_and_resuming_changes_no_bit(case: str, tmp_path: Path) -> None:
    weights, metrics = run(case, tmp_path / "whole")
    parts = CASES[case][1].get("accumulation", 1)
    for step in (1, 4, 7, 11, 12):  # first, an end of an epoch, inside one, the last two
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped) as stop:
            run(case, folder, toys.kill_at(step * parts))
        assert stop.value.code == 128 + signal.SIGTERM
        resumed, lines = run(case, folder)
        assert lines == metrics, f"stopped at step {step}"
        assert resumed.keys() == weights.keys()
        for name in weights:
            assert torch.equal(resumed[name], weights[name]), f"{name}, stopped at step {step}"


def test_a_run_killed_between_two_checkpoints_drops_and_repeats_the_lines_after_the_last(tmp_path: Path) -> None:
    weights, metrics = run("plain", tmp_path / "whole")

    class Killed(BaseException):
        pass

    seen = 0

    def hook() -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            signal.raise_signal(signal.SIGUSR1)  # saves after this step, and goes on
        if seen == 11:
            raise Killed

    with pytest.raises(Killed):
        run("plain", tmp_path / "killed", hook)
    cut = tmp_path / "killed" / "metrics.jsonl"
    cut.write_bytes(cut.read_bytes() + b'{"step":10,"half a li')
    resumed, lines = run("plain", tmp_path / "killed")
    assert lines == metrics
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_a_signal_during_evaluation_stops_and_resumes_exactly(tmp_path: Path) -> None:
    weights, metrics = run("plain", tmp_path / "whole")
    task = toys.Toy()
    predict, calls = task.predict, 0

    def interrupted(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            signal.raise_signal(signal.SIGINT)
        return predict(*args)

    task.predict = interrupted  # type: ignore[method-assign]
    made = toys.trainer(task, tmp_path / "stopped")
    with pytest.raises(Stopped) as stop:
        made.fit()
    assert stop.value.code == 130
    toys.close(made)
    resumed, lines = run("plain", tmp_path / "stopped")
    assert lines == metrics
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_checkpoints_by_the_clock_change_nothing(tmp_path: Path) -> None:
    weights, metrics = run("plain", tmp_path / "rare")
    made = toys.trainer(toys.Toy(), tmp_path / "often", checkpoint_minutes=0)
    made.fit()
    toys.close(made)
    assert (tmp_path / "often" / "metrics.jsonl").read_bytes() == metrics
    assert all(torch.equal(value, weights[name]) for name, value in toys.weights(made).items())


def test_lost_metrics_are_an_error_and_not_a_gap(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run("plain", tmp_path, toys.kill_at(8))
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 0 bytes, its checkpoint knows \d+: lines were lost"):
        run("plain", tmp_path)


def test_starting_over_where_a_checkpoint_was_set_aside_asks_for_a_word(tmp_path: Path) -> None:
    weights, metrics = run("plain", tmp_path / "undisturbed")
    folder = tmp_path / "r"
    with pytest.raises(Stopped):
        run("plain", folder, toys.kill_at(8))
    before = (folder / "metrics.jsonl").read_bytes()
    (folder / "checkpoints" / "last.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"kept as last\.unreadable-1\.pt; .* train\.restart=true to start over"):
        run("plain", folder)
    with pytest.raises(InputError, match=r"only last\.unreadable-1\.pt, which cannot be used\n.*train\.restart=true"):
        run("plain", folder)
    assert before and (folder / "metrics.jsonl").read_bytes() == before
    made = toys.trainer(toys.Toy(), folder, restart=True)
    made.fit()
    toys.close(made)
    assert (folder / "metrics.before-1.jsonl").read_bytes() == before
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert all(torch.equal(value, weights[name]) for name, value in toys.weights(made).items())


def test_a_signal_while_the_test_split_is_scored_repeats_the_scoring_alone(tmp_path: Path) -> None:
    weights, metrics = run("tested", tmp_path / "whole")
    task = toys.Tested()
    score, calls = task.score, 0

    def interrupted(split: str, records: Any) -> Any:
        nonlocal calls
        calls += split == "test"
        return score(split, records)

    task.score = interrupted  # type: ignore[method-assign]
    predict = task.predict

    def kill(nets: Any, batch: Any, state: Any) -> Any:
        if task.testing:
            signal.raise_signal(signal.SIGTERM)
        return predict(nets, batch, state)

    task.predict = kill  # type: ignore[method-assign]
    made = toys.trainer(task, tmp_path / "stopped")
    with pytest.raises(Stopped):
        made.fit()
    toys.close(made)
    assert calls == 0
    resumed, lines = run("tested", tmp_path / "stopped")
    assert lines == metrics
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


def test_a_stop_that_arrives_while_a_checkpoint_is_being_written_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, metrics = run("plain", tmp_path / "whole")
    save_last, saves = Checkpoints.save_last, 0

    def interrupted(*args: Any, **kwargs: Any) -> None:
        nonlocal saves
        saves += 1
        if saves == 1:
            signal.raise_signal(signal.SIGTERM)
        save_last(*args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save_last", interrupted)
    made = toys.trainer(toys.Toy(), tmp_path / "stopped", checkpoint_minutes=0)
    with pytest.raises(Stopped):
        made.fit()
    toys.close(made)
    assert made.state.progress.step == 2  # asked for during the save after step 1
    resumed, lines = run("plain", tmp_path / "stopped")
    assert lines == metrics
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)


@pytest.mark.parametrize(("task", "refused"), [(toys.Toy, False), (toys.Memory, True)])
def test_another_number_of_processes_is_refused_only_where_a_task_carries_state(
    task: type[toys.Toy], refused: bool, tmp_path: Path
) -> None:
    made = toys.trainer(task(), tmp_path / "r")
    made.fit()
    toys.close(made)
    contents = made.checkpoints.load_latest()
    assert contents is not None
    contents["processes"] *= 2  # as two processes save
    if refused:
        with pytest.raises(InputError, match="carries state of 2 processes; resume with GPUS=2, not 1"):
            checkpointing.restore(made.state, contents, toys.CPU)
    else:
        checkpointing.restore(made.state, contents, toys.CPU)
