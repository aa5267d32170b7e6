"""Run folders: reading run.json and metrics, whether a run has finished, failed or is still being written.

A run folder is `<root>/<experiment>/<name>/` with `run.json` (one object), `metrics.jsonl` (append-only, one
object a line) and `timing.jsonl`. A process may be writing to any of them while we read.

Errors are `ReadError` and not `tasks.base.InputError`, which would import torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evidence import metrics as registry
from tasks.engine.neutral_keys import separates_settings
from tasks.engine.record_schema import segments_of

STATISTICS = ("mean", "min", "median", "max")  # `norm/mean` is over all layers, `norm/<anything else>` is one layer

CUT_SHORT = "cut short"  # the outcome of a run that `train.max_steps` ended before its schedule did
OUTCOMES = ("finished", "failed", "interrupted", CUT_SHORT, "running")
LINES = 20_000  # of metrics.jsonl and of each kind that are all read; longer files are sampled

log = logging.getLogger("evidence.runs.run")


class ReadError(ValueError):
    """Something asked for is missing or wrong: printed as one or two lines without a traceback, exit code 2."""


@dataclass(frozen=True)
class Run:
    """One training run as it lies on disk.

    Attributes:
        folder: The run's folder.
        record: `run.json`; keys may be missing, the properties below are safe to read.
        metrics: The whole lines of `metrics.jsonl`, in file order; of a very long file an even sample of them.
        broken_lines: Number of its lines that are no JSON objects.
    """

    folder: Path
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    broken_lines: int = 0

    def section(self, key: str) -> dict[str, Any]:
        """Return a nested object of the record, empty when it is missing or not an object."""
        value = self.record.get(key)
        return value if isinstance(value, dict) else {}

    def text(self, key: str, default: str = "") -> str:
        """Return a value of the record as text."""
        value = self.record.get(key)
        return default if value is None else str(value)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.text("name", self.folder.name)

    @property
    def experiment(self) -> str:
        """One training setting of a paper, e.g. imagenet-resnet18."""
        return self.text("experiment", self.folder.parent.name)

    @property
    def status(self) -> str:
        """One of running, finished, interrupted, failed; unknown where the record does not say."""
        return self.text("status", "unknown")

    @property
    def finished(self) -> bool:
        """Whether the run reached its end, which a number of steps may have set before that of its schedule."""
        return self.status == "finished"

    @property
    def outcome(self) -> str:
        """The status, but `cut short` of a run that finished before the end of its schedule."""
        return CUT_SHORT if self.finished and is_cut_short(self.epochs_done, self.epochs) else self.status

    @property
    def opt(self) -> dict[str, Any]:
        """The optimizer's resolved options."""
        value = self.section("config").get("opt")
        return value if isinstance(value, dict) else {}

    @property
    def opt_name(self) -> str:
        """The optimizer's name in configs, e.g. sgdp."""
        return self.text("opt_name", str(self.opt.get("name", "unknown")))

    @property
    def lr(self) -> float | None:
        """Base learning rate."""
        return number(self.opt.get("lr"))

    @property
    def weight_decay(self) -> float | None:
        """Weight decay in torch's units."""
        return number(self.opt.get("weight_decay"))

    @property
    def seed(self) -> int | None:
        """The seed, None where the record has none."""
        value = number(self.record.get("seed"))
        return None if value is None or not math.isfinite(value) else int(value)

    @property
    def scale(self) -> str:
        """full, mini, ..."""
        return self.text("scale", "unknown")

    @property
    def data(self) -> str:
        """The name of the data set really used."""
        return str(self.section("data").get("name", "unknown data"))

    @property
    def epochs(self) -> float | None:
        """The epochs of the schedule; those trained where the configuration does not say."""
        planned = planned_epochs(self.section("config"))
        return planned if planned is not None else number(self.record.get("epochs"))

    @property
    def epochs_done(self) -> float | None:
        """The epochs trained so far; fewer than asked for where the run was cut short by a number of steps."""
        recorded = number(self.record.get("epochs"))
        return recorded if recorded is not None else max((line["epoch"] for line in self.metrics), default=None)

    @property
    def scores(self) -> dict[str, float]:
        """Last value of every score, numbers only."""
        scores = {str(key): number(value) for key, value in self.section("scores").items()}
        return {key: value for key, value in scores.items() if value is not None}

    @property
    def commit(self) -> str:
        """Short commit, several of a run that changed it, with a `+` where the working tree had changes."""
        return f"{self.commit_hash}+" if self.dirty else self.commit_hash

    @property
    def segments(self) -> list[Mapping[str, Any]]:
        """What trained the run, one entry per start; of an older record only the last."""
        return segments_of(self.record)

    def _by_segment(self, part: str, key: str, missing: str = "") -> list[str]:
        """Return the different values of an entry over the segments, in their order."""
        nodes = [segment.get(part) for segment in self.segments]
        values = [str((node.get(key) if isinstance(node, dict) else None) or missing) for node in nodes]
        return list(dict.fromkeys(value for value in values if value))

    @property
    def commit_hash(self) -> str:
        """Short commit; `first/second` of a run whose parts were trained on different ones."""
        commits = "/".join(self._by_segment("git", "commit", missing="unknown"))
        return "/".join(commit[:10] for commit in commits.split("/"))

    @property
    def dirty(self) -> bool | None:
        """Whether the working tree had changes in any part of the run; None where that is unknown."""
        states = [segment["git"].get("dirty") for segment in self.segments if isinstance(segment.get("git"), dict)]
        return True if any(states) else None if not states or None in states else False

    @property
    def torch(self) -> str:
        """Version of torch; `first/second` of a run whose parts were trained with different ones."""
        return "/".join(self._by_segment("versions", "torch"))

    @property
    def machine(self) -> str:
        """The hardware in a few words, with the numbers of processes where they changed during the run."""
        processes = self._by_segment("hardware", "processes")
        changed = f", {' then '.join(processes)} processes" if len(processes) > 1 else ""
        return " / ".join(self._by_segment("hardware", "machine", missing="unknown machine")) + changed

    def series(self, key: str) -> tuple[list[int], list[float], list[float]]:
        """Return (steps, epochs, values) of one metric, ordered by step.

        A step that occurs twice counts with its last value. Null is NaN.
        """
        points: dict[int, tuple[float, float]] = {}
        for line in self.metrics:
            if key not in line:
                continue
            value = math.nan if line[key] is None else number(line[key])
            if value is not None:
                points[line["step"]] = (line["epoch"], value)
        steps = sorted(points)
        return steps, [points[step][0] for step in steps], [points[step][1] for step in steps]

    def layers(self, kind: str) -> list[str]:
        """Return the layers that have a `<kind>/<layer>` metric, in the order in which they were written."""
        prefix = f"{kind}/"
        names = {key: None for line in self.metrics for key in line if key.startswith(prefix)}
        return [key[len(prefix) :] for key in names if key[len(prefix) :] not in STATISTICS]

    def first_and_last(self, key: str) -> tuple[float | None, float | None]:
        """Return a metric's first and last value, None where it was never logged."""
        _, _, values = self.series(key)
        return (values[0], values[-1]) if values else (None, None)

    @property
    def growth(self) -> float | None:
        """n_last^2 - n_0^2, n being the mean norm of the filters of all scale-invariant weights."""
        first, last = self.first_and_last("norm/mean")
        return None if first is None or last is None else last**2 - first**2

    @property
    def setting(self) -> dict[str, Any]:
        """What decides the outcome apart from the seed, flat: optimizer, scale, data set, configuration."""
        kept = {key: value for key, value in flatten(self.section("config")).items() if separates_settings(key)}
        # Numbers given as text ("1e-4" in YAML 1.1) or as integers (0 for 0.0) are the same setting.
        for key, value in (("opt.lr", self.lr), ("opt.weight_decay", self.weight_decay)):
            if value is not None:
                kept[key] = value
        return {"optimizer": self.opt_name, "scale": self.scale, "data set": self.data, **kept}

    @property
    def setting_key(self) -> str:
        """Eight hex digits that name the setting."""
        return digest(self.setting)

    @property
    def monitor(self) -> str:
        """The score that picked the best checkpoint, e.g. val/top1; empty in records of earlier versions."""
        return self.text("monitor").lstrip("-")

    @property
    def lower_is_better(self) -> bool:
        """Whether lower is better of the score that stands for this run."""
        return registry.lower_is_better(primary_score([self]) or "", monitor=self.text("monitor"))

    @property
    def roles(self) -> list[str]:
        """The networks whose probes have keys of their own, `<role>/norm/mean`, where there are several."""
        return list({key.removesuffix("/norm/mean"): None for line in self.metrics for key in line if _of_role(key)})

    def of_role(self, role: str) -> Run:
        """Return the run as seen from one of its networks: that network's keys stand without its name."""
        prefix, loss = f"{role}/", f"train/{role}_loss"
        metrics = []
        for line in self.metrics:
            renamed = {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)}
            if loss in line:
                renamed["train/loss"] = line[loss]
            metrics.append({**line, **renamed})
        return replace(self, metrics=metrics)

    def throughput(self) -> float | None:
        """Median examples per second over the log intervals, None where nothing was timed."""
        rates = [number(line.get("examples_per_s")) for line in _lines(self.folder / "timing.jsonl") if line]
        finite = sorted(rate for rate in rates if rate is not None and math.isfinite(rate))
        return finite[len(finite) // 2] if finite else None


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {"opt.lr": 0.1, ...}; lists become JSON text."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = json.dumps(value) if isinstance(value, list) else value
    return flat


def planned_epochs(config: Mapping[str, Any]) -> float | None:
    """Return the epochs of a schedule, those of its phases where there are any; None where none are stated.

    Args:
        config: A configuration, nested or flat; the phases may be JSON text, as in a flat one.
    """
    train, phases = config.get("train"), config.get("phases")
    if isinstance(phases, str):
        try:
            phases = json.loads(phases)
        except ValueError:
            phases = None
    epochs = [
        number(phase.get("epochs")) for phase in (phases if isinstance(phases, list) else ()) if isinstance(phase, dict)
    ]
    if epochs and None not in epochs:
        return sum(value for value in epochs if value is not None)
    return number(train.get("epochs") if isinstance(train, dict) else config.get("train.epochs"))


def is_cut_short(epochs_done: float | None, planned: float | None) -> bool:
    """Whether a run ended before the end of its schedule; False where either is not known."""
    return epochs_done is not None and planned is not None and epochs_done < planned * (1 - 1e-6)


def digest(values: Mapping[str, Any]) -> str:
    """Return 8 hex digits that name a setting."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _of_role(key: str) -> bool:
    return key.endswith("/norm/mean") and key.count("/") == 2


def number(value: Any) -> float | None:
    """Return a number, or None for what is no number (texts such as "1e-4" count, booleans do not)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


class BrokenRunError(ReadError):
    """A folder holds no readable run; the text says why."""


def sampled(path: Path, most: int) -> tuple[list[tuple[int, bytes]], int]:
    """Return (number, line) of a file's lines, and how many there are; of a long file a sample, in one pass.

    Lines of one kind, told by how many quotation marks they have, that is by how many keys, are thinned alone: of the
    few with scores as many stay as of the many without. Each kind keeps its first and its last line. At most about
    32 x 2 x `most` lines are held at once, whatever the length of the file.

    Args:
        path: A .jsonl file; one that cannot be read has no lines.
        most: How many lines of a kind are surely kept.
    """
    kept: dict[int, list[tuple[int, bytes]]] = {}
    strides: dict[int, int] = {}
    seen: dict[int, int] = {}
    last: dict[int, tuple[int, bytes]] = {}
    count = 0
    try:
        with path.open("rb") as file:
            for count, line in enumerate(file, start=1):
                kind = line.count(b'"')
                if kind not in seen:
                    kind = kind if len(seen) < 32 else 0
                    kept.setdefault(kind, []), strides.setdefault(kind, 1), seen.setdefault(kind, 0)
                if seen[kind] % strides[kind] == 0:
                    kept[kind].append((count, line))
                    if len(kept[kind]) >= 2 * most:
                        kept[kind] = kept[kind][::2]
                        strides[kind] *= 2
                seen[kind] += 1
                last[kind] = count, line
    except OSError:
        return [], 0
    return sorted({*last.values(), *(entry for entries in kept.values() for entry in entries)}), count


def _lines(path: Path, most: int = LINES) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of a .jsonl file, None for what is no object; a half-written last line is left out."""
    lines, total = sampled(path, most)
    for count, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        elif line.strip() and (count < total or line.endswith(b"\n")):
            log.warning("skipped line %d of %s: not a JSON object", count, path)
            yield None


def _metrics(path: Path, most: int) -> tuple[list[dict[str, Any]], int]:
    """Return the lines that have a place in time, a whole step and a finite epoch, and how many are no objects."""
    kept, broken = [], 0
    for line in _lines(path, most):
        step, epoch = (None, None) if line is None else (number(line.get("step")), number(line.get("epoch")))
        broken += line is None
        if line is not None and step is not None and epoch is not None and math.isfinite(step) and math.isfinite(epoch):
            kept.append({**line, "step": int(step), "epoch": epoch})
    return kept, broken


def read_run(folder: Path, *, most: int = LINES) -> Run:
    """Return the run in a folder.

    Args:
        folder: The run's folder.
        most: Lines of metrics.jsonl of each kind that are surely read; of more, a sample.

    Raises:
        BrokenRunError: `run.json` cannot be read, or holds no object.
    """
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise BrokenRunError("no readable run.json") from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise BrokenRunError(f"run.json is broken ({error or type(error).__name__})") from None
    if not isinstance(record, dict):
        raise BrokenRunError("run.json holds no object")
    run = Run(folder, record, *_metrics(folder / "metrics.jsonl", most))
    # Of several networks the task's first stands for the run, in curves and in tables.
    return run.of_role(run.roles[0]) if run.roles and not run.series("norm/mean")[2] else run


def load_run(folder: Path) -> Run | None:
    """Return the run in a folder, or None (with a warning that names it) where `run.json` cannot be read."""
    try:
        return read_run(folder)
    except BrokenRunError as error:
        log.warning("skipped %s: %s", folder, error)
        return None


def experiments(root: Path) -> list[str]:
    """Return the experiments that have at least one folder with a `run.json`."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if any(path.glob("*/run.json")))


def load_runs(root: Path, experiment: str | None = None) -> list[Run]:
    """Return the runs under `<root>/<experiment>/<name>/`, ordered by folder.

    Args:
        root: The folder of all runs, usually results/runs.
        experiment: One experiment's name; None reads all.

    Returns:
        Every run whose `run.json` can be read, whatever its status.

    Raises:
        ReadError: There is no run at all, or none of this experiment; the text says what makes one.
    """
    known = experiments(root)
    if not known:
        example = experiment or "imagenet-resnet18"
        raise ReadError(f"no runs found in {root}; make one with: make {example}")
    if experiment is not None and experiment not in known:
        raise ReadError(f"no runs of experiment={experiment} in {root}; there are runs of: {', '.join(known)}")
    chosen = known if experiment is None else [experiment]
    folders = [folder for name in chosen for folder in sorted((root / name).iterdir()) if folder.is_dir()]
    runs = [run for folder in folders if (run := load_run(folder)) is not None]
    if not runs:
        raise ReadError(f"no readable run in {root}; see the warnings above")
    return runs


def primary_score(runs: Sequence[Run]) -> str | None:
    """Return the score that stands for these runs: what their task monitors, else val/top1 or another of validation."""
    if monitored := next((run.monitor for run in runs if run.monitor), ""):
        return monitored
    keys = {key for run in runs for key in run.scores}
    keys |= {key for run in runs for line in run.metrics for key in line if key.startswith("val/")}
    ranked = sorted(keys, key=lambda key: (key != "val/top1", not key.startswith("val/"), "loss" in key, key))
    return ranked[0] if ranked else None
