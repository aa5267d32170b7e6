"""Read a trained run back: its configuration, what that builds, and the weights of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evidence.runs.run import ReadError
from launch.targets import load
from tasks.base import InputError

CHECKPOINTS = ("best", "last")


def build(node: Any) -> Any:
    """Build what a node of a run's configuration stands for: `_target_` called with the node's other entries.

    Partial nodes (`_partial_: true`) become functions. The suite's own modules alone are imported, since a run's folder
    may come from somebody else.

    Raises:
        ReadError: The node's target lies outside `tasks` and `adamp`.
    """
    if isinstance(node, list):
        return [build(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    given = {key: build(value) for key, value in node.items() if not key.startswith("_")}
    if "_target_" not in node:
        return given
    name = str(node["_target_"])
    try:
        target = load("_target_", name)
    except InputError:
        raise ReadError(f"{name}: a run's configuration may build only what lies in tasks and adamp") from None
    if node.get("_partial_"):
        return lambda *args, **more: target(*args, **{**given, **more})
    return target(**given)


def configuration(folder: Path) -> dict[str, Any]:
    """Return the configuration of a run.

    Raises:
        ReadError: The folder holds no run.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ReadError(f"run={folder}: holds no run.json of a run") from None
    return config


def weights(folder: Path, checkpoint: str = "best") -> dict[str, dict[str, Any]]:
    """Return network role -> state dict of a run's checkpoint, on the CPU.

    Raises:
        ReadError: There is no such checkpoint, or it cannot be read.
    """
    if checkpoint not in CHECKPOINTS:
        raise ReadError(f"checkpoint={checkpoint}: choose one of {', '.join(CHECKPOINTS)}")
    path = folder / "checkpoints" / f"{checkpoint}.pt"
    try:
        networks: dict[str, dict[str, Any]] = torch.load(path, map_location="cpu", weights_only=True)["networks"]
    except Exception as error:  # torch raises a dozen kinds for a broken archive
        raise ReadError(
            f"{path}: cannot be read ({(str(error) or type(error).__name__).splitlines()[0][:100]})"
        ) from None
    return networks
