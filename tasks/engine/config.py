"""The engine's options, typed: the schema of `train.*` on the command line."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.base import InputError
from tasks.engine.neutral_keys import RESULT_NEUTRAL_KEYS as RESULT_NEUTRAL_KEYS
from tasks.engine.neutral_keys import decides_result

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass
class Train:
    """Options of the training loop.

    Attributes:
        epochs: Passes over the training set, all phases together unless phases say otherwise.
        batch_size: Global batch: examples per optimizer step, over all processes and micro-batches.
        seed: Draws the initial weights, the order of examples and their augmentation.
        accumulation: Micro-batches per step; BatchNorm then sees batch_size / (processes x accumulation) examples.
        max_steps: Stop after this many optimizer steps, for dry runs; null for the whole schedule.
        precision: "fp32", or autocast to "bf16" or "fp16" (the latter with loss scaling). Weights stay float32.
        tf32: Let CUDA matrix products and convolutions round to TF32 in fp32 runs. Off: the probes' cosines of 1e-6
            need the mantissa.
        channels_last: Store 4-d weights and images channels last.
        compile: Run the networks through `torch.compile`.
        clip_norm: Largest global gradient norm; null for no clipping.
        clip_value: Largest absolute gradient entry; null for no clipping.
        ema_decay: Also evaluate an exponential moving average of the weights; null for none.
        deterministic: Refuse operations that are not deterministic on the device.
        nonfinite: Treatment of an update whose loss or gradient is not finite: null ends the run as diverged, "skip"
            leaves the update out, "scale" also halves a factor on the loss; see `tasks.engine.non_finite`.
        check_every: Optimizer steps between two comparisons of all processes' weights; 0 compares only before saving.
        device: "auto" (CUDA when there is one), "cpu" or "cuda".
        threads: CPU threads of each process; null lets torch choose.
        num_workers: Data loading processes beside each training process; 0 loads in the training process.
        eval_epochs: Epochs between two evaluations; the last epoch is always evaluated.
        log_every: Optimizer steps between two lines of metrics.
        probe_every: Optimizer steps between two samples of norms and effective steps; 0 switches the probes off.
        probe_variant: Also probe weights that are not scale-invariant, under "variant/..." names: how often an
            optimizer's test takes one of them for scale-invariant.
        trace_every: Optimizer steps between two lines of effective learning rates and single weights, beside the
            lines of metrics, see `tasks.engine.norm_logging.trace_weights`; null for none.
        oscillation_window: Steps per window of the oscillation measure Q, one per line of metrics; 0 switches it off.
        checkpoint_minutes: Wall-clock minutes between two checkpoints (one is also written at the end of the run,
            when a signal asks for it, and at each new best score).
        timeout_minutes: Longest wait of a process for the others.
        progress: Show a progress bar, or timed lines where standard error is no terminal.
        restart: Start over where the run's checkpoints cannot be used; one that can be used is resumed all the same.
    """

    epochs: int = 100
    batch_size: int = 256
    seed: int = 0
    accumulation: int = 1
    max_steps: int | None = None
    precision: str = "fp32"
    tf32: bool = False
    channels_last: bool = False
    compile: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    ema_decay: float | None = None
    deterministic: bool = False
    nonfinite: str | None = None
    check_every: int = 100
    device: str = "auto"
    threads: int | None = None
    num_workers: int = 0
    eval_epochs: int = 1
    log_every: int = 50
    probe_every: int = 20
    probe_variant: bool = False
    trace_every: int | None = None
    oscillation_window: int = 0
    checkpoint_minutes: float = 10.0
    timeout_minutes: float = 30.0
    progress: bool = True
    restart: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside their range."""
        minima = {
            "epochs": 1, "batch_size": 1, "seed": 0, "accumulation": 1, "max_steps": 1, "threads": 1,
            "num_workers": 0, "eval_epochs": 1, "log_every": 1, "probe_every": 0, "oscillation_window": 0,
            "checkpoint_minutes": 0, "check_every": 0, "trace_every": 1,
        }  # fmt: skip
        for name, low in minima.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise InputError(f"train.{name} is {value}; it must be at least {low}")
        for name in ("clip_norm", "clip_value", "timeout_minutes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise InputError(f"train.{name} is {value}; it must be positive and finite")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InputError(f"train.ema_decay is {self.ema_decay}; it must lie in [0, 1)")
        if self.precision not in PRECISIONS:
            raise InputError(f"train.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.nonfinite not in (None, "skip", "scale"):
            raise InputError(f"train.nonfinite is {self.nonfinite!r}; choose skip, scale or null, which ends the run")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"train.device is {self.device!r}; choose auto, cpu or cuda")


def check_division(train: Train, processes: int) -> None:
    """Refuse a global batch that processes x accumulation do not divide."""
    pieces = processes * train.accumulation
    if train.batch_size % pieces:
        raise InputError(
            f"train.batch_size is {train.batch_size}, which {processes} processes x {train.accumulation} micro-batches "
            f"do not divide; choose a multiple of {pieces}, or change GPUS or train.accumulation"
        )


def result_keys(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved configuration that affects the result of a run, flat: "opt.lr" -> 0.1.

    Left out are the places of data, the loggers and the launchers.
    """
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node

    walk("", config)
    return {key: value for key, value in flat.items() if decides_result(key)}


def config_hash(config: Mapping[str, Any]) -> str:
    """Return 12 hex digits of the hash of `result_keys`."""
    text = json.dumps(result_keys(dict(config)), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def differing_keys(ours: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Return "opt.lr: 0.1 -> 0.2" for each result-relevant key in which a stored configuration differs from ours.

    A null counts as absent: an option of a later version, switched off, changes no old run.
    """
    a, b = result_keys(stored), result_keys(ours)
    return [
        f"{key}: {a.get(key, 'absent')} -> {b.get(key, 'absent')}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
