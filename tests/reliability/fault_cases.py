"""The faults that `tests/reliability/faults.py` injects, by kind. A case raises where its fault is not survived.

Most disturb a toy run in this process: it must end in a line or two or go on with a warning, lose no file, and end,
when the same command is given again, with the weights and metrics of a run that was never disturbed, bit for bit.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch

from adamp.kernels import cpu_build
from evidence.runs import progress
from launch import trust
from launch.cell import Cell
from launch.checkout import ROOT
from launch.local import Packing
from launch.on_ray import cell_environment
from launch.targets import check_targets, load
from scripts import retry
from tasks.base import InputError, Shard
from tasks.data.cache import cache_folder
from tasks.engine import checkpoint, dead_workers, provenance, run_record, trainer
from tasks.engine.errors import Diverged, RunFailed, Stopped, translate_errors
from tasks.engine.loggers import WandbLogger
from tasks.engine.run_record import RunRecord
from tasks.weights import read_weights
from tests import commands
from tests.engine import toys
from tests.run_folders import write_run

CONFIG: dict[str, Any] = {"experiment_name": "toys"}
DEAD = (1 << 22) + 1  # above the kernel's largest process number
HALF = 5  # the step at which most runs are stopped


class Case(NamedTuple):
    """One fault: its kind, its name within the kind, and the function that injects it into a folder."""

    kind: str
    name: str
    inject: Callable[[Path], None]


class SkippedError(Exception):
    """The machine cannot make this fault; the text says why."""


CASES: list[Case] = []


def fault(kind: str, *names: str) -> Callable[[Callable[[Path, str], None]], Callable[[Path, str], None]]:
    """Register a function as one case for each name."""

    def register(inject: Callable[[Path, str], None]) -> Callable[[Path, str], None]:
        CASES.extend(Case(kind, name, functools.partial(inject, name=name)) for name in names)  # type: ignore[call-arg]
        return inject

    return register


# --------------------------------------------------------------------------------------------------------- helpers


def failing(name: str) -> Callable[..., Any]:
    """Return a function that fails with an error number of the system, by its name."""
    number = getattr(errno, name)

    def call(*args: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


@contextlib.contextmanager
def refused(*kinds: type[BaseException], says: str = "") -> Iterator[None]:
    """Expect an error of one or two lines with these words."""
    try:
        yield
    except kinds as error:
        text = str(error)
        assert says in text and len(text.splitlines()) <= 3, f"it says {text!r}"
    else:
        raise AssertionError("nothing was said")


@contextlib.contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning."""
    said: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, root = Collect(logging.WARNING), logging.getLogger()
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)


def trained(folder: Path, task: toys.Toy | None = None, **options: Any) -> trainer.Trainer:
    """Train a toy run to its end, or to the error that ends it."""
    made = toys.trainer(task or toys.Toy(), folder, **{"progress": False, **options})
    try:
        with translate_errors():
            made.fit()
    finally:
        toys.close(made)
        toys.OPEN.clear()
    return made


def stopped(folder: Path, step: int = HALF) -> Path:
    """Train a toy run and stop it after a step; return its checkpoint."""
    task = toys.Toy()
    task.before_step = toys.kill_at(step)
    with contextlib.suppress(Stopped):
        trained(folder, task)
    return folder / "checkpoints" / "last.pt"


@functools.cache
def undisturbed() -> tuple[dict[str, torch.Tensor], bytes]:
    """Return weights and metrics of a run that nothing disturbs."""
    with tempfile.TemporaryDirectory() as folder:
        made = trained(Path(folder) / "r")
        return toys.weights(made), (Path(folder) / "r" / "metrics.jsonl").read_bytes()


def goes_on(folder: Path, **options: Any) -> trainer.Trainer:
    """Train to the end, and compare with the run that nothing disturbs."""
    for worker in multiprocessing.active_children():  # of a loader that an error still holds: they share the run's lock
        worker.kill()
        worker.join()
    made = trained(folder, **options)
    weights, metrics = undisturbed()
    assert all(torch.equal(value, weights[name]) for name, value in toys.weights(made).items()), "weights differ"
    assert (folder / "metrics.jsonl").read_bytes() == metrics, "metrics differ"
    assert not list(folder.rglob("*.tmp")), "half a file is left"
    return made


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file, the lock aside."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def patched(target: Any, name: str, value: Any) -> Any:
    return mock.patch.object(target, name, value)


# ------------------------------------------------------------------------------------------- reading what was saved


