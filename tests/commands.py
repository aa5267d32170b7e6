"""Running `scripts/train.py`, as a process or inside this one, and looking at what it leaves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).resolve().parent.parent
# 15 epochs of 4 steps on noise: two seconds of training once everything is loaded, and pictures would take longer.
TINY = (
    "experiment=imagenet-resnet18", "data=synthetic", "data.train_examples=64", "data.val_examples=40",
    "data.num_classes=10", "data.image_size=32", "model.width=0.125", "train.batch_size=16", "train.epochs=15",
    "train.log_every=3", "train.probe_every=2", "train.threads=1", "train.progress=false", "train.device=cpu",
    "pictures=false",
)  # fmt: skip


@dataclass
class Done:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str


def options(folder: Path, *more: str) -> list[str]:
    """Return a tiny run's arguments with its results below `folder`; later arguments win over TINY's."""
    given = {word.split("=")[0] for word in more}
    kept = [word for word in TINY if word.split("=")[0] not in given]
    return [*kept, *more, f"paths.runs={folder}/runs", f"paths.reports={folder}/reports"]


def importing(root: Path, env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment in which a file of `root` imports the code beside it, as an editable install does."""
    path = [str(root), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(path)}


def start(words: Sequence[str], env: dict[str, str], *, root: Path = ROOT) -> subprocess.Popen[str]:
    """Start `python scripts/train.py WORDS`; from another folder than the root, since that must not matter."""
    return subprocess.Popen(
        [sys.executable, str(root / "scripts" / "train.py"), *words],
        cwd=root.parent, env=importing(root, env), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], *, seconds: float = 300) -> Done:
    """Wait for a started command."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {seconds} s:\n{out}\n{err}") from None
    return Done(process.returncode, out, err)


def run(words: Sequence[str], env: dict[str, str], *, root: Path = ROOT) -> Done:
    """Run `python scripts/train.py WORDS` to its end."""
    return finish(start(words, env, root=root))


def call(*words: str, env: dict[str, str] | None = None) -> Done:
    """Call the command's `main` in this process: seconds saved a call.

    Args:
        words: Its arguments.
        env: Variables for the processes that it starts.
    """
    from launch.train import main

    out, err, threads = io.StringIO(), io.StringIO(), torch.get_num_threads()
    with (
        mock.patch.dict(os.environ, env or {}, clear=env is not None),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            torch.set_num_threads(threads)
    return Done(code, out.getvalue(), err.getvalue())


@dataclass
class Cost:
    """What a process took: seconds, seconds of processors, and the most memory it held, in MiB."""

    code: int
    text: str
    seconds: float
    cpu_seconds: float
    peak_mib: float


# A process is born with its parent's peak of memory; so a small one stands between.
COSTS = """
import json, os, subprocess, sys, time
begun = time.monotonic()
process = subprocess.Popen(sys.argv[2:], stderr=subprocess.STDOUT, stdout=open(sys.argv[1], "w"))
_, status, used = os.wait4(process.pid, 0)
code = os.waitstatus_to_exitcode(status)
print(json.dumps([code, time.monotonic() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""


def measured(words: Sequence[str], log: Path) -> Cost:
    """Run a script of the suite to its end, its words into `log`; what ran before it counts for nothing."""
    command = [sys.executable, "-c", COSTS, str(log), sys.executable, *words]
    done = subprocess.run(command, cwd=ROOT, env=importing(ROOT), stdout=subprocess.PIPE, text=True, check=True)
    code, seconds, cpu_seconds, peak_mib = json.loads(done.stdout)
    print(f"{words[0]}: {seconds:.1f} s, {cpu_seconds:.1f} of CPU, {peak_mib:.0f} MiB")
    return Cost(code, log.read_text(), seconds, cpu_seconds, peak_mib)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 120) -> None:
    """Wait for something a running command does; fail when it ends before."""
    deadline = time.monotonic() + seconds
    while not true():
        if process.poll() is not None:
            out, err = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before it could be disturbed:\n{out}\n{err}")
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.002)


def run_folder(folder: Path) -> Path:
    """Return the one run below `folder`."""
    (found,) = (folder / "runs" / "imagenet-resnet18").iterdir()
    return found


def checkpoint(folder: Path) -> Callable[[], bool]:
    """Return a question: does the run below `folder` have a checkpoint?"""
    return lambda: any((folder / "runs").glob("*/*/checkpoints/last.pt"))


def lines(folder: Path, number: int) -> Callable[[], bool]:
    """Return a question: does the run below `folder` have a checkpoint and so many lines of metrics?"""

    def question() -> bool:
        found = list((folder / "runs").glob("*/*/metrics.jsonl"))
        return checkpoint(folder)() and bool(found) and found[0].read_bytes().count(b"\n") >= number

    return question


def record(folder: Path) -> dict[str, Any]:
    """Return the run.json of the one run below `folder`."""
    found: dict[str, Any] = json.loads((run_folder(folder) / "run.json").read_text())
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint, flat."""
    networks = torch.load(path, map_location="cpu", weights_only=True)["networks"]
    return {f"{role}.{name}": value for role, net in networks.items() for name, value in net.items()}


def assert_same_result(one: Path, other: Path) -> None:
    """Compare two finished runs bit by bit: weights, best weights and metrics."""
    one, other = run_folder(one), run_folder(other)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    for name in ("last.pt", "best.pt"):
        a, b = weights(one / "checkpoints" / name), weights(other / "checkpoints" / name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {different}"
