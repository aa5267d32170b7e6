"""Loggers that follow a run beside the files on disk. Weights & Biases is `logger=wandb`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

# Axis of each family of metrics. W&B's own step restarts at 0 in a resumed offline run.
AXES = {
    "train/*": "step", "lr": "step", "weight_decay_step": "step", "decay/*": "step", "norm/*": "step",
    "effective_step/*": "step", "cosine/*": "step", "margin/*": "step", "projected/*": "step", "variant/*": "step",
    "oscillation/*": "step", "val/*": "epoch", "val_ema/*": "epoch", "test/*": "epoch", "unbiased/*": "epoch",
}  # fmt: skip


class RunLogger(Protocol):
    """A logger of one run. It must never end the run."""

    def start(self, record: Mapping[str, Any], folder: Path) -> None:
        """Begin or continue the run with this run.json."""

    def log(self, values: Mapping[str, float]) -> None:
        """Log one line of metrics; "step" and "epoch" are among its keys."""

    def finish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Close; the record holds the final status and scores, the folder the figures."""


class WandbLogger:
    """Logs a run to W&B, the lines of metrics.jsonl; without account or network offline (upload: scripts.wandb_sync).

    The run's summary holds the monitored score, and its moving average's, as best/SCORE and last/SCORE. W&B's own
    minimum and maximum are not used: a single NaN makes them NaN for good.

    Args:
        project: W&B project.
        entity: W&B team or user; None for the account's default.
        group: W&B group; None for the experiment. configs/logger/wandb.yaml gives the sweep.
        monitor: Score whose best and last values the run's summary shows, e.g. "val/top1"; prefixed with "-", lower is
            better. None takes the task's.
        tags: Further tags beside optimizer, experiment, scale, data set and seed.

    W&B's environment variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, ...) override these.
    """

    def __init__(
        self,
        project: str = "adamp",
        *,
        entity: str | None = None,
        group: str | None = None,
        monitor: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> None:
        self.project, self.entity, self.group = project, entity, group
        self.monitor, self.tags = monitor, tuple(tags)
        self.run: Any = None
        self._monitored: tuple[str, ...] = ()
        self._lower_is_better = False
        self._summary: dict[str, float] = {}

    def start(self, record: Mapping[str, Any], folder: Path) -> None:
        """Begin or continue the run. Its id comes from the run's identity, so a resumed run is one run there too."""
        try:
            self.run = self._init(record, folder)
        except Exception as error:  # logging must never end a run
            log.warning(
                "W&B is off for this run: %s",
                str(error).splitlines()[0] if str(error) else type(error).__name__,
            )
            return
        monitor = str(self.monitor or record.get("monitor") or "val/top1")
        split, _, score = monitor.lstrip("-").partition("/")
        self._monitored, self._lower_is_better = (f"{split}/{score}", f"{split}_ema/{score}"), monitor.startswith("-")
        self._summary = {}
        for values in self._lines_before(folder / "metrics.jsonl"):  # of a resumed run
            self._fold(values)
        self._call_safely(self._define)

    def _lines_before(self, path: Path) -> Iterator[dict[str, float]]:
        """Yield the monitored scores of the lines that a run has logged before it was resumed."""
        with contextlib.suppress(OSError, ValueError), path.open() as lines:  # a last line may be cut
            for line in lines:
                if any(f'"{key}"' in line for key in self._monitored):
                    values = json.loads(line)  # where a score is null it was not finite
                    yield {key: math.nan if values[key] is None else values[key] for key in values}

    def _fold(self, values: Mapping[str, float]) -> bool:
        """Take the monitored scores of a line into best and last; return whether it has any. NaN is never best."""
        better = min if self._lower_is_better else max
        keys = [key for key in self._monitored if key in values]
        for key in keys:
            value = float(values[key])
            self._summary[f"last/{key}"] = value
            if not math.isnan(value):
                self._summary[f"best/{key}"] = better(self._summary.get(f"best/{key}", value), value)
        return bool(keys)

    def _define(self) -> None:
        """Name the axis of each family of metrics."""
        for axis in ("step", "epoch"):
            self.run.define_metric(axis, hidden=True)
        for name, axis in AXES.items():
            self.run.define_metric(name, step_metric=axis)
        for key in self._monitored:
            self.run.define_metric(key, step_metric="epoch")

    def _init(self, record: Mapping[str, Any], folder: Path) -> Any:
        import wandb  # imported only here: it takes 1.8 s

        identity = f"{record['experiment']}/{record['name']}"
        arguments: dict[str, Any] = {
            "id": hashlib.sha256(identity.encode()).hexdigest()[:12],
            "resume": "allow",
            "name": record["name"],
            "group": self.group or record["experiment"],
            "job_type": "train",
            "tags": self._tags(record),
            "config": {
                **record["config"], "opt_name": record["opt_name"], "seed": record["seed"], "git": record["git"],
                "config_hash": record["config_hash"], "data_name": record["data"]["name"],
                "experiment": record["experiment"],
            },
        }  # fmt: skip
        for key, value in (("project", self.project), ("entity", self.entity), ("dir", str(folder))):
            if f"WANDB_{key.upper()}" not in os.environ and value is not None:
                arguments[key] = value
        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, timeout=10):
            mode = "offline"
            log.warning(
                "W&B finds no key: logging offline under %s; upload later: scripts.wandb_sync", folder / "wandb"
            )
        settings = wandb.Settings(silent=True, init_timeout=60)
        try:
            return wandb.init(**arguments, mode=mode, settings=settings)
        except Exception as error:
            if mode in ("offline", "disabled"):
                raise
            log.warning("W&B cannot be reached (%s): logging offline", str(error).splitlines()[0])
            return wandb.init(**arguments, mode="offline", settings=settings)

    def _tags(self, record: Mapping[str, Any]) -> list[str]:
        """Return the tags; W&B refuses those of more than 64 characters."""
        facts = (record["opt_name"], record["experiment"], record["scale"], record["data"]["name"])
        return [str(tag)[:64] for tag in dict.fromkeys([*facts, f"seed={record['seed']}", *self.tags]) if tag]

    def log(self, values: Mapping[str, float]) -> None:
        """Send one line of metrics, and best and last of the monitored score where it has one."""
        if self.run is not None:
            self._call_safely(self.run.log, dict(values))
            if self._fold(values):
                self._call_safely(self.run.summary.update, dict(self._summary))

    def finish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Attach the figures and the scores, and close: an open run would absorb the next of a sweep."""
        if self.run is None:
            return
        self._call_safely(self._attach, record, folder)
        self._call_safely(self.run.finish, exit_code=0 if record["status"] == "finished" else 1)
        self.run = None

    def _attach(self, record: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self.run.summary.update({"status": record["status"], **self._summary})
        figures = sorted((folder / "figures").glob("*.png"))
        if figures:
            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})

    def _call_safely(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # logging must never end a run
            log.warning("W&B refused a call: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
