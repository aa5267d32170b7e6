"""Composed configurations, and whether what they name takes the arguments they give."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import OmegaConf

import launch.compose  # noqa: F401  registers the schema of train.*

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def composed(*overrides: str) -> dict[str, Any]:
    """Return a resolved configuration as a run stores it."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        found: dict[str, Any] = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    return found


def targets(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every node that names a `_target_`."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def check_arguments(config: dict[str, Any]) -> None:
    # A partial gets what is missing later: the network its classes, the optimizer its parameters.
    for node in targets(config):
        arguments = {key: value for key, value in node.items() if not key.startswith("_")}
        signature = inspect.signature(get_object(node["_target_"]))
        swallowing = [p for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
        bound = signature.bind_partial(**arguments)
        assert not swallowing or not bound.arguments.get(swallowing[0].name), (
            f"{node['_target_']} swallows a typing error"
        )
        if not node.get("_partial_"):
            signature.bind(**arguments)
