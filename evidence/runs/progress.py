"""Progress of runs, read from the ends of their files: a million lines of metrics are not read for the last one.

Nothing here imports torch or Hydra, and no run folder, however broken, raises.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import math
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.runs.run import number

STATUSES = ("finished", "running", "waiting", "interrupted", "failed", "broken")
FIRST, MOST = 1 << 14, 1 << 22  # bytes of a file's end that are read at first, and at most
FRESH_S = 900  # a run on another machine counts as running when it wrote within this time
REMOTE = ("slurm", "ray")  # launchers whose runs may be on other machines, where locks do not show


@dataclass(frozen=True, slots=True)
class RunProgress:
    """Status and progress of one run folder.

    Attributes:
        folder: The folder.
        status: One of `STATUSES`. A run that diverged has failed; so has one that never wrote its record.
        reason: Why it failed, is broken, was interrupted or waits, in a line.
        log: The file of its output, where a launcher keeps one.
        argv: Words after `scripts/train.py` that run it again; empty in records of earlier versions.
        diverged: Whether its loss was not finite: running it again gives the same.
        stranded: Whether it waits, but nobody is there to start it.
        step: Optimizer steps done.
        steps: Total optimizer steps, estimated from the epochs.
        loss: Last training loss.
        rate: Examples per second.
        left_s: Seconds to the end, at the pace of the last lines.
        score: The monitored score, where there is one.
    """

    folder: Path
    status: str
    reason: str = ""
    log: str = ""
    argv: tuple[str, ...] = ()
    diverged: bool = False
    stranded: bool = False
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    rate: float | None = None
    left_s: float | None = None
    score: str = ""

    @property
    def title(self) -> str:
        """Experiment and name."""
        return f"{self.folder.parent.name}/{self.folder.name}"

    @property
    def experiment(self) -> str:
        """The experiment."""
        return self.folder.parent.name

    @property
    def retriable(self) -> bool:
        """Whether starting it again may help."""
        return (self.status in ("failed", "interrupted") and not self.diverged) or self.stranded


def iter_progress(root: Path, experiment: str | None = None) -> Iterator[RunProgress]:
    """Yield the progress of every run folder below `root`, in order."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    for name in names:
        if experiment is None or name == experiment:
            with os.scandir(root / name) as entries:
                folders = sorted(entry.path for entry in entries if entry.is_dir())
            yield from (read_progress(Path(folder)) for folder in folders)


def read_progress(folder: Path) -> RunProgress:
    """Return the progress of one run folder."""
    note, _ = _object(folder / "launch.json")
    record, problem = _object(folder / "run.json")
    try:
        if problem:
            return RunProgress(folder, "broken", problem)
        if not record:
            return _unstarted(folder, note)
        return _recorded(folder, record, note)
    except Exception as error:  # values of a kind that nobody wrote: one folder must not hide the others
        return RunProgress(folder, "broken", f"run.json holds what no run writes ({type(error).__name__}: {error})")


def _object(path: Path) -> tuple[dict[str, Any], str]:
    """Return a JSON object, empty where there is no file, and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"{path.name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError, MemoryError, OverflowError):
        return {}, f"{path.name} is no whole JSON"
    return (value, "") if isinstance(value, dict) and value else ({}, f"{path.name} holds no object")


def _unstarted(folder: Path, note: Mapping[str, Any]) -> RunProgress:
    """Return the progress of a folder without run.json."""
    argv, log = tuple(map(str, note.get("argv") or ())), str(note.get("log") or "")
    if not note:
        if _locked(folder):
            return RunProgress(folder, "running", "it is being prepared")
        return RunProgress(folder, "broken", "run.json is missing")
    if alive(note) and note.get("code") is None:
        return RunProgress(folder, "waiting", f"for the launcher {note.get('launcher')}", log, argv)
    message = last_line(Path(log)) if log else ""
    if note.get("code") or message:
        code = f" with code {note['code']}" if note.get("code") else ""
        return RunProgress(folder, "failed", message or f"ended{code} before it began", log, argv)
    return RunProgress(folder, "waiting", "its launcher has ended", log, argv, stranded=True)


def _recorded(folder: Path, record: Mapping[str, Any], note: Mapping[str, Any]) -> RunProgress:
    status, reason = str(record.get("status")), str(record.get("error") or "").split("\n")[0]
    argv = tuple(map(str, record.get("argv") or note.get("argv") or ()))
    log = str(record.get("log") or "")
    line, is_complete = last_lines(folder / "metrics.jsonl", "loss")
    begun = line.get("step") is not None
    queued = bool(note.get("job")) and alive(note)
    if status not in ("finished", "failed", "interrupted", "running"):
        return RunProgress(folder, "broken", f"run.json says status {status!r}", log, argv)
    if status == "finished" and not (begun and is_complete):
        missing = "is missing or empty" if not begun else "ends in half a line"
        return RunProgress(folder, "broken", f"finished, but metrics.jsonl {missing}", log, argv)
    if status == "running" and not (_locked(folder) or queued or _fresh(folder, note)):
        status, reason = "interrupted", "its process is gone"
    elif status in ("interrupted", "failed") and queued:
        status, reason = "waiting", f"queued again as job {note['job']}"
    if status == "running" and record.get("scores") is None and not begun:
        reason = "it is being prepared"
    step, steps = _length(line, record)
    rate, pace = _pace(folder / "timing.jsonl")
    left = (steps - step) * pace if None not in (step, steps, pace) and status == "running" else None  # type: ignore[operator]
    return RunProgress(
        folder, status, reason, log, argv, record.get("diverged_at") is not None and status == "failed", False,
        step, steps, _loss(line), rate, left, _score(record),
    )  # fmt: skip


def _length(line: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return steps done and steps in all."""
    step, epoch = number(line.get("step")), number(line.get("epoch"))
    if step is None or not math.isfinite(step):
        return None, None
    config = record.get("config") or {}
    train, phases = config.get("train") or {}, config.get("phases") or []
    epochs = sum(phase["epochs"] for phase in phases) if phases else number(train.get("epochs"))
    steps = round(step * epochs / epoch) if epoch and epochs else None
    if (most := number(train.get("max_steps"))) is not None:
        steps = int(most) if steps is None else min(steps, int(most))
    return int(step), steps


