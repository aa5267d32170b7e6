"""Reading run folders, whatever state they are in: finished, failed, or still being written.

A run folder is `<root>/<experiment>/<name>/` with `run.json` (one object), `metrics.jsonl` (append-only, one
object a line) and `timing.jsonl`. A process may be writing to any of them while we read.

Errors are `ReadError` and not `tasks.base.InputError`: importing the latter means importing torch, which
takes longer than reading the runs does.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STATISTICS = (
    "mean",
    "min",
    "median",
    "max",
)  # `norm/mean` is over all layers, `norm/<anything else>` is one layer

log = logging.getLogger("scripts.runs")


class ReadError(ValueError):
    """What the user asked for is not there: shown as one or two lines without a traceback, exit code 2."""


@dataclass(frozen=True)
class Run:
    """One training run as it lies on disk.

    Attributes:
        folder: The run's folder.
        record: `run.json`; keys may be missing, the properties below are safe to read.
        metrics: The whole lines of `metrics.jsonl`, in file order.
    """

    folder: Path
    record: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

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
        """Whether the run reached its end."""
        return self.status == "finished"

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
        """The epochs asked for."""
        train = self.section("config").get("train")
        asked = number(train.get("epochs")) if isinstance(train, dict) else None
        return asked if asked is not None else number(self.record.get("epochs"))

    @property
    def epochs_done(self) -> float | None:
        """The epochs trained so far; fewer than asked for where the run was cut short by a number of steps."""
        recorded = number(self.record.get("epochs"))
        return recorded if recorded is not None else max((line["epoch"] for line in self.metrics), default=None)

    @property
    def scores(self) -> dict[str, float]:
        """Last value of every score, numbers only."""
        found = {str(key): number(value) for key, value in self.section("scores").items()}
        return {key: value for key, value in found.items() if value is not None}

    @property
    def commit(self) -> str:
        """Short commit, with a `+` where the working tree had changes."""
        git = self.section("git")
        commit = str(git.get("commit") or "unknown")[:10]
        return f"{commit}+" if git.get("dirty") else commit

    @property
    def machine(self) -> str:
        """The hardware in a few words."""
        return str(self.section("hardware").get("machine", "unknown machine"))

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

    def ends(self, key: str) -> tuple[float | None, float | None]:
        """Return a metric's first and last value, None where it was never logged."""
        _, _, values = self.series(key)
        return (values[0], values[-1]) if values else (None, None)

    @property
    def growth(self) -> float | None:
        """n_last^2 - n_0^2, n being the mean norm of the filters of all scale-invariant weights."""
        first, last = self.ends("norm/mean")
        return None if first is None or last is None else last**2 - first**2

    @property
    def monitor(self) -> str:
        """The score that picked the best checkpoint, e.g. val/top1; empty in records of earlier versions."""
        return self.text("monitor").lstrip("-")

    @property
    def lower_is_better(self) -> bool:
        """Whether the monitored score is the better the smaller it is: its task then names it with a minus."""
        name = self.text("monitor")
        return name.startswith("-") or (not name and "loss" in (primary_score([self]) or ""))

    @property
    def roles(self) -> list[str]:
        """The networks whose probes have keys of their own, `<role>/norm/mean`, where there are several."""
        found = {key.removesuffix("/norm/mean"): None for line in self.metrics for key in line if _of_role(key)}
        return list(found)

    def of_role(self, role: str) -> Run:
        """Return the run as seen from one of its networks: that network's keys stand without its name."""
        own, loss = f"{role}/", f"train/{role}_loss"
        metrics = []
        for line in self.metrics:
            seen = {key.removeprefix(own): value for key, value in line.items() if key.startswith(own)}
            if loss in line:
                seen["train/loss"] = line[loss]
            metrics.append({**line, **seen})
        return replace(self, metrics=metrics)

    def throughput(self) -> float | None:
        """Median examples a second over the log intervals, None where nothing was timed."""
        rates = [number(line.get("examples_per_s")) for line in _lines(self.folder / "timing.jsonl")]
        found = sorted(rate for rate in rates if rate is not None and math.isfinite(rate))
        return found[len(found) // 2] if found else None


def derived(run: Run, metric: str) -> tuple[list[int], list[float], list[float]]:
    """Return (steps, epochs, values) of a metric of metrics.jsonl, or of one made from it.

    `lr/norm/<parameter>` is the effective learning rate of a layer, rate over mean filter norm; `lr/norm2/<parameter>`
    divides by the square, which is how fast a filter of a network with momentum-free SGD turns.
    """
    found = run.series(metric)
    for prefix, power in (("lr/norm2/", 2), ("lr/norm/", 1)):
        if metric.startswith(prefix) and not found[0]:
            norms = zip(*run.series("norm/" + metric[len(prefix) :]), strict=True)
            rates = dict(zip(*[run.series("lr")[0], run.series("lr")[2]], strict=True))
            points = [(step, epoch, rates[step] / norm**power) for step, epoch, norm in norms if step in rates and norm]
            return [p[0] for p in points], [p[1] for p in points], [p[2] for p in points]
    return found


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


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a .jsonl file; a half-written last line is normal, others are reported."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    lines = text.splitlines()
    for count, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield value
        elif line.strip() and count < len(lines):
            log.warning("skipped line %d of %s: not a JSON object", count, path)


def _metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines that have a place in time: a whole step and a finite epoch."""
    kept = []
    for line in _lines(path):
        step, epoch = number(line.get("step")), number(line.get("epoch"))
        if step is not None and epoch is not None and math.isfinite(step) and math.isfinite(epoch):
            kept.append({**line, "step": int(step), "epoch": epoch})
    return kept


def load_run(folder: Path) -> Run | None:
    """Return the run in a folder, or None (with a warning that names it) where `run.json` cannot be read."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        log.warning("skipped %s: no readable run.json", folder)
        return None
    except (ValueError, RecursionError) as error:
        log.warning("skipped %s: run.json is broken (%s)", folder, error)
        return None
    if not isinstance(record, dict):
        log.warning("skipped %s: run.json holds no object", folder)
        return None
    run = Run(folder, record, _metrics(folder / "metrics.jsonl"))
    # Of several networks the task's first stands for the run, in curves and in tables.
    return run.of_role(run.roles[0]) if run.roles and not run.series("norm/mean")[2] else run


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
    found = [run for folder in folders if (run := load_run(folder)) is not None]
    if not found:
        raise ReadError(f"no readable run in {root}; see the warnings above")
    return found


def primary_score(runs: Sequence[Run]) -> str | None:
    """Return the score that stands for these runs: what their task monitors, else val/top1 or another of validation."""
    if monitored := next((run.monitor for run in runs if run.monitor), ""):
        return monitored
    keys = {key for run in runs for key in run.scores}
    keys |= {key for run in runs for line in run.metrics for key in line if key.startswith("val/")}
    ranked = sorted(keys, key=lambda key: (key != "val/top1", not key.startswith("val/"), "loss" in key, key))
    return ranked[0] if ranked else None
