"""The files of a run: run.json, metrics.jsonl, timing.jsonl.

`metrics.jsonl` holds deterministic values only: a run that was stopped and resumed leaves, byte for byte, the file of
the undisturbed run. Clock readings go to `timing.jsonl`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Unpack, cast

from tasks.base import InputError
from tasks.engine import checkpoint
from tasks.engine.config import config_hash, differing_keys
from tasks.engine.provenance import command_line, git_state, hardware, now, peak_memory_mib, versions
from tasks.engine.record_schema import DATA_IDENTITY, RunEntries, Segment, segment_changes, wrong_entry

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON beside `path`, then rename it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=str) + "\n")
    temporary.replace(path)


def _segments(stored: RunEntries) -> list[Segment]:
    """Return the segments of a stored record; of an earlier version's, its last start, which is all that it states."""
    if "segments" in stored:
        known = [each for each in stored["segments"] if isinstance(each, dict)]
        return [each for each in known if isinstance(each.get("from_step"), int)]
    last = {key: stored.get(key) for key in ("git", "versions", "hardware", "started")}
    begun = {"from_step": (stored.get("resumed_from") or [0])[-1], "to_step": None, "threads": None}
    return [cast(Segment, {**last, **begun, "words": stored.get("argv", [])})]


class RunRecord:
    """The files of one run. Only process 0 makes one.

    Args:
        folder: The run's folder; its path under results/runs is the run's identity.
        name: The run's name, unique within its experiment.
        config: The resolved configuration as plain containers.
        processes: How many processes run it.
        argv: Arguments of `scripts/train.py` that repeat it.

    Attributes:
        entries: Contents of run.json.

    Raises:
        InputError: Another process is running in the folder, or it holds a run with another configuration.
    """

    def __init__(
        self, folder: Path, *, name: str, config: Mapping[str, Any], processes: int = 1, argv: Sequence[str] = ()
    ) -> None:
        self.folder, self.path = folder, folder / "run.json"
        self._make_folder()
        self._lock = self._take_lock()
        self._segments_before: list[Segment] = []
        self._metrics: IO[bytes] | None = None
        self._timing: IO[bytes] | None = None
        try:
            self._begin(name, config, processes, argv)
        except BaseException:
            self.close()
            raise

    def _begin(self, name: str, config: Mapping[str, Any], processes: int, argv: Sequence[str]) -> None:
        stored, folder = self._read(), self.folder
        if stored and stored.get("status") != "finished" and not checkpoint.names(folder / "checkpoints"):
            stored = None  # no checkpoint: start anew
        if stored and (changed := differing_keys(dict(config), stored.get("config", {}))):
            listed = "; ".join(changed[:6]) + (f"; and {len(changed) - 6} more" if len(changed) > 6 else "")
            raise InputError(
                f"{folder} holds a {stored.get('status')} run with another configuration ({listed})\n"
                "Give the new one a name of its own with tag=NAME, or move the folder away."
            )
        self.entries: RunEntries = {
            "name": name, "started": now(), "resumed_from": [], "segments": [], "wall_time_s": 0.0
        }  # fmt: skip
        if stored:
            self.entries.update(stored)
            self._segments_before = _segments(stored)
        if self.finished:
            return
        entries: RunEntries = {
            "experiment": config.get("experiment_name"), "status": "running", "error": None,
            "opt_name": config.get("opt_name"), "seed": config.get("train", {}).get("seed"),
            "scale": config.get("scale_name"), "config": dict(config), "config_hash": config_hash(config),
            "command": command_line(), "git": git_state(ROOT), "versions": versions(),
            "hardware": hardware(processes), "ended": None, "argv": list(argv),
            "log": os.environ.get("ADAMP_LOG"),  # where a launcher sends the run's output
        }  # fmt: skip
        self.entries.update(entries)
        self._wall_before = float(self.entries["wall_time_s"])
        self._begun = time.monotonic()  # the wall clock may be set back during the run

    def begin_segment(self, step: int, *, threads: int) -> list[str]:
        """Note what trains from a step on, write the record, and return in what it differs from what trained before.

        Args:
            step: Steps of the checkpoint that is resumed; 0 where there is none.
            threads: CPU threads of this process.

        Raises:
            InputError: The record cannot be written.
        """
        # Of what an earlier start trained, only what the checkpoint knows belongs to the result
        kept = [segment for segment in self._segments_before if segment["from_step"] < step]
        if kept:
            kept[-1] = {**kept[-1], "to_step": step}
        segment: Segment = {
            "from_step": step, "to_step": None, "started": now(), "git": self.entries["git"],
            "versions": self.entries["versions"], "hardware": self.entries["hardware"], "threads": threads,
            "words": self.entries["argv"],
        }  # fmt: skip
        self.update(segments=[*kept, segment], resumed_from=[*self.entries["resumed_from"], *([step] if step else [])])
        return segment_changes(kept[-1], segment) if kept else []

    def check_data(self, facts: Mapping[str, Any]) -> None:
        """Refuse to resume on other data than the run began with.

        Args:
            facts: `Task.describe()`; an entry that an older record lacks is not compared.

        Raises:
            InputError: Name, sizes or digest of the data differ.
        """
        stored = self.entries.get("data", {})
        changed = [
            f"{key}: {stored[key]} -> {facts[key]}"
            for key in DATA_IDENTITY
            if key in stored and key in facts and stored[key] != facts[key]
        ]
        if changed:
            raise InputError(
                f"{self.folder} holds a run on other data ({'; '.join(changed)})\n"
                "Resume it with the data_root that it began with, or give the new run a name of its own with tag=NAME."
            )

    @property
    def finished(self) -> bool:
        """Whether this configuration has been run to its end before."""
        return bool(self.entries.get("status") == "finished")

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the run's folder {self.folder}: {error.strerror}; set paths.runs") from None
        except UnicodeEncodeError as error:  # LC_ALL=C, and Python's UTF-8 mode switched off
            raise InputError(
                f"the run's folder {str(self.folder)!a} has letters that the locale's encoding "
                f"{error.encoding} lacks; set PYTHONUTF8=1"
            ) from None

    def _take_lock(self) -> IO[str]:
        # flock ends with the process, so a killed run leaves no stale lock
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
        except OSError as error:  # e.g. Lustre without flock
            log.warning(
                "%s: the file system has no locks (%s), so nothing keeps a second process out of it", self.folder,
                error.strerror,
            )  # fmt: skip
        try:
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing flushes, which fails again
                lock.close()
            raise InputError(f"cannot write in {self.folder}: {error.strerror}; set paths.runs") from None
        return lock

    def _read(self) -> RunEntries | None:
        try:
            if not os.path.lexists(self.path):
                return None
            stored = checkpoint.read_again(lambda: json.loads(self.path.read_text()), self.path)
            if not isinstance(stored, dict):
                raise ValueError
            wrong = wrong_entry(stored)
        except InputError:  # a ValueError that says more
            raise
        except (ValueError, OSError, RecursionError, OverflowError):
            raise InputError(f"{self.path} is not readable JSON; move the folder away or repair it") from None
        if wrong is not None:
            raise InputError(f"{self.path}: {wrong}; move the folder away or repair it")
        return cast(RunEntries, stored)

    def update(self, **values: Unpack[RunEntries]) -> None:
        """Change entries of run.json and write it.

        Raises:
            InputError: The file cannot be written.
        """
        self.entries.update(values)
        if "steps" in values and self.entries["segments"]:
            self.entries["segments"][-1]["to_step"] = values["steps"]
        self.entries["wall_time_s"] = round(self._wall_before + time.monotonic() - self._begun, 1)
        self.entries["peak_memory_mib"] = max(self.entries.get("peak_memory_mib") or 0.0, peak_memory_mib())
        try:
            write_json(self.path, self.entries)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}") from None

    def open_metrics(self, offset: int) -> None:
        """Open the metrics for appending, without the lines after the checkpoint that is resumed.

        Args:
            offset: Bytes of metrics.jsonl at that checkpoint; 0 starts anew. The steps after it are repeated and leave
                the same lines.

        Raises:
            InputError: The file is shorter than at the checkpoint: lines were lost; or it cannot be opened now.
        """
        path = self.folder / "metrics.jsonl"
        try:
            size = checkpoint.read_again(path.stat, path).st_size
        except checkpoint.LASTING:
            size = 0
        if size < offset:
            raise InputError(
                f"{path} holds {size} bytes, its checkpoint knows {offset}: lines were lost\n"
                "Restore the file, or move the run's folder away to start over."
            )
        if offset == 0 and size and checkpoint.unusable(self.folder / "checkpoints"):
            path.rename(checkpoint.free_name(path, "before"))  # the lines that a checkpoint set aside knows
        timing = self.folder / "timing.jsonl"
        self._metrics = checkpoint.read_again(lambda: path.open("ab"), path)
        self._metrics.truncate(offset)
        self._timing = checkpoint.read_again(lambda: timing.open("ab"), timing)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Append one line of metrics and flush it. Non-finite numbers become null, as JSON has none."""
        assert self._metrics is not None
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._append(self._metrics, finite)

    def log_timing(self, values: Mapping[str, float]) -> None:
        """Append one line of clock readings."""
        assert self._timing is not None
        self._append(self._timing, values)

    def _append(self, file: IO[bytes], values: Mapping[str, Any]) -> None:
        try:
            file.write(json.dumps(values, separators=(",", ":")).encode() + b"\n")
            file.flush()
        except OSError as error:
            raise InputError(f"cannot write {file.name}: {error.strerror}; run again to resume") from None

    def metrics_offset(self) -> int:
        """Return the bytes of metrics written, synced to disk: a checkpoint relies on them."""
        assert self._metrics is not None
        try:
            self._metrics.flush()  # what a full disk did not take before
            checkpoint.sync(self._metrics.fileno(), self.folder / "metrics.jsonl")
        except OSError as error:
            raise InputError(f"cannot write {self._metrics.name}: {error.strerror}; run again to resume") from None
        # Not tell(): until the first write it is the end of the file before it was truncated
        return os.fstat(self._metrics.fileno()).st_size

    def close(self) -> None:
        """Close the files and release the folder; a folder in which nothing was written is removed."""
        for file in (self._metrics, self._timing):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        if not self.path.exists():
            with contextlib.suppress(OSError):
                (self.folder / ".lock").unlink()
                self.folder.rmdir()
        self._lock.close()
