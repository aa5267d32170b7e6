"""What a run leaves behind: run.json, metrics.jsonl, timing.jsonl, and the loggers that follow along.

`metrics.jsonl` holds deterministic values only, so that a run that was stopped and resumed leaves, byte for byte, the
file of the undisturbed run; whatever a clock says goes to `timing.jsonl`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from tasks.base import InputError
from tasks.engine.config import decisive, differing_keys
from tasks.engine.plan import wrong_entry

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pillow", "adamp")


class Sink(Protocol):
    """A logger that follows a run beside the files on disk, e.g. W&B. It must never end a run."""

    def start(self, record: Mapping[str, Any], folder: Path) -> None:
        """Begin or continue the run whose run.json is given."""

    def log(self, values: Mapping[str, float]) -> None:
        """Take one line of metrics; "step" and "epoch" are among its keys."""

    def finish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Close; the record holds the final status and scores, the folder the figures."""


def now() -> str:
    """Return the time in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits over everything in a resolved configuration that decides a result."""
    text = json.dumps(decisive(dict(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def git_state(folder: Path) -> dict[str, Any]:
    """Return {"commit", "dirty"} of the checkout that holds `folder`, results/ aside; nulls outside one."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Results are what runs write: they do not make a later run's code another one.
    status = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hardware(processes: int) -> dict[str, Any]:
    """Return what the run ran on: CPU, usable cores, memory, GPUs, processes, and one short line of it all."""
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    cores = usable_cores()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{cores} cores {cpu}, " + (f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU")
    return {
        "machine": machine, "cpu": cpu, "cores": cores, "gpus": gpus, "memory_gib": round(memory, 1),
        "processes": processes,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if torch.version.cuda and torch.cuda.is_available():
        found["cuda"] = torch.version.cuda
    return found


def provenance(folder: Path) -> str:
    """Return when, from which commit and on what a measurement was made, in one line.

    Args:
        folder: In the checkout whose commit it is; a + behind it marks uncommitted changes.
    """
    git = git_state(folder)
    commit = f"{git['commit']}{'+' if git['dirty'] else ''}"
    return f"{now()}, commit {commit}, {hardware(1)['machine']}, torch {versions()['torch']}"


def peak_memory_mib() -> float:
    """Return the most memory this process has held, in MiB: the GPU's when it uses one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 2**10 if sys.platform != "darwin" else 2**20  # Linux counts KiB, macOS bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON beside `path` and move it there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
    temporary.replace(path)


class RunRecord:
    """The files of one run. Only process 0 makes one.

    Args:
        folder: The run's folder; its path under results/runs is the run's identity.
        name: The run's name, unique within its experiment.
        config: The resolved configuration as plain containers.
        processes: How many processes run it.
        argv: Words after `scripts/train.py` that run it again.

    Raises:
        InputError: Another process is running in the folder, or it holds a run with another configuration.
    """

    def __init__(
        self, folder: Path, *, name: str, config: Mapping[str, Any], processes: int = 1, argv: Sequence[str] = ()
    ) -> None:
        self.folder, self.path = folder, folder / "run.json"
        self._make_folder()
        self._lock = self._take_lock()
        self._metrics: IO[bytes] | None = None
        self._timing: IO[bytes] | None = None
        try:
            self._begin(name, config, processes, argv)
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, config: Mapping[str, Any], processes: int, argv: Sequence[str]) -> None:
        stored, folder = self._read(), self.folder
        if stored and stored.get("status") != "finished" and not any((folder / "checkpoints").glob("*.pt")):
            stored = None  # it never saved anything: start anew
        if stored and (changed := differing_keys(dict(config), stored.get("config", {}))):
            shown = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
            raise InputError(
                f"{folder} holds a {stored.get('status')} run with another configuration ({shown})\n"
                "Give the new one a name of its own with tag=NAME, or move the folder away."
            )
        begun = {"name": name, "started": now(), "resumed_from": [], "wall_time_s": 0.0}
        self.record: dict[str, Any] = {**begun, **(stored or {})}
        if self.record.get("status") == "finished":
            return
        self.record.update(
            experiment=config.get("experiment_name"), status="running", error=None, opt_name=config.get("opt_name"),
            seed=config.get("train", {}).get("seed"), scale=config.get("scale_name"), config=dict(config),
            config_hash=config_hash(config), command=" ".join(sys.argv), git=git_state(Path(__file__).parent),
            versions=versions(), hardware=hardware(processes), ended=None, argv=list(argv),
            log=os.environ.get("ADAMP_LOG"),  # where a launcher sends what the run says
        )  # fmt: skip
        self._wall_before = float(self.record["wall_time_s"])
        self._begun = time.monotonic()  # the wall's clock may be set back while the run runs

    @property
    def finished(self) -> bool:
        """Whether this very configuration has been run to its end before."""
        return bool(self.record.get("status") == "finished")

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run's folder {self.folder}: {error.strerror}; set paths.runs") from None

    def _take_lock(self) -> IO[str]:
        # flock goes with the process, so a killed run leaves no stale lock.
        try:
            lock = (self.folder / ".lock").open("a+")
        except OSError as error:
            raise InputError(f"cannot write in {self.folder}: {error.strerror}; set paths.runs") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise InputError(
                f"{self.folder} is being run by process {holder} now; wait for it, or use tag=NAME"
            ) from None
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing writes what is left, again in vain
                lock.close()
            raise InputError(f"cannot write in {self.folder}: {error.strerror}; set paths.runs") from None
        return lock

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists() and not self.path.is_symlink():
            return None
        try:
            stored = json.loads(self.path.read_text())
            if not isinstance(stored, dict):
                raise ValueError
            wrong = wrong_entry(stored)
        except (ValueError, OSError, RecursionError, OverflowError, MemoryError):
            raise InputError(f"{self.path} is not readable JSON; move the folder away or repair it") from None
        if wrong is not None:
            raise InputError(f"{self.path}: {wrong}; move the folder away or repair it")
        return stored

    def update(self, **values: Any) -> None:
        """Change entries of run.json and write it.

        Raises:
            InputError: The disk refuses.
        """
        self.record.update(values)
        self.record["wall_time_s"] = round(self._wall_before + time.monotonic() - self._begun, 1)
        self.record["peak_memory_mib"] = max(self.record.get("peak_memory_mib") or 0.0, peak_memory_mib())
        try:
            write_json(self.path, self.record)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from None

    def open(self, offset: int) -> None:
        """Open the metrics for appending, after dropping what came after the checkpoint that is resumed.

        Args:
            offset: Bytes of metrics.jsonl at that checkpoint; 0 starts anew. The steps after it are run again and
                leave the same lines again.

        Raises:
            InputError: The file is shorter than the checkpoint knows: lines were lost.
        """
        path = self.folder / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size < offset:
            raise InputError(
                f"{path} holds {size} bytes, its checkpoint knows {offset}: lines were lost\n"
                "Restore the file, or move the run's folder away to start over."
            )
        self._metrics = path.open("ab")
        self._metrics.truncate(offset)
        self._timing = (self.folder / "timing.jsonl").open("ab")

    def log(self, values: Mapping[str, float]) -> None:
        """Append one line of metrics; a reader sees it at once. Non-finite numbers become null, as JSON has none."""
        assert self._metrics is not None
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._append(self._metrics, clean)

    def time(self, values: Mapping[str, float]) -> None:
        """Append one line of what the clock says."""
        assert self._timing is not None
        self._append(self._timing, values)

    def _append(self, file: IO[bytes], values: Mapping[str, Any]) -> None:
        try:
            file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write {file.name}: {error.strerror}; run again to resume") from None

    def offset(self) -> int:
        """Return the bytes of metrics written, after forcing them to the disk: a checkpoint relies on them."""
        assert self._metrics is not None
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._metrics.name}: {error.strerror}; run again to resume") from None
        # Not tell(): until the first write that stands where the file ended before lines were dropped.
        return os.fstat(self._metrics.fileno()).st_size

    def close(self) -> None:
        """Close the files and give up the folder; one in which nothing was written goes."""
        for file in (self._metrics, self._timing):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        if not self.path.exists():
            with contextlib.suppress(OSError):
                (self.folder / ".lock").unlink()
                self.folder.rmdir()
        self._lock.close()