@fault("a checkpoint cannot be read now", "ESTALE", "EIO", "EACCES", "ETIMEDOUT", "ENOMEM")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    before = files(folder)
    with (
        patched(checkpoint, "_load", failing(name)),
        patched(checkpoint, "RETRY_SECONDS", (0.0,)),
        refused(InputError, says="cannot be read now"),
    ):
        trained(folder)
    after = files(folder)
    assert {k: v for k, v in after.items() if k != "run.json"} == {k: v for k, v in before.items() if k != "run.json"}
    goes_on(folder)


@fault("a checkpoint is read at the second try", "ESTALE", "EIO", "EAGAIN")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    read, left = checkpoint._load, [1]

    def once(path: Path) -> Any:
        if left:
            left.clear()
            failing(name)()
        return read(path)

    with patched(checkpoint, "_load", once), patched(checkpoint, "RETRY_SECONDS", (0.0,)):
        goes_on(folder)


@fault("memory ends while a checkpoint is read", "python", "torch")
def _(folder: Path, name: str) -> None:
    stopped(folder)

    def no_memory(*args: Any, **options: Any) -> Any:
        raise MemoryError if name == "python" else RuntimeError("[enforce fail] can't allocate memory")

    with (
        patched(torch, "load", no_memory),
        patched(checkpoint, "RETRY_SECONDS", (0.0,)),
        refused(InputError, says="cannot be read now"),
    ):
        trained(folder)
    goes_on(folder)


@fault("a checkpoint is of a newer version", "format")
def _(folder: Path, name: str) -> None:
    path = stopped(folder)
    with patched(checkpoint, "FORMAT", 99):
        contents = torch.load(path, weights_only=True)
        torch.save({**contents, "format": 99}, path)
    kept = path.read_bytes()
    with refused(InputError, says="a newer one wrote it"):
        trained(folder)
    assert path.read_bytes() == kept
    torch.save(contents, path)
    goes_on(folder)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda whole: whole[: len(whole) // 2], "empty": lambda whole: b"", "zeros": lambda whole: bytes(len(whole)),
    "a web page": lambda whole: b"<html>", "no directory": lambda whole: whole[:-40],
}  # fmt: skip


@fault("a checkpoint is damaged", *DAMAGE)
def _(folder: Path, name: str) -> None:
    path = stopped(folder)
    path.with_suffix(".previous.pt").write_bytes(path.read_bytes())
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with refused(InputError, says="run the same command again to resume from the checkpoint before it"):
        trained(folder)
    goes_on(folder)


@fault("the only checkpoint is damaged", *DAMAGE)
def _(folder: Path, name: str) -> None:
    path = stopped(folder)
    path.with_suffix(".previous.pt").unlink(missing_ok=True)
    whole = path.read_bytes()
    path.write_bytes(DAMAGE[name](whole))
    with refused(InputError, says="train.restart=true"):
        trained(folder)
    with refused(InputError, says="train.restart=true"):  # a loop of restarts starts nothing over
        trained(folder)
    path.write_bytes(whole)
    goes_on(folder)


@fault("the folder of checkpoints cannot be listed", "EIO", "ESTALE")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    with (
        patched(Path, "iterdir", failing(name)),
        patched(checkpoint, "RETRY_SECONDS", (0.0,)),
        refused(InputError, says="cannot be read now"),
    ):
        trained(folder)
    goes_on(folder)


@fault("run.json is damaged", "cut", "empty", "a list", "a wrong type", "nested too deeply")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    path = folder / "run.json"
    whole = path.read_text()
    path.write_text({"cut": whole[: len(whole) // 2], "empty": "", "a list": "[1]", "nested too deeply": "[" * 99999,
                     "a wrong type": json.dumps({**json.loads(whole), "segments": "none"})}[name])  # fmt: skip
    kept = path.read_bytes()
    with refused(InputError, says="move the folder away or repair it"):
        trained(folder)
    assert path.read_bytes() == kept
    path.write_text(whole)
    goes_on(folder)


@fault("metrics are lost", "cut", "missing")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    path = folder / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:20]) if name == "cut" else path.unlink()
    with refused(InputError, says="lines were lost"):
        trained(folder)
    path.write_bytes(whole)
    goes_on(folder)


@fault("the data are others on resuming", "name", "train_examples", "digest")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    made = RunRecord(folder, name="toy", config=CONFIG)
    made.update(data={"name": "toy", "train_examples": 48, "digest": "a"})
    with refused(InputError, says="holds a run on other data"):
        made.check_data({"name": "toy", "train_examples": 48, "digest": "a", name: "another"})
    made.close()
    goes_on(folder)


# ------------------------------------------------------------------------------------------------- writing to disks


