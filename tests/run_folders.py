"""Run folders made by code: smooth synthetic curves in the format that the engine writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

# G = n_last^2 - n_0^2 that each optimizer's synthetic curve ends with at weight decay 0.
GROWTH = {"gd": 0.3, "sgd": 6.0, "sgdp": 1.0, "adamw": 14.0, "adamp": 1.0, "adam": 9.0, "adarem": 0.4}
PROJECTING = ("sgdp", "adamp")
LAYERS = ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight", "layer2.0.downsample.0.weight")


def record(
    opt: str, *, weight_decay: float, lr: float, seed: int, scale: str, data: str, epochs: int
) -> dict[str, Any]:
    """Return a finished run.json without scores."""
    return {
        "name": f"{opt},wd={weight_decay:g},lr={lr:g},{scale},seed={seed}",
        "experiment": "imagenet-resnet18",
        "status": "finished",
        "error": None,
        "opt_name": opt,
        "seed": seed,
        "scale": scale,
        "config": {
            "experiment_name": "imagenet-resnet18",
            "opt": {"_target_": f"adamp.{opt}", "lr": lr, "weight_decay": weight_decay},
            "train": {"epochs": epochs, "batch_size": 64, "seed": seed},
            "data": {"name": data, "root": "somewhere"},
        },
        "config_hash": "0123456789ab",
        "command": f"scripts/train.py experiment=imagenet-resnet18 opt={opt} train.seed={seed}",
        "git": {"commit": "803200ab" + "0" * 32, "dirty": False},
        "versions": {"python": "3.11.7", "torch": "2.11.0", "torchvision": "0.26.0", "adamp": "0.1.0"},
        "hardware": {"machine": "2 cores of a test machine, no GPU", "cores": 2, "gpus": [], "processes": 1},
        "data": {"name": data, "train_examples": 1297, "val_examples": 500, "classes": 10, "image_size": 8},
        "model": {"parameters": 11689512, "scale_invariant_share": 0.9553},
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:06:15+00:00",
        "wall_time_s": 130.4,
        "peak_memory_mib": 812.5,
        "resumed_from": [],
        "notices": {},
        "steps": epochs * 20,
        "epochs": epochs,
        "checkpoint": "checkpoints/last.pt",
    }


def metrics(opt: str, *, weight_decay: float, seed: int, epochs: int, layers: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return lines in the engine's format: 20 steps an epoch, one line every 5 steps."""
    growth = GROWTH.get(opt, 2.0) * (1 + 0.04 * seed) / (1 + 2000 * weight_decay)
    lines: list[dict[str, Any]] = [{"step": 0, "epoch": 0.0, **_norms(math.sqrt(1.5))}]
    total = epochs * 20
    for step in range(5, total + 1, 5):
        part = step / total
        norm = math.sqrt(1.5 + growth * part**0.7)
        size = (0.05 if opt in PROJECTING else 0.03) * (0.5 + 0.5 * math.cos(math.pi * part)) / norm
        noise = 0.03 * math.sin(step * 1.7 + seed)
        line = {
            "step": step,
            "epoch": step / 20,
            "train/loss": 2.3 * math.exp(-3 * part) + 0.1 + noise,
            "lr": 0.1,
        }
        line |= _norms(norm) | {f"effective_step/{name}": size * f for name, f in _spread()}
        line |= {
            "projected/share": 0.98 + 0.02 * part if opt in PROJECTING else 0.0,
            "margin/max": 0.02 + 0.5 * part,
        }
        line |= {"oscillation/median": 3 + part, "oscillation/ratio": 4 + part}
        if step % 20 == 0:
            for row, layer in enumerate(layers, start=1):
                line |= {f"norm/{layer}": norm * (0.6 + row / 3), f"effective_step/{layer}": size / row}
            line |= {"val/top1": 95 - 60 * math.exp(-4 * part) + 0.3 * seed, "val/loss": 1.0 - 0.7 * part}
        lines.append(line)
    return lines


def _spread() -> tuple[tuple[str, float], ...]:
    return ("mean", 1.0), ("min", 0.4), ("median", 0.9), ("max", 2.5)


def _norms(norm: float) -> dict[str, float]:
    return {f"norm/{name}": norm * factor for name, factor in _spread()}


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with nested objects changed key by key."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return out


def write_run(
    root: Path,
    opt: str = "sgdp",
    *,
    weight_decay: float = 0.0,
    lr: float = 0.1,
    seed: int = 0,
    scale: str = "mini",
    data: str = "digits",
    epochs: int = 4,
    layers: tuple[str, ...] = LAYERS,
    folder: str | None = None,
    change: dict[str, Any] | None = None,
) -> Path:
    """Write one run folder under `root` and return it; `change` is merged into run.json."""
    entry = record(opt, weight_decay=weight_decay, lr=lr, seed=seed, scale=scale, data=data, epochs=epochs)
    lines = metrics(opt, weight_decay=weight_decay, seed=seed, epochs=epochs, layers=layers)
    entry["scores"] = {key: value for key, value in lines[-1].items() if key.startswith("val/")}
    entry["best"] = {"score": lines[-1]["val/top1"], "epoch": epochs}
    entry = merged(entry, change or {})
    path = root / str(entry["experiment"]) / (folder or str(entry["name"]).replace("/", "_"))
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps(entry))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    timing = [{"step": 5, "seconds": 2.0, "examples_per_s": 410.0, "peak_memory_mib": 812.5}]
    (path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timing))
    return path
