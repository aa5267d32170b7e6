"""What a command line and a record may ask for: words that run code or read other configurations need `trusted=true`.

A record is data that somebody else may have written. Of its words those are taken that choose a configuration of this
checkout by its name, or state a value that the record's resolved configuration holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from launch.checkout import ROOT
from tasks.base import InputError

TRUSTED = "trusted=true"
# Flags that name further configurations or, the last one, a pickle.
FLAGS = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun")
# Words that name further folders of configurations.
FOLDERS = ("--config-dir=", "hydra.searchpath=")
# Words that say where a run is started. The command line's count now, not those of the first time.
PLACING = ("launcher=", "jobs=", "hydra.launcher.", "+hydra.launcher.")
# What may be set of Hydra itself; all else, such as callbacks, may call any function.
HYDRA_KEYS = r"hydra\.(launcher\.\w+|sweeper\.(params(\..+)?|cells)|mode|verbose|(run|sweep)\.\w+)"
ABSENT = object()


def without_trust(words: Sequence[str]) -> list[str]:
    """Return a typed command line without `trusted=true`.

    Raises:
        InputError: The word is not there and another needs it.
    """
    others = [word for word in words if word != TRUSTED]
    if TRUSTED in words:
        return others
    for word in others:
        name, _, _ = word.partition("=")
        key = name.lstrip("+~")
        sets_hydra = re.match(r"hydra\b", key) or "@hydra" in key
        if name in FLAGS or (sets_hydra and (not re.fullmatch(HYDRA_KEYS, key) or "_target_" in word)):
            raise InputError(
                f"{word} can run code that is not this suite's, or read configurations from elsewhere\n"
                f"Add {TRUSTED} if you know what it names."
            )
    return others


def rebuilt(argv: Sequence[str], config: Mapping[str, Any], *, trusted: bool) -> list[str]:
    """Return the words of a record that repeat its run, without those that place it.

    Args:
        argv: The recorded words.
        config: The record's resolved configuration; empty where the run was never started.
        trusted: Whether folders of configurations, files of groups, figures and targets are taken too.

    Raises:
        InputError: A word may not be taken; the text is the word.
    """
    words = []
    last = {word.partition("=")[0].lstrip("+~"): word for word in argv}
    for word in argv:
        if word == TRUSTED or word.startswith(PLACING):
            continue
        if word.startswith(FOLDERS):
            allowed = trusted
        elif word.startswith("-") or re.search(r"\bhydra\b", word.partition("=")[0]):
            allowed = False
        else:
            allowed = _may_be_taken(
                word, config, trusted=trusted, counts=last[word.partition("=")[0].lstrip("+~")] == word
            )
        if not allowed:
            raise InputError(word)
        words.append(word)
    return words


def _may_be_taken(word: str, config: Mapping[str, Any], *, trusted: bool, counts: bool) -> bool:
    """Whether a word is a plain choice, or states a value of the resolved configuration.

    Args:
        word: Of a record.
        config: The resolved configuration.
        trusted: Whether what names code or files is taken too.
        counts: Whether no later word sets the same key.
    """
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    if override.is_sweep_override():
        return False
    key = override.key_or_group
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    if re.split("[@/]", key)[0] in groups and not trusted:
        return override.package is None and re.fullmatch(r"\w[\w.-]*|", _text(override)) is not None
    if not trusted and ("_target_" in word or key.startswith("figures") or "${" in word):
        return False
    if key in groups or override.is_delete() or "${" in word or not counts:
        return True
    stated, held = override.value(), _held(config, key)
    return held is ABSENT or stated == held or (isinstance(stated, dict) and isinstance(held, dict))


def _text(override: Override) -> str:
    value = override.value()
    return "" if value is None else str(value)


def _held(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return ABSENT
        node = node[part]
    return node
