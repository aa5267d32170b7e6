"""`scripts/train.py` as a user meets it: what it says, what it leaves, and that no disturbance changes the result."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.engine import checkpoint
from tests import commands

REAL = [word for word in commands.TINY if not word.startswith(("data", "train.epochs", "pictures"))] + [
    "data.image_size=32", "train.max_steps=12", "train.log_every=4", "train.num_workers=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = commands.call(*commands.options(folder))
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed_pair")
    done = commands.call(*commands.options(folder, "gpus=2"), env=environment)
    assert done.code == 0, done.err
    return folder


def test_a_run_says_and_leaves_everything_and_a_second_call_changes_no_file(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    words = [*REAL, f"paths.runs={tmp_path}/runs", f"paths.reports={tmp_path}/reports"]
    done = commands.run(words, environment)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert "Warning" not in done.err, done.err
    folder = commands.run_folder(tmp_path)
    last = "\n".join(done.out.splitlines()[-5:])
    for word in ("finished", "val/top1", str(folder / "checkpoints" / "last.pt"), str(folder / "figures")):
        assert word in last
    assert list((folder / "figures").glob("*.png"))
    assert (tmp_path / "reports" / "imagenet-resnet18" / "index.html").exists()

    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["error"] is None
    assert (record["opt_name"], record["seed"], record["scale"], record["steps"]) == ("sgd", 0, "mini", 12)
    assert record["config"]["opt"]["lr"] == 0.1  # resolved
    assert record["config"]["train"]["batch_size"] == 16
    assert record["git"].keys() == {"commit", "dirty"}
    assert {"python", "torch", "numpy", "adamp"} <= record["versions"].keys()
    assert record["hardware"]["machine"]
    assert record["wall_time_s"] > 0
    assert record["peak_memory_mib"] > 100
    assert record["data"]["name"] == "fashion_mnist_20k"
    assert record["data"]["train_examples"] == 10_000
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 12, 12][: len(lines)]
    assert lines[-1]["val/top1"] == record["scores"]["val/top1"]

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    again = commands.call(*words)
    assert again.code == 0
    assert "was finished before" in again.out
    assert str(folder / "checkpoints" / "last.pt") in again.out
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    # The lock file holds the number of the process that looked last.
    changed = [path.name for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
    assert set(changed) <= {".lock"}


def test_kill_9_then_ctrl_c_then_the_same_command_changes_no_bit(
    tmp_path: Path, undisturbed: Path, environment: dict[str, str]
) -> None:
    words = commands.options(tmp_path, "train.checkpoint_minutes=0")
    process = commands.start(words, environment)
    commands.wait_until(commands.lines(tmp_path, 4), process)
    process.send_signal(signal.SIGSTOP)  # holds it in place while a second process tries the same folder
    second = commands.call(*words)
    assert second.code == 2
    assert f"is being run by process {process.pid} now" in second.err
    assert len(second.err.splitlines()) <= 2
    process.kill()
    assert commands.finish(process).code == -signal.SIGKILL
    assert commands.record(tmp_path)["status"] == "running"

    save, saves = checkpoint.save, 0

    def interrupted(path: Path, state: dict[str, Any]) -> None:
        nonlocal saves
        saves += 1
        if saves == 12:
            signal.raise_signal(signal.SIGINT)
        save(path, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupted)
        stopped = commands.call(*words)
    assert stopped.code == 130, stopped.err
    assert stopped.err == "stopped by SIGINT; a checkpoint is saved, the same command goes on from it\n"
    assert commands.record(tmp_path)["status"] == "interrupted"

    done = commands.call(*commands.options(tmp_path))
    assert done.code == 0, done.err
    record = commands.record(tmp_path)
    assert record["status"] == "finished"
    assert len(record["resumed_from"]) == 2
    commands.assert_same_result(tmp_path, undisturbed)


def test_two_processes_save_on_sigusr1_stop_on_sigterm_and_resume_without_changing_a_bit(
    tmp_path: Path, undisturbed_pair: Path, environment: dict[str, str]
) -> None:
    words = commands.options(tmp_path, "gpus=2", "train.checkpoint_minutes=1000")
    process = commands.start(words, environment)
    commands.wait_until(lambda: any((tmp_path / "runs").glob("*/*/timing.jsonl")), process)
    process.send_signal(signal.SIGUSR1)
    commands.wait_until(commands.checkpoint(tmp_path), process)
    folder = commands.run_folder(tmp_path)
    known = (folder / "metrics.jsonl").read_bytes().count(b"\n")
    commands.wait_until(commands.lines(tmp_path, known + 1), process)  # it goes on
    process.send_signal(signal.SIGTERM)
    stopped = commands.finish(process)
    assert stopped.code == 128 + signal.SIGTERM, stopped.err
    assert "Traceback" not in stopped.err, stopped.err
    assert commands.record(tmp_path)["status"] == "interrupted"

    done = commands.call(*words, env=environment)
    assert done.code == 0, done.err
    assert commands.record(tmp_path)["hardware"]["processes"] == 2
    commands.assert_same_result(tmp_path, undisturbed_pair)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_twenty_kills_at_random_moments_change_no_bit(
    processes: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    more = ("train.epochs=300", f"gpus={processes}")
    assert commands.run(commands.options(tmp_path / "whole", *more), environment).code == 0
    folder, draw = tmp_path / "killed", random.Random(processes)
    words = commands.options(folder, *more, "train.checkpoint_minutes=0.002")
    for number in [signal.SIGKILL, signal.SIGTERM] * 10:
        process = commands.start(words, environment)
        if draw.random() < 0.8:  # else anywhere: while Python still loads, too
            _wait_for_growth(folder, process)
        time.sleep(draw.uniform(0, 1.5))
        process.send_signal(number)
        done = commands.finish(process)
        assert done.code in (0, -number, 128 + number), done.err
        if number == signal.SIGKILL and processes > 1:
            _wait_for_orphans(folder)
    done = commands.run(words, environment)
    assert done.code == 0, done.err
    commands.assert_same_result(tmp_path / "whole", folder)


def _wait_for_growth(folder: Path, process: subprocess.Popen[str]) -> None:
    files = list((folder / "runs").glob("*/*/timing.jsonl"))
    size = files[0].stat().st_size if files else 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        files = list((folder / "runs").glob("*/*/timing.jsonl"))
        if files and files[0].stat().st_size > size:
            return
        time.sleep(0.01)


def _wait_for_orphans(folder: Path) -> None:
    """The copies of a launcher that was killed save and stop by themselves; their lock goes with them."""
    import fcntl

    deadline = time.monotonic() + 60
    for path in (folder / "runs").glob("*/*/.lock"):
        with path.open("a+") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, "a copy outlives its launcher"
                    time.sleep(0.1)
