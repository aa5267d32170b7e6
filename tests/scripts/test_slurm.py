"""`launcher=slurm` on a real cluster, which the test starts on this machine: preemption, requeue, time limit.

The default run has one cell of two processes that is preempted and goes on. The whole grid, and the time limit, which
SLURM counts in minutes, are marked slow.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

import launch.compose  # noqa: F401  registers the schema of train.*
from evidence.runs import progress
from tests import commands
from tests.scripts import slurm_cluster

pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra slurm is not installed")
Start = Callable[..., "subprocess.Popen[str]"]
# Two processes of one thread each, on cores that have no GPU.
PLACE = [
    "launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=1",
]  # fmt: skip


@pytest.fixture(name="cluster", scope="module")
def _cluster() -> Iterator[dict[str, str]]:
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster() as env:
        yield env


@pytest.fixture(autouse=True)
def _here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "cluster" in request.fixturenames:
        for key, value in request.getfixturevalue("cluster").items():
            monkeypatch.setenv(key, value)


@pytest.fixture(name="start")
def _start(environment: dict[str, str], cluster: dict[str, str]) -> Iterator[Start]:
    """Start sweeps on the cluster; whatever still runs at the end of the test goes, its jobs too."""
    started: list[subprocess.Popen[str]] = []

    def start(*given: str) -> subprocess.Popen[str]:
        started.append(commands.start([*given, *PLACE], {**environment, **cluster}))
        return started[-1]

    yield start
    if left := [process for process in started if process.poll() is None]:
        slurm_cluster.ask(cluster, "scancel", "-u", "root")
    for process in left:
        process.kill()
        process.communicate()


def words(folder: Path, *more: str) -> list[str]:
    return commands.options(folder, "gpus=2", "hydra.mode=MULTIRUN", f"hydra.sweep.dir={folder}/sweep", *more)


def begun(folder: Path, at_least: int = 4) -> list[Path]:
    """Return the run folders that have so many lines of metrics and are not finished."""
    found = [path for path in folder.glob("runs/*/*/metrics.jsonl") if path.read_bytes().count(b"\n") >= at_least]
    return [path.parent for path in found if record(path.parent)["status"] == "running"]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def job_of(folder: Path) -> str:
    return str(json.loads((folder / "launch.json").read_text())["job"])


def preempt(cluster: dict[str, str], *more: str) -> None:
    """Ask for the whole node in the partition that may take it from others."""
    slurm_cluster.ask(cluster, "sbatch", *more, "-p", "high", "-n", "2", "-o", "/dev/null", "--wrap", "sleep 2")


def signalled(cluster: dict[str, str], job: str) -> None:
    """Send a job what SLURM sends before its time limit."""
    words = ["scancel", "--signal=USR2", job]
    done = subprocess.run(words, env={**os.environ, **cluster}, capture_output=True, text=True, timeout=240)
    # A job may hear it and leave the queue before scancel has its answer; that it did is seen in its record.
    assert done.returncode == 0 or "Job can not be altered now" in done.stderr, done.stderr


def assert_same_runs(one: Path, other: Path, *, number: int) -> None:
    """Compare the runs of two sweeps bit by bit."""
    a, b = (sorted((folder / "runs" / "imagenet-resnet18").iterdir()) for folder in (one, other))
    assert [path.name for path in a] == [path.name for path in b]
    assert len(a) == number
    for left, right in zip(a, b, strict=True):
        assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
        ours, theirs = (commands.weights(folder / "checkpoints" / "last.pt") for folder in (left, right))
        assert all(ours[key].equal(theirs[key]) for key in ours)


def assert_as_local(tmp_path: Path, run: Sequence[str], *, env: dict[str, str], number: int) -> None:
    """Repeat the runs of `tmp_path / "slurm"` with the local launcher and compare them bit by bit."""
    local = commands.call(*words(tmp_path / "local", *run), env=env)
    assert local.code == 0, local.err
    assert_same_runs(tmp_path / "slurm", tmp_path / "local", number=number)


# Without a cluster ------------------------------------------------------------------------------------------------


def test_a_job_has_a_task_a_gpu_and_is_queued_again_at_its_time_limit() -> None:
    with initialize_config_dir(str(commands.ROOT / "configs"), version_base="1.3"):
        cfg = compose("train", ["launcher=slurm", "gpus=4"], return_hydra_config=True)
    launcher = cfg.hydra.launcher
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.nodes) == (4, 4, 1)
    assert launcher.additional_parameters.requeue
    assert launcher.max_num_timeout > 0
    assert launcher.timeout_min > 12
    assert launcher.signal_delay_s > 60


def test_a_job_leaves_an_exit_code_and_one_that_crashed_counts_as_failed(tmp_path: Path) -> None:
    from launch.cell import returned
    from launch.slurm import result

    path = tmp_path / "result.pkl"
    assert result(path) is None
    for left, code in ((("success", returned(0, ())), 0), (("success", returned(2, ())), 2), (("error", "why"), 1)):
        path.write_bytes(pickle.dumps(left))
        assert result(path) == code


# With one ---------------------------------------------------------------------------------------------------------


def test_a_preempted_run_of_two_processes_goes_on_and_leaves_the_bits_of_the_local_launcher(
    tmp_path: Path, cluster: dict[str, str], environment: dict[str, str], start: Start
) -> None:
    run = ["train.epochs=40", "train.checkpoint_minutes=1000"]
    env = {**environment, **cluster}
    process = start(*words(tmp_path / "slurm", *run))
    commands.wait_until(lambda: bool(begun(tmp_path / "slurm")), process)
    (folder,) = begun(tmp_path / "slurm")
    assert progress.read_progress(folder).status == "running"
    preempt(cluster)

    def queued() -> bool:
        progress.queue.cache_clear()
        found = progress.read_progress(folder)
        return found.status == "waiting" and "queued again" in found.reason

    commands.wait_until(queued, process)
    done = commands.finish(process)
    assert done.code == 0, done.err + done.out
    assert "[1/1] finished  job" in done.out
    found = record(folder)
    assert (found["status"], found["hardware"]["processes"], len(found["resumed_from"])) == ("finished", 2, 1)
    assert "a checkpoint is saved" in Path(found["log"]).read_text()

    again = commands.call(*words(tmp_path / "slurm", *run), *PLACE, env=env)
    assert "1 of 1 cells were finished before" in again.out
    assert_as_local(tmp_path, run, env=env, number=1)


@pytest.mark.slow
def test_a_grid_with_a_preempted_and_a_signalled_cell_equals_that_of_the_local_launcher_bitwise(
    tmp_path: Path, cluster: dict[str, str], environment: dict[str, str], start: Start
) -> None:
    run = ["train.epochs=40", "train.checkpoint_minutes=1000", "opt=sgd,adamp", "train.seed=0,1"]
    env = {**environment, **cluster}
    process = start(*words(tmp_path / "slurm", *run))
    commands.wait_until(lambda: bool(begun(tmp_path / "slurm")), process, seconds=300)
    (first,) = begun(tmp_path / "slurm")
    preempt(cluster, "--wait")  # until then another cell may begin and be preempted too
    commands.wait_until(lambda: bool(begun(tmp_path / "slurm")) and begun(tmp_path / "slurm") != [first], process)
    (second,) = begun(tmp_path / "slurm")
    signalled(cluster, job_of(second))
    done = commands.finish(process, seconds=900)
    assert done.code == 0, done.err + done.out
    assert "[4/4] finished" in done.out
    assert len(record(first)["resumed_from"]) == 1
    assert record(second)["resumed_from"]
    assert_as_local(tmp_path, run, env=env, number=4)


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_goes_on_and_a_cancelled_one_is_told_and_retried(
    tmp_path: Path, cluster: dict[str, str], environment: dict[str, str], start: Start
) -> None:
    run = ["train.epochs=4000", "train.checkpoint_minutes=1000", "train.eval_epochs=4000"]
    limits = ["hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=60"]
    env = {**environment, **cluster}
    process = start(*words(tmp_path, *run), *limits)
    commands.wait_until(lambda: bool(begun(tmp_path)), process, seconds=300)
    (folder,) = begun(tmp_path)
    commands.wait_until(lambda: bool(record(folder)["resumed_from"]), process, seconds=400)
    assert "this job is timed-out" in Path(record(folder)["log"]).read_text()
    known = (folder / "metrics.jsonl").read_bytes().count(b"\n")
    commands.wait_until(lambda: bool(begun(tmp_path, known + 2)), process, seconds=300)
    slurm_cluster.ask(cluster, "scancel", job_of(folder))
    done = commands.finish(process)
    assert done.code == 128 + 15, done.err + done.out
    progress.queue.cache_clear()
    found = progress.read_progress(folder)
    assert (found.status, found.retriable) == ("interrupted", True)

    words_of = record(folder)["argv"]
    retried = subprocess.run(
        [sys.executable, str(commands.ROOT / "scripts" / "retry.py"), f"runs={tmp_path}/runs", "--dry"],
        env=commands.importing(commands.ROOT, env), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (
        f"python scripts/train.py {' '.join(word for word in words_of if word != 'launcher=slurm')}" in retried.stdout
    )