@fault("a checkpoint cannot be written", "ENOSPC", "EDQUOT", "EIO", "EFBIG", "EROFS", "ESTALE")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    with patched(torch, "save", failing(name)), refused(InputError, says="cannot save a checkpoint"):
        trained(folder)
    goes_on(folder)


@fault("the quota is reached in the middle of a line or file", "300", "700", "1500", "4000", "9000")
def _(folder: Path, name: str) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(name), hard))
        with refused(InputError, says="File too large"):
            trained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    goes_on(folder)


@fault("the file system knows no fsync", "EINVAL", "ENOSYS", "ENOTSUP")
def _(folder: Path, name: str) -> None:
    checkpoint._warn_unsupported.cache_clear()
    with patched(os, "fsync", failing(name)), warnings() as said:
        goes_on(folder)
    assert any("does not support fsync" in line for line in said)


@fault("fsync fails", "EIO", "ENOSPC")
def _(folder: Path, name: str) -> None:
    with patched(os, "fsync", failing(name)), refused(InputError, says="again to resume"):
        trained(folder)
    goes_on(folder)


@fault("a folder knows no fsync", "EINVAL", "EIO", "EACCES")
def _(folder: Path, name: str) -> None:
    fsync = os.fsync

    def for_files(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir():
            failing(name)()
        fsync(handle)

    with patched(os, "fsync", for_files):
        goes_on(folder)


@fault("the file system has no locks", "ENOSYS", "ENOLCK", "ENOTSUP")
def _(folder: Path, name: str) -> None:
    with patched(fcntl, "flock", failing(name)), warnings() as said:
        goes_on(folder)
    assert any("has no locks" in line for line in said)


@fault("a checkpoint cannot be renamed", "ESTALE", "EIO", "EPERM")
def _(folder: Path, name: str) -> None:
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Any:
        return failing(name)() if path.name == "last.tmp" else replace(path, target)

    with patched(Path, "replace", refuse), refused(InputError, says="cannot save a checkpoint"):
        trained(folder)
    (folder / "checkpoints" / "last.tmp").unlink(missing_ok=True)
    goes_on(folder)


@fault("the file system knows no hard links", "EPERM", "EMLINK", "ENOTSUP")
def _(folder: Path, name: str) -> None:
    with patched(Path, "hardlink_to", failing(name)):
        goes_on(folder)


@fault("the results' folder cannot be made", "EROFS", "EACCES", "ENOSPC")
def _(folder: Path, name: str) -> None:
    with patched(Path, "mkdir", failing(name)), refused(InputError, says="set paths.runs"):
        trained(folder / "r")
    goes_on(folder / "r")


@fault("too many files are open", "none left")
def _(folder: Path, name: str) -> None:
    stopped(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    task = toys.Toy()

    def exhaust() -> None:
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft:
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))

    task.before_step = exhaust
    try:
        with refused(InputError, says=" again"):
            trained(folder, task)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    goes_on(folder)


# --------------------------------------------------------------------------------------- signals, clocks, processes

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2")


@fault("a signal in training", *SIGNALS)
def _(folder: Path, name: str) -> None:
    task = toys.Toy()
    task.before_step = toys.kill_at(HALF, signal.Signals[name])
    if name == "SIGUSR1":
        trained(folder, task)
    else:
        with refused(Stopped, says=name):
            trained(folder, task)
        assert json.loads((folder / "run.json").read_text())["segments"][0]["from_step"] == 0
    goes_on(folder)


