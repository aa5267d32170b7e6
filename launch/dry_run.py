"""A few steps of an ImageNet experiment at full size, on noise, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.checkout import ROOT, TRAIN

CONFIGS = ROOT / "configs" / "experiment"
HEADS = [
    "experiment", "optimizer", "parameters", "pictures a step", "micro-batches", "pixels", "peak GiB", "seconds",
    "verdict",
]  # fmt: skip
METHODS = {"ws-": "sgd_aws", "wn-": "sgd_aws", "adarem-": "adarem_s"}  # what an experiment's paper proposes; else AdamP


def experiments() -> list[str]:
    """Return the names of the experiments on ImageNet."""
    files = sorted(CONFIGS.glob("*.yaml"))
    tasks = ("override /task: imagenet\n", "override /task: imagenet_long\n")
    return [path.stem for path in files if any(task in path.read_text(encoding="utf-8") for task in tasks)]


def division(batch: int, micro: int) -> int:
    """Return the least number of equal micro-batches of at most `micro` pictures."""
    return next(count for count in range(1, batch + 1) if batch % count == 0 and batch // count <= micro)


def words(name: str, values: dict[str, int], *, batch: int, more: Sequence[str]) -> list[str]:
    """Return the arguments of one run."""
    opt = next((opt for prefix, opt in METHODS.items() if name.startswith(prefix)), "adamp")
    return [
        f"experiment={name}", f"opt={opt}", "scale=full", "data=synthetic", f"data.train_examples={batch}",
        "data.val_examples=8", f"train.batch_size={batch}", f"train.accumulation={division(batch, values['micro'])}",
        f"train.max_steps={values['steps']}", "train.num_workers=0", "train.progress=false", "pictures=false", *more,
    ]  # fmt: skip


def attempt(name: str, values: dict[str, int], *, batch: int, more: Sequence[str]) -> list[str]:
    """Run one experiment in a process of its own and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(TRAIN), *words(name, values, batch=batch, more=more)],
            capture_output=True, text=True, env={**os.environ, "ADAMP_RESULTS": folder}, check=False,
        )  # fmt: skip
        (path, *_) = [*Path(folder).glob("runs/*/*/run.json"), None]
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    peak = float(record.get("peak_memory_mib") or 0) / 1024
    if done.returncode != 0 or record.get("steps") != values["steps"]:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        verdict = f"failed: {said[:160]}"
    else:
        verdict = "passed" if peak <= values["memory"] else f"failed: more than {values['memory']} GiB"
    model, data = record.get("model", {}), record.get("data", {})
    return [
        name, str(record.get("opt_name", "")), f"{model.get('parameters', 0):,}", str(batch),
        str(division(batch, values["micro"])), str(data.get("image_size", "")), f"{peak:.1f}",
        f"{record.get('wall_time_s', 0):.0f}", verdict,
    ]  # fmt: skip
