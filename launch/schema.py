"""Types of options: each value of a configuration against the signature that takes it, before anything is built.

Hydra hands over text where a word is neither a number, a list nor true, false or null, and text is true in Python:
without this check `opt.nesterov=off` would switch Nesterov's momentum on. Text for true or false is refused.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from launch.targets import load, targets_in
from launch.words import did_you_mean
from tasks.base import InputError


@dataclass
class Options:
    """The options at the top of `configs/train.yaml` that no constructor takes, and their types."""

    data_root: str | None
    gpus: int
    jobs: int | Literal["auto"]
    tag: str | int | float | bool | None
    pictures: bool
    figures: list[str]
    opt_groups: list[dict[str, Any]]
    marks: dict[str, dict[str, Any]]
    normalise: str | None
    normalise_eps: float
    phases: list[dict[str, Any]]


def check_options(config: Mapping[str, Any]) -> None:
    """Check the options at the top of a resolved configuration; it imports nothing.

    Raises:
        InputError: A value is not of its option's type.
    """
    hints = typing.get_type_hints(Options)
    for field in fields(Options):
        if field.name in config:
            _check(field.name, config[field.name], hints[field.name])


def check_data_root(cfg: DictConfig) -> None:
    """Check that the folder of a data set that the user brings is given and there; it imports nothing.

    Raises:
        InputError: It is not given, or does not exist.
    """
    node = cfg.get("data")
    source = str(OmegaConf.to_container(node).get("root")) if isinstance(node, DictConfig) else ""  # type: ignore[union-attr]
    if "data_root" not in source:
        return
    if cfg.data_root is not None and not Path(str(cfg.data_root)).exists():
        raise InputError(f"data_root={cfg.data_root}: does not exist")
    if node.root is not None and not Path(str(node.root)).exists():
        raise InputError(f"data_root={cfg.data_root} names {node.root}, which does not exist")
    if node.root is None and "oc.select" not in source:
        name = HydraConfig.get().runtime.choices.get("data")
        if cfg.data_root is not None:
            line = source.rpartition(",")[2].strip("}")
            raise InputError(f"data_root={cfg.data_root} names no {line}; add a line {line}: /path/to/{line}")
        raise InputError(
            f"data_root is not set; data={name} needs the folder of its files, data_root=/path/to/{name} "
            f"(configs/data/{name}.yaml says what the folder holds)"
        )


def check_arguments(config: Mapping[str, Any]) -> None:
    """Check every entry beside a `_target_` against the target's signature; it imports the targets, and so torch.

    Raises:
        InputError: A target cannot be imported, takes no such argument, or takes one of another type.
    """
    # The task repeats model and data: their own keys are what a user types.
    for root in sorted(config, key=lambda root: root == "task"):
        for path, node in targets_in(root, config[root]):
            parameters, hints = _signature(path, str(node["_target_"]))
            takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
            for key, value in node.items():
                if key.startswith("_"):
                    continue
                if key in parameters:
                    _check(f"{path}.{key}", value, _hint(parameters[key], hints))
                elif not takes_any:
                    name = str(node["_target_"]).rpartition(".")[2]
                    raise InputError(f"{path}.{key} is no argument of {name}{did_you_mean(key, parameters)}")


def _signature(path: str, name: str) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    try:
        return _signature_of(f"{path}._target_", name)
    except InputError:
        raise
    except Exception as error:  # whatever the import of foreign code raises
        raise InputError(f"{path}._target_ is {name}; it cannot be imported: {str(error).splitlines()[0]}") from error


@cache
def _signature_of(key: str, name: str) -> tuple[Mapping[str, inspect.Parameter], Mapping[str, Any]]:
    target = load(key, name)
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # foreign annotations that cannot be read: the defaults tell
        hints = {}
    return inspect.signature(target).parameters, hints


def _hint(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    """Return a parameter's type: its annotation, else what its default tells. A default is always allowed."""
    default = parameter.default
    hint = hints.get(parameter.name, Any)
    if hint is Any:
        if isinstance(default, bool):
            return bool
        return float if isinstance(default, int | float) else Any
    return hint | None if default is None else hint


def _check(key: str, value: Any, hint: Any) -> None:
    if not _fits(value, hint):
        said = "null" if value is None else repr(value)
        raise InputError(f"{key} is {said}; it must be {_words(hint)}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a configuration is of a type; what cannot be known fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if isinstance(value, Mapping) and "_target_" in value:
        return True  # its target makes the value
    if origin is Literal:
        # A wrong choice, or none, is its owner's to refuse: it can say what to choose
        return value is None or type(value) in map(type, arguments)
    if hint in (None, types.NoneType):
        return value is None
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(each, arguments[1]) for each in value.values())
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        if not isinstance(value, list):
            return False
        each = arguments if origin is tuple and arguments[-1] is not Ellipsis else arguments[:1] * len(value)
        return len(each) == len(value) and all(map(_fits, value, each))
    if hint is typing.Any or not inspect.isclass(hint):
        return True
    # Another class, such as a tensor, a network or a path: of plain values only text can stand for one.
    return not isinstance(value, bool | int | float)


def _words(hint: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    if hint in plain:
        return plain[hint]
    if origin in (typing.Union, types.UnionType):
        # A tensor for a number, for instance, cannot be typed
        typed = [each for each in arguments if each in plain or get_origin(each) is not None] or arguments
        return " or ".join(dict.fromkeys(map(_words, typed)))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a mapping {name: value}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list [{', '.join(map(_words, arguments))}]"
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return f"a list [{_words(arguments[0])}, ...]"
    return getattr(hint, "__name__", str(hint))
