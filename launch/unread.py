"""Refusal of shared options that nothing in a composed run reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tasks.base import InputError

SHARED_OPTIONS = ("data_root", "image_size")  # data sets read them by interpolation, as ${data_root}


def check_read(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse an option that was given and that no value of the configuration refers to: it would change nothing.

    Args:
        cfg: A composed configuration, not resolved.
        overrides: The words it was composed from.

    Raises:
        InputError: Nothing reads the option; what to give instead is named.
    """
    given = {override.partition("=")[0].lstrip("+") for override in overrides}
    text = json.dumps(OmegaConf.to_container(cfg, resolve=False), default=str)
    for option in SHARED_OPTIONS:
        value = OmegaConf.select(cfg, option)
        if option in given and value is not None and not re.search(rf"\${{(oc\.select:)?{option}[,}}]", text):
            raise InputError(f"{option}={value}: nothing in this run reads it; {_instead(cfg, option)}")


def _instead(cfg: DictConfig, option: str) -> str:
    if option == "data_root":
        name = OmegaConf.select(cfg, "data.name") or "its data"
        return (
            f"{name} has a place of its own. Choose a set that is read from data_root by scale=full or data=NAME, or "
            "give the folder of this one as data.root"
        )
    sizes = [key for key in _keys(OmegaConf.to_container(cfg, resolve=True)) if key.endswith(f".{option}")]
    sizes = sorted({key.removeprefix("task.") for key in sizes})
    return f"give {' or '.join(f'{key}=N' for key in sizes)}" if sizes else "its pictures have one size"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _keys(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix
