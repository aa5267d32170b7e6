"""Weights & Biases by name (`logger=wandb`): the same lines as metrics.jsonl, with axes that survive a resume."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# Which axis each family of metrics is drawn over. W&B's own step restarts at 0 in a resumed offline run.
AXES = {
    "train/*": "step", "lr": "step", "weight_decay_step": "step", "norm/*": "step", "effective_step/*": "step",
    "cosine/*": "step", "margin/*": "step", "projected/*": "step", "oscillation/*": "step", "val/*": "epoch",
}  # fmt: skip


class WandbSink:
    """Follow a run on W&B; without an account or network, offline beside the run (upload later: `wandb sync`).

    Args:
        project: W&B project.
        entity: W&B team or user; None for the account's default.
        monitor: Score whose maximum the run's summary shows, e.g. "val/top1".
        tags: More tags beside optimizer, scale and data set.

    W&B's own variables (WANDB_MODE, WANDB_PROJECT, WANDB_DIR, ...) win over these.
    """

    def __init__(
        self,
        project: str = "adamp",
        *,
        entity: str | None = None,
        monitor: str = "val/top1",
        tags: tuple[str, ...] = (),
    ) -> None:
        self.project, self.entity, self.monitor, self.tags = project, entity, monitor, tuple(tags)
        self.run: Any = None

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
        for name, axis in AXES.items():
            self.run.define_metric(name, step_metric=axis)
        self.run.define_metric(self.monitor, step_metric="epoch", summary="max")

    def _init(self, record: Mapping[str, Any], folder: Path) -> Any:
        import wandb  # 1.8 s to import, so a run without it pays nothing

        identity = f"{record['experiment']}/{record['name']}"
        arguments: dict[str, Any] = {
            "id": hashlib.sha256(identity.encode()).hexdigest()[:12],
            "resume": "allow",
            "name": record["name"],
            "group": record["experiment"],
            "job_type": "train",
            "tags": [t for t in (record["opt_name"], record["scale"], record["data"]["name"], *self.tags) if t],
            "config": {
                **record["config"], "opt_name": record["opt_name"], "seed": record["seed"], "git": record["git"],
                "config_hash": record["config_hash"], "data_name": record["data"]["name"],
            },
        }  # fmt: skip
        for key, value in (("project", self.project), ("entity", self.entity), ("dir", str(folder))):
            if f"WANDB_{key.upper()}" not in os.environ and value is not None:
                arguments[key] = value
        mode: Any = os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, timeout=10):
            mode = "offline"
            log.warning("W&B finds no key: logging offline under %s; upload later with `wandb sync`", folder / "wandb")
        settings = wandb.Settings(silent=True, init_timeout=60)
        try:
            return wandb.init(**arguments, mode=mode, settings=settings)
        except Exception as error:
            if mode in ("offline", "disabled"):
                raise
            log.warning("W&B cannot be reached (%s): logging offline", str(error).splitlines()[0])
            return wandb.init(**arguments, mode="offline", settings=settings)

    def log(self, values: Mapping[str, float]) -> None:
        """Send one line of metrics."""
        if self.run is not None:
            self._guard(self.run.log, dict(values))

    def finish(self, record: Mapping[str, Any], folder: Path) -> None:
        """Attach the figures and the scores, and close: a run left open would swallow the next of a sweep."""
        if self.run is None:
            return
        self._guard(self._attach, record, folder)
        self._guard(self.run.finish, exit_code=0 if record["status"] == "finished" else 1)
        self.run = None

    def _attach(self, record: Mapping[str, Any], folder: Path) -> None:
        import wandb

        self.run.summary.update({"status": record["status"], **record.get("scores", {})})
        figures = sorted((folder / "figures").glob("*.png"))
        if figures:
            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})

    def _guard(self, call: Any, *args: Any, **kwargs: Any) -> None:
        try:
            call(*args, **kwargs)
        except Exception as error:  # logging must never end a run
            log.warning("W&B refused a call: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
