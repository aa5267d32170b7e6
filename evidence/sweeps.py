"""The grids of configs/sweep: a sweep's cells are the product of its Hydra parameters with each of its blocks in turn.

Hydra multiplies all lists of a sweep. A table of a paper is seldom such a product: its rows differ in their optimizer,
their decays, their network. So a sweep may hold `sweep.blocks`, a list of grids, or one list for each scale; each block
is run as one Hydra multirun. Free of Hydra and torch.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

SWEEPS = Path(__file__).resolve().parents[1] / "configs" / "sweep"
NOTES = ("printed", "label")  # entries of a block that are for the table, not for Hydra


def chosen(words: Sequence[str], key: str, default: str = "") -> str:
    """Return the value of the last `key=value` among command-line words."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{key}=")), default)


def read(name: str) -> dict[str, Any]:
    """Return a sweep's file as plain containers, empty where there is none."""
    path = SWEEPS / f"{name}.yaml"
    if not name or not path.is_file():
        return {}
    return copy.deepcopy(_load(path, path.stat().st_mtime_ns))


@cache
def _load(path: Path, modified: int) -> dict[str, Any]:
    """Return a file's content; reading one takes 50 ms, and a table reads its sweep many times."""
    return OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[return-value]


def blocks(name: str, scale: str) -> list[dict[str, Any]]:
    """Return a sweep's blocks at a scale: one empty block for a plain Hydra sweep."""
    listed = (read(name).get("sweep") or {}).get("blocks") or [{}]
    return list(listed.get(scale, []) if isinstance(listed, Mapping) else listed)


def runs(words: Sequence[str]) -> list[list[str]]:
    """Return the command lines that a command line stands for: one for each block of its sweep.

    What is typed chooses among the blocks' experiments and optimizers, and wins over everything else:
    `sweep=table-2 opt=sgdp` runs the sweep's cells of that optimizer.
    """
    typed = {key: value for key, equals, value in (word.partition("=") for word in words) if equals}
    lines = []
    for block, rest in _narrowed(chosen(words, "sweep"), chosen(words, "scale", "mini"), typed):
        more = [f"{key}={_text(value)}" for key, value in block.items() if key not in rest and key not in NOTES]
        lines.append([*(word for word in words if word.partition("=")[0] not in typed.keys() - rest.keys()), *more])
    return lines


def _narrowed(name: str, scale: str, typed: Mapping[str, str]) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Return the blocks that have a typed experiment or optimizer, with that alone, and what else is typed.

    A value that no block has replaces those of all blocks, as every other typed option does.
    """
    pairs = [(block, dict(typed)) for block in blocks(name, scale)]
    for key in ("experiment", "opt"):
        wanted = set(_alternatives(typed[key])) if key in typed else set()
        offered = {value for block, _ in pairs if key in block for value in _alternatives(_text(block[key]))}
        if not wanted or not wanted <= offered:
            continue
        kept = []
        for block, rest in pairs:
            if key in block:
                values = [value for value in _alternatives(_text(block[key])) if value in wanted]
                block, rest = {**block, key: values}, {k: v for k, v in rest.items() if k != key}
            if block.get(key) != []:
                kept.append((block, rest))
        pairs = kept
    return pairs


def cells(name: str, scale: str, typed: Mapping[str, str] | None = None) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """Return (block, overrides) of every cell of a sweep, in the order in which they are run.

    Args:
        name: The sweep.
        scale: mini or full.
        typed: Overrides of the command line, as in `runs`.
    """
    params = read(name).get("hydra", {}).get("sweeper", {}).get("params", {})
    product = []
    for block, rest in _narrowed(name, scale, typed or {}):
        grid = {**params, **{k: v for k, v in block.items() if k not in NOTES}, **rest}
        lists = [_alternatives(_text(values)) for values in grid.values()]
        product += [(block, dict(zip(grid, values, strict=True))) for values in itertools.product(*lists)]
    return product


def _alternatives(text: str) -> list[str]:
    """Return the values of a choice; a list, or the name of a run, holds commas too and is one value."""
    return [text] if "=" in text else re.split(r",(?![^\[]*\])", text)


def _text(value: Any) -> str:
    """Return a list as Hydra's choice of values."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