@fault("a signal while a checkpoint is written", *SIGNALS)
def _(folder: Path, name: str) -> None:
    save, count = checkpoint.save, [0]

    def disturbed(path: Path, contents: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            os.kill(os.getpid(), signal.Signals[name])
        save(path, contents)

    with patched(checkpoint, "save", disturbed), contextlib.suppress(Stopped):
        trained(folder, checkpoint_minutes=0)
    goes_on(folder)


@fault("a signal in evaluation", *SIGNALS)
def _(folder: Path, name: str) -> None:
    class Signalled(toys.Toy):
        def predict(self, *args: Any) -> Any:
            if not sent:
                sent.append(name)
                os.kill(os.getpid(), signal.Signals[name])
            return super().predict(*args)

    sent: list[str] = []
    with contextlib.suppress(Stopped):
        trained(folder, Signalled())
    goes_on(folder)


@fault("the terminal closes under nohup", "SIGHUP")
def _(folder: Path, name: str) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    task = toys.Toy()
    task.before_step = toys.kill_at(HALF, signal.SIGHUP)
    try:
        assert trained(folder, task).state.progress.step == 12
    finally:
        signal.signal(signal.SIGHUP, previous)


@fault("the clock is set back", "an hour", "ten years")
def _(folder: Path, name: str) -> None:
    calls = [0]

    class Backwards(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            calls[0] += 1
            year = 2030 - 10 * (calls[0] % 2) if name == "ten years" else 2030
            return datetime(year, 1, 1, 23 - calls[0] % 20, tzinfo=UTC)

    with patched(provenance, "datetime", Backwards), patched(time, "time", lambda: 1e9 - 3600 * calls[0]):
        stopped(folder)
        goes_on(folder)
    assert 0 <= json.loads((folder / "run.json").read_text())["wall_time_s"] < 600


@fault("two processes run one folder", "now", "a dead one left its lock")
def _(folder: Path, name: str) -> None:
    if name == "now":
        with RunRecordOpen(folder), refused(InputError, says="is being run by process"):
            trained(folder)
    else:
        folder.mkdir(exist_ok=True)
        (folder / ".lock").write_text(str(DEAD))
    goes_on(folder)


class RunRecordOpen:
    """A run of the folder that goes on."""

    def __init__(self, folder: Path) -> None:
        self.record = RunRecord(folder, name="toy", config=CONFIG)

    def __enter__(self) -> None:
        return None

    def __exit__(self, *args: Any) -> None:
        self.record.close()


class Disturbed(toys.Toy):
    """Loads in another process, or here; something happens where the third batch of the second epoch is loaded."""

    def __init__(self, happens: Callable[[], None], workers: int = 1) -> None:
        super().__init__()
        self.happens, self.workers = happens, workers

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Any]:
        def at_third(number: int) -> None:
            if epoch == 1 and number == 2:
                self.happens()

        return toys.Loaded(super().train_batches(epoch, shard, start), at_third, num_workers=self.workers)


def _raise(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


def _sleep() -> None:
    while True:
        time.sleep(60)


@fault("a data loading process dies", "SIGKILL", "SIGSEGV", "SIGBUS")
def _(folder: Path, name: str) -> None:
    def die() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), signal.Signals[name])

    with refused(RunFailed, says="a data loading process was killed"):
        trained(folder, Disturbed(die), checkpoint_minutes=0, num_workers=1)
    goes_on(folder)


@fault("a batch never comes", "in a worker", "in this process")
def _(folder: Path, name: str) -> None:
    workers = int(name == "in a worker")
    with refused(RunFailed, says="no batch came within train.timeout_minutes"):
        trained(folder, Disturbed(_sleep, workers), checkpoint_minutes=0, timeout_minutes=0.02, num_workers=workers)
    goes_on(folder)


@fault("a signal while a batch is waited for", "SIGTERM", "SIGINT", "SIGHUP")
def _(folder: Path, name: str) -> None:
    made = toys.trainer(Disturbed(_sleep), folder, progress=False, num_workers=1)
    toys.kill_while_waiting(made, 6, signal.Signals[name])
    with patched(dead_workers, "STOP_SECONDS", 0.2), refused(Stopped, says=name):
        made.fit()
    toys.close(made)
    assert goes_on(folder).record.entries["resumed_from"] == [6]  # type: ignore[union-attr]


@fault("the shared memory is full", "ENOSPC")
def _(folder: Path, name: str) -> None:
    error = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
    with (
        patched(torch.Tensor, "share_memory_", lambda tensor: _raise(error)()),
        refused(RunFailed, says="the shared memory is full"),
    ):
        trained(folder, Disturbed(lambda: None), num_workers=1, checkpoint_minutes=0)
    goes_on(folder)


@fault("a picture cannot be read", "in a worker", "in this process")
def _(folder: Path, name: str) -> None:
    workers = int(name == "in a worker")
    with refused(InputError, says="picture 7"):
        trained(folder, Disturbed(_raise(InputError("picture 7 cannot be read")), workers), checkpoint_minutes=0)
    goes_on(folder)


@fault("memory ends in a step", "python", "torch")
def _(folder: Path, name: str) -> None:
    task, seen = toys.Toy(), [0]

    def hook() -> None:
        seen[0] += 1
        if seen[0] == HALF:
            bytearray(2**62) if name == "python" else torch.empty(2**55)

    task.before_step = hook
    with refused(RunFailed, says="out of memory"):
        trained(folder, task, checkpoint_minutes=0)
    goes_on(folder)


@fault("a number is not finite", "a weight")
def _(folder: Path, name: str) -> None:
    task, seen = toys.Toy(), [0]

    def hook() -> None:
        seen[0] += 1
        if seen[0] == 10:
            next(task.networks["model"].parameters()).data.fill_(float("nan"))

    task.before_step = hook
    with refused(Diverged, says="not finite"):
        trained(folder, task, checkpoint_minutes=0)
    goes_on(folder)


def _pair(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run two processes of a run under the suite's own launcher."""
    line = [sys.executable, "-m", module, *words]
    code = f"import sys; from tasks.engine.processes import spawn; sys.exit(spawn({line!r}, 2, grace_seconds=30))"
    env = commands.importing(ROOT, {**os.environ, "OMP_NUM_THREADS": "1"})
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


@fault("one of two processes cannot read", "a batch", "the checkpoint")
def _(folder: Path, name: str) -> None:
    if name == "the checkpoint":
        trained(folder)
    done = _pair("tests.reliability.test_waiting", str(folder), "reading" if name == "a batch" else "loading")
    assert done.returncode == 2 and "process 1" in done.stderr and "Traceback" not in done.stderr, done.stderr


@fault("one of two processes dies", "SIGKILL")
def _(folder: Path, name: str) -> None:
    done = _pair("tests.reliability.test_faults", str(folder), "dies")
    assert done.returncode and "Traceback" not in done.stderr, done.stderr


@fault("a rank dies and comes back", "torchrun")
def _(folder: Path, name: str) -> None:
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=2",
            "-m", "tests.reliability.test_waiting", str(folder), "comes back"]  # fmt: skip
    env = commands.importing(ROOT, {**os.environ, "OMP_NUM_THREADS": "1"})
    done = subprocess.run([sys.executable, *line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((folder / "run.json").read_text())
    assert len(record["segments"]) == 2 and record["resumed_from"], record["segments"]


# -------------------------------------------------------------------------------------------------- what was trained

FACTS: dict[str, Callable[..., Any]] = {
    "git_state": lambda root: {"commit": "a" * 40, "dirty": False},
    "versions": lambda: {"torch": "1.0", "python": "3.11"},
    "hardware": lambda processes: {"machine": "m", "cpu": "c", "gpus": [], "processes": 1},
}
OTHERS: dict[str, tuple[str, Callable[..., Any], str]] = {
    "commit": ("git_state", lambda root: {"commit": "b" * 40, "dirty": False}, "commit aaaaaaaaaa -> bbbbbbbbbb"),
    "changes": ("git_state", lambda root: {"commit": "a" * 40, "dirty": True}, "uncommitted changes: without -> with"),
    "torch": ("versions", lambda: {"torch": "2.0", "python": "3.11"}, "torch 1.0 -> 2.0"),
    "python": ("versions", lambda: {"torch": "1.0", "python": "3.12"}, "python 3.11 -> 3.12"),
    "processes": (
        "hardware", lambda n: {"machine": "m", "cpu": "c", "gpus": [], "processes": 2}, "processes 1 -> 2",
    ),
    "processor": ("hardware", lambda n: {"machine": "o", "cpu": "d", "gpus": [], "processes": 1}, "cpu c -> d"),
    "GPU": ("hardware", lambda n: {"machine": "o", "cpu": "c", "gpus": ["H"], "processes": 1}, "gpus none -> ['H']"),
}  # fmt: skip


@fault("a run is resumed on something else", *OTHERS)
def _(folder: Path, name: str) -> None:
    with contextlib.ExitStack() as stack:
        for fact, value in FACTS.items():
            stack.enter_context(patched(run_record, fact, value))
        stopped(folder)
        fact, value, expected = OTHERS[name]
        stack.enter_context(patched(run_record, fact, value))
        said = stack.enter_context(warnings())
        goes_on(folder)
    assert any(expected in line for line in said), said
    assert len(json.loads((folder / "run.json").read_text())["segments"]) == 2


@fault("a run is resumed with what changes its numbers", "accumulation", "precision", "threads", "batch_size", "device")
def _(folder: Path, name: str) -> None:
    config = {**CONFIG, "train": {name: 1}}
    made = RunRecord(folder, name="r", config=config)
    made.update(status="interrupted")
    made.close()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.pt").touch()
    with refused(InputError, says=f"train.{name}: 1 -> 2"):
        RunRecord(folder, name="r", config={**config, "train": {name: 2}})


def _git(folder: Path, *words: str) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, env=env, capture_output=True)


def _repository(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    _git(folder, "init", "-q")
    _git(folder, "commit", "-q", "--allow-empty", "-m", folder.name)
    commit = provenance.git_state(folder)["commit"]
    assert commit
    return commit


@fault("git speaks of another repository", "GIT_DIR", "an outer one", "a submodule", "none", "no git")
def _(folder: Path, name: str) -> None:
    inner = folder / "outer" / "inner"
    foreign = _repository(folder / "foreign")
    own = _repository(folder / "outer")
    if name == "a submodule":
        _git(folder / "outer", "submodule", "add", "-q", str(folder / "foreign"), "inner")
        _git(folder / "outer", "commit", "-qm", "m")
        (inner / "changed").write_text("x")
        assert provenance.git_state(inner) == {"commit": foreign, "dirty": True}
        assert provenance.git_state(folder / "outer")["dirty"] is True
        return
    inner.mkdir()
    if name == "GIT_DIR":
        with mock.patch.dict(os.environ, {"GIT_DIR": str(folder / "foreign" / ".git")}):
            assert provenance.git_state(folder / "outer")["commit"] == own
    elif name == "no git":
        with mock.patch.dict(os.environ, {"PATH": str(folder)}):
            assert provenance.git_state(folder / "outer") == {"commit": None, "dirty": None}
    else:
        assert provenance.git_state(inner if name == "an outer one" else folder) == {"commit": None, "dirty": None}


@fault("a run was moved", "its folder", "renamed")
def _(folder: Path, name: str) -> None:
    made = write_run(folder / "old", seed=0, change={"status": "interrupted", "argv": ["opt=sgd"]})
    (folder / "old").rename(folder / "new")
    moved = folder / "new" / made.parent.name / made.name
    if name == "renamed":
        moved = moved.rename(moved.with_name("other"))
        with refused(InputError, says="its record names it"):
            retry.words_of(progress.read_progress(moved), retry.Options(folder / "new"))
    else:
        words = retry.words_of(progress.read_progress(moved), retry.Options(folder / "new"))
        assert words == ["opt=sgd", f"paths.runs={folder}/new"], words


LAUNCHERS: dict[str, tuple[dict[str, Any], bool]] = {
    "its number is another process's": ({"begun": 1}, False), "it is dead": ({"pid": DEAD}, False),
    "it is dead and the host renamed": ({"pid": DEAD, "host": "old"}, False),
    "the machine was started again": ({"boot": "before"}, False), "it is alive": ({}, True),
    "it is alive and the host renamed": ({"host": "old"}, True),
    "it is on another machine": ({"host": "other", "boot": "other"}, True),
}  # fmt: skip


@fault("a launcher is gone", *LAUNCHERS)
def _(folder: Path, name: str) -> None:
    change, alive = LAUNCHERS[name]
    (folder / "e" / "r").mkdir(parents=True)
    note = {**progress.this_process(), "launcher": "local", "argv": ["opt=sgd"], **change}
    (folder / "e" / "r" / "launch.json").write_text(json.dumps(note))
    state = progress.read_progress(folder / "e" / "r")
    assert state.stranded != alive
    with contextlib.redirect_stdout(io.StringIO()):
        assert bool(retry.choose([state], retry.Options(folder))) != alive
        assert retry.choose([state], retry.Options(folder, force=True))


@fault("two retries at once", "one folder")
def _(folder: Path, name: str) -> None:
    names: list[str] = []

    class Process:
        def __init__(self, line: Sequence[str]) -> None:
            names.extend(word for word in line if "cells=" in word)

        def wait(self) -> int:
            return retry.launch([], [["opt=adamp"]], [], out=folder) if len(names) < 2 else 0

    with patched(retry.subprocess, "Popen", Process):
        retry.launch([], [["opt=sgd"]], [], out=folder)
    assert len(set(names)) == 2 and not list(folder.iterdir())


# ---------------------------------------------------------------------------------------------- output and launchers

OUTPUT = """
import logging, os, sys
logging.basicConfig(stream=sys.stderr)
from launch.output import train_without_output
train_without_output()
for _ in range(300):
    print("x" * 100, flush=True); print("y" * 100, file=sys.stderr); logging.warning("z" * 100)
open(sys.argv[1], "w").write("done")
"""


@fault("output cannot be written", "a closed pipe", "a full disk", "closed from the start")
def _(folder: Path, name: str) -> None:
    line = [sys.executable, "-c", OUTPUT, str(folder / "done")]
    env = commands.importing(ROOT)
    if name == "closed from the start":
        code = subprocess.run(["/bin/sh", "-c", f"{shlex.join(line)} >&- 2>&-"], env=env, cwd=ROOT).returncode
    elif name == "a full disk":
        with Path("/dev/full").open("wb") as full:
            code = subprocess.run(line, env=env, cwd=ROOT, stdout=full, stderr=full).returncode
    else:
        reader, writer = os.pipe()
        os.close(reader)
        code = subprocess.run(line, env=env, cwd=ROOT, stdout=writer, stderr=writer).returncode
        os.close(writer)
    assert code == 0 and (folder / "done").read_text() == "done", code


def _cells(folder: Path, number: int, *, writable: bool = True) -> list[Cell]:
    made = []
    (folder / "file").write_text("")
    for place in range(number):
        where = (folder if writable else folder / "file") / f"run-{place}"
        plan: Any = SimpleNamespace(experiment="e", name=f"run-{place}", folder=where, argv=(), config={})
        made.append(Cell(place, (), plan))
    return made


@fault("a launcher cannot write its notes and logs", "no folder")
def _(folder: Path, name: str) -> None:
    cells = _cells(folder, 2, writable=False)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings() as said:
        for cell in cells:
            cell.note(launcher="local")
        assert Packing(2, [], command=lambda cell: ["true"]).run(cells) == {0: 0, 1: 0}
    assert len([line for line in said if "note cannot be written" in line]) == 2


@fault("a sweep of 200 cells", "10 % fail", "Ctrl-C in the middle")
def _(folder: Path, name: str) -> None:
    cells = _cells(folder, 200)
    interrupt = f"[ $place = 100 ] && [ ! -e {folder}/sent ] && touch {folder}/sent && kill -INT {os.getpid()};"
    script = f"{interrupt if name.startswith('Ctrl') else ''} touch {folder}/ran-$place; [ $((place % 10)) != 3 ]"
    packing = Packing(4, [], command=lambda cell: ["/bin/sh", "-c", f"place={cell.place}; {script}"])
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        if name.startswith("Ctrl"):
            with refused(SystemExit, says="130"):
                packing.run(cells)
            assert 100 <= len(list(folder.glob("ran-*"))) < 110
            left = [cell for cell in cells if not (folder / f"ran-{cell.place}").exists()]
            codes = {**packing.codes, **Packing(4, [], command=packing.command).run(left)}
        else:
            codes = packing.run(cells)
    assert len(list(folder.glob("ran-*"))) == 200
    assert sum(code == 1 for code in codes.values()) == 20, codes


@fault("notes and records hold garbage", "a list", "null", "binary", "deep", "wrong types")
def _(folder: Path, name: str) -> None:
    made = write_run(folder, seed=0)
    garbage = {"a list": b"[]", "null": b"null", "binary": b"\xff\x00\xfe", "deep": b"[" * 99999,
               "wrong types": b'{"pid": "x", "host": 3, "argv": 7, "status": [1], "segments": 3}'}[name]  # fmt: skip
    for path in ("run.json", "launch.json"):
        (made / path).write_bytes(garbage)
    assert progress.read_progress(made).status in progress.STATUSES


SECRETS = {"WANDB_API_KEY": "sesame" * 7, "AWS_SECRET_ACCESS_KEY": "open+sesame/123", "HF_TOKEN": "hf_sesame"}


@fault("secrets stand in the environment", "a run", "the local launcher", "Ray's launcher")
def _(folder: Path, name: str) -> None:
    with mock.patch.dict(os.environ, SECRETS):
        if name == "a run":
            trained(folder / "r")
        else:
            (cell,) = _cells(folder, 1)
            cell.note(launcher="ray" if name.startswith("Ray") else "local")
            passed = cell_environment("log", num_gpus=0)
            assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN"} & passed.keys()
            Packing(1, [], command=lambda cell: ["true"]).run([cell])
    assert not [path for path, content in files(folder).items() for s in SECRETS.values() if s.encode() in content]


@fault("a logger fails", "W&B")
def _(folder: Path, name: str) -> None:
    class Failing:
        summary: Mapping[str, float] = {}

        def log(self, values: Mapping[str, float]) -> None:
            raise ConnectionError("unreachable")

        def finish(self, **options: Any) -> None:
            raise ConnectionError("unreachable")

    logger = WandbLogger()
    logger.run = Failing()
    with warnings() as said:
        logger.log({"step": 1, "val/top1": 3.0})
        logger.finish({"status": "finished"}, folder)
    assert any("W&B refused a call" in line for line in said)


@fault("there is no HOME and the user is unknown", "data", "kernel")
def _(folder: Path, name: str) -> None:
    def unknown(*args: Any) -> Any:
        raise RuntimeError("Could not determine home directory.")

    env = {key: value for key, value in os.environ.items() if key not in ("ADAMP_DATA", "ADAMP_KERNEL_CACHE")}
    env.pop("XDG_CACHE_HOME", None)
    with (
        mock.patch.dict(os.environ, env, clear=True), patched(Path, "home", unknown),
        patched(Path, "expanduser", unknown),
    ):  # fmt: skip
        where = cache_folder() if name == "data" else cpu_build._cache_folder()
    assert str(os.geteuid()) in where.name


# ------------------------------------------------------------------------------------------- code that runs unasked

UNTRUSTED = (
    "--config-dir=elsewhere", "--experimental-rerun=x", "hydra.searchpath=[file://elsewhere]", "opt=../../elsewhere",
    "opt={_target_:os.mkdir}", "figures=[os.mkdir]", "+hydra.callbacks.a._target_=os.mkdir", "tag=${oc.env:HOME}",
    "opt@hydra.callbacks.a=sgd", "hydra/job_logging=elsewhere", "train.epochs=9", "opt.lr=1,2",
)  # fmt: skip


@fault("a record names code, files or other values", *UNTRUSTED)
def _(folder: Path, name: str) -> None:
    with refused(InputError, says=name):
        trust.rebuilt([name, "opt=sgd"], {"train": {"epochs": 3}}, trusted=False)


TYPED = (
    "+hydra.callbacks.a._target_=os.mkdir", "--config-dir=x", "--config-name=x", "--experimental-rerun=x",
    "hydra.searchpath=[file://x]", "hydra.job_logging.a=x", "+hydra.job.env_set.LD_PRELOAD=x",
    "hydra.launcher._target_=os.mkdir",
)  # fmt: skip


@fault("typed words set up Hydra itself", *TYPED)
def _(folder: Path, name: str) -> None:
    with refused(InputError, says="trusted=true"):
        trust.without_trust([name])


TARGETS = ("os.mkdir", "subprocess.run", "torch.hub.load", "tasks.base.__builtins__.open", "tasks.data.cifar.Path")


@fault("a configuration calls foreign code", *TARGETS)
def _(folder: Path, name: str) -> None:
    with refused(InputError, says="opt._target_ is"):
        check_targets({"opt": {"_target_": name}})
        load("opt._target_", name)


class _Runs:
    """Unpickling this makes a folder."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@fault("a pickle would run code", "a checkpoint", "weights")
def _(folder: Path, name: str) -> None:
    path = folder / "x.pt"
    path.write_bytes(pickle.dumps({"networks": _Runs(folder / "ran")}, protocol=2))
    with refused(InputError, ValueError):
        checkpoint.load(path, run="e/r") if name == "a checkpoint" else read_weights(path)
    assert not (folder / "ran").exists()


@functools.cache
def _library() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "cpu.so"
        cpu_build.compile_library(target, [*cpu_build.find_compiler(), *cpu_build.FLAGS, "-O0"], seal=True)
        return target.read_bytes()


KERNELS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "cut": (lambda whole: whole[:-5000], 0o755), "empty": (lambda whole: b"", 0o755),
    "one bit": (lambda whole: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], 0o755),
    "others can write it": (lambda whole: whole, 0o777),
}  # fmt: skip


@fault("the kernel's cache is not as it was left", *KERNELS, "another user's", "without programs", "read-only")
def _(folder: Path, name: str) -> None:
    if shutil.which("c++") is None:
        raise SkippedError("no compiler")
    spoil, mode = KERNELS.get(name, (lambda whole: whole, 0o755))
    path = folder / "cpu.so"
    path.write_bytes(spoil(_library()))
    path.chmod(mode)
    if name == "another user's":
        if os.geteuid():
            raise SkippedError("needs root")
        os.chown(path, 12345, -1)
    if name == "read-only":
        with patched(cpu_build, "_target", lambda: path), patched(cpu_build, "_only_one", failing("EROFS")):
            assert cpu_build.build() == path
    elif name == "without programs":
        error = OSError("failed to map segment from shared object: Operation not permitted")
        with (
            patched(cpu_build.ctypes, "CDLL", lambda path: _raise(error)()),
            refused(cpu_build.BuildError, says="set ADAMP_KERNEL_CACHE"),
        ):
            cpu_build._open(path)
    else:
        with refused(cpu_build.BuildError, says="cannot be loaded"):
            cpu_build._open(path)


VALUES = ("R&D", "a;touch x", "$(touch x)", "`touch x`", "it's", 'a "b" c', "a|b>c")


@fault("make hands a value to the shell", *VALUES)
def _(folder: Path, name: str) -> None:
    words = ["make", "-n", "-o", ".venv/.ready", "imagenet-resnet18", f"tag={name}", "opt=sgdp"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    line = shlex.split(done.stdout.strip().splitlines()[-1])
    assert f"tag={name}" in line and "opt=sgdp" in line, line