def _loss(line: Mapping[str, Any]) -> float | None:
    keys = [key for key in line if key.startswith("train/") and key.endswith("loss")]
    return number(line[keys[0]]) if keys else None


def _score(record: Mapping[str, Any]) -> str:
    monitor, scores = str(record.get("monitor") or "").lstrip("-"), record.get("scores") or {}
    value = number(scores.get(monitor)) if isinstance(scores, dict) else None
    return "" if value is None else f"{monitor} {value:.4g}"


def _pace(path: Path) -> tuple[float | None, float | None]:
    """Return examples per second and seconds per step, over the last two lines of one process."""
    points = []
    for line, _ in _backwards(path):
        step, seconds = number(line.get("step")), number(line.get("seconds"))
        if step is None or seconds is None:
            continue
        points.append((step, seconds, number(line.get("examples_per_s"))))
        if len(points) > 1 and points[-1][0] < points[0][0]:
            break
        if len(points) > 4:
            break
    if not points:
        return None, None
    (step, seconds, rate), (before, earlier, _) = points[0], points[-1]
    if step > before and seconds > earlier:
        return rate, (seconds - earlier) / (step - before)
    return rate, None


# --------------------------------------------------------------------------------------------------- ends of files


def last_lines(path: Path, wanted: str) -> tuple[dict[str, Any], bool]:
    """Return the last values of a .jsonl file, and whether it ends with a whole line.

    Args:
        path: The file.
        wanted: The last lines are joined until a key that ends with this word is among them.
    """
    joined: dict[str, Any] = {}
    is_complete = True
    for line, complete in _backwards(path):
        is_complete = is_complete and complete
        joined = {**line, **joined}
        if any(key.endswith(wanted) and key.startswith("train/") for key in joined):
            break
    return joined, is_complete


def _backwards(path: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """Yield the objects of a .jsonl file from its end; half a line as an empty object and False."""
    try:
        with path.open("rb") as file:
            size, read, end = file.seek(0, os.SEEK_END), FIRST, b""
            yielded = 0  # lines of the end already yielded
            while True:
                start = max(0, size - read)
                file.seek(start)
                end = file.read(size - start)
                lines = end.split(b"\n")
                if not lines[-1]:
                    lines.pop()
                complete = lines if start == 0 else lines[1:]  # the first may have begun before
                for line in reversed(complete[: len(complete) - yielded]):
                    value = _parsed(line)
                    yield (value or {}), value is not None
                yielded = len(complete)
                if start == 0 or read >= MOST:
                    return
                read *= 8
    except OSError:
        return


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def last_line(log: Path) -> str:
    """Return the last line of a text that is not empty, of its last 4 KiB."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1] if lines else ""


# --------------------------------------------------------------------------------------------------- who is alive


def _locked(folder: Path) -> bool:
    """Whether a process of this machine holds the folder; without locks, whether the one that noted itself lives."""
    try:
        with (folder / ".lock").open("rb") as lock:
            holder = lock.read(32)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return holder.isdigit() and _start_time(int(holder)) is not None
    except OSError:
        return False
    return False


def _fresh(folder: Path, note: Mapping[str, Any]) -> bool:
    """Whether a run that may be on another machine wrote a short while ago."""
    if note.get("launcher") not in REMOTE or (note.get("job") and shutil.which("squeue")):
        return False  # the folder's lock or the queue has answered
    times = [path.stat().st_mtime for name in ("timing.jsonl", "run.json") if (path := folder / name).exists()]
    return bool(times) and time.time() - max(times) < FRESH_S


def alive(note: Mapping[str, Any]) -> bool:
    """Whether the launcher of a cell is alive: its job in the queue, or its process."""
    if note.get("job"):
        return str(note["job"]) in queue()
    here = this_process()
    same_boot = bool(note.get("boot")) and note["boot"] == here["boot"]  # whatever the machine is called now
    if not same_boot:
        if note.get("host") != here["host"]:
            return True  # another machine: its processes cannot be seen
        if note.get("boot") and here["boot"]:
            return False  # started again since
    try:
        number = int(note.get("pid", 0)) or 1 << 30
        os.kill(number, 0)
    except PermissionError:
        pass
    except (OSError, ValueError, OverflowError):
        return False
    # The number may belong to a later process
    return not note.get("begun") or note["begun"] == _start_time(number)


def this_process() -> dict[str, Any]:
    """Return what tells this process from every other: host, number, boot of the machine, and start in its ticks."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot, "begun": _start_time(os.getpid())}


def _start_time(number: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None where the system does not say."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def queue() -> frozenset[str]:
    """Return the jobs of this user in SLURM's queue, array elements as 12_3; empty where there is no SLURM."""
    if shutil.which("squeue") is None:
        return frozenset()
    try:
        done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    return frozenset(done.stdout.split())
