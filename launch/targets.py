"""What a configuration may call: the classes and functions that its `_target_`s and `figures` name.

A configuration may come from somebody else's run, so a name is data: only what is listed here is imported or called.
A module of the user's own counts when the environment variable ADAMP_MODULES names it; no configuration can set that.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.utils import get_object
from omegaconf import OmegaConf

from tasks.base import InputError

SUITE = ("adamp", "tasks", "tasks.engine.schedules", "tasks.engine.loggers", "tasks.engine.wandb_sink")
# Of the suite too, but they start programs, write files or know the network.
MACHINERY = ("adamp.kernels", "adamp.moved_modules", "tasks.engine", "tasks.audio.synthesis")
OPTIMIZERS = ("torch.optim", "timm.optim", "pytorch_optimizer")  # their optimizers alone
FIGURES = {
    *("scripts.detections.write_detections", "launch.trained.detections.write_detections"),
    *("scripts.filterbank.write_filterbank", "launch.trained.filterbank.write_filterbank"),
    *("scripts.search.write_neighbours", "launch.trained.neighbours.write_neighbours"),
}


def targets_in(path: str, node: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted key and the node of every entry that names a `_target_`, outer ones first."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets_in(f"{path}.{key}" if path else str(key), value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for place, value in enumerate(node):
            yield from targets_in(f"{path}[{place}]", value)


def check_targets(config: Mapping[str, Any]) -> None:
    """Check every `_target_` and every function of `figures` of a resolved configuration; it imports nothing.

    Raises:
        InputError: One is not allowed.
    """
    for path, node in targets_in("", config):
        check_name(f"{path}._target_", node["_target_"])
    for name in config.get("figures") or ():
        if name not in FIGURES and not _under(str(name), _own()):
            raise InputError(f"figures names {name}; it must be one of {', '.join(sorted(FIGURES))}{_OR_OWN}")


def check_name(key: str, name: Any) -> None:
    """Check the name of a class or function; it imports nothing.

    Raises:
        InputError: It lies in no module that is allowed.
    """
    plain = isinstance(name, str) and not any(part.startswith("_") for part in name.split("."))
    if not plain or not (_of_suite(name) or _under(name, (*OPTIMIZERS, *_own()))):
        raise InputError(f"{key} is {name}; it must lie in adamp or tasks, or be one of the optimizers of "
                         f"{', '.join(OPTIMIZERS)}{_OR_OWN}")  # fmt: skip


def load(key: str, name: str) -> Any:
    """Import the class or function of a name that is allowed.

    Raises:
        InputError: The name is not allowed, or its module only imports what it stands for from one that is not.
    """
    check_name(key, name)
    target = get_object(name)
    home = str(getattr(target, "__module__", ""))
    if not (_of_suite(f"{home}.") or _under(f"{home}.", _own()) or _is_optimizer(target)):
        raise InputError(f"{key} is {name}, which comes from {home or 'nowhere known'} and is no optimizer{_OR_OWN}")
    return target


def check_loaded(node: Any) -> None:
    """Import and check every `_target_` of a node that is about to be built.

    Raises:
        InputError: One is not allowed.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    for path, each in targets_in("", plain):
        load(f"{path}._target_".lstrip("."), each["_target_"])


_OR_OWN = "; the environment variable ADAMP_MODULES=module,module names modules of your own"


def _own() -> tuple[str, ...]:
    return tuple(name.strip() for name in os.environ.get("ADAMP_MODULES", "").split(",") if name.strip())


def _of_suite(name: str) -> bool:
    # The longest name decides: tasks.engine is machinery, tasks.engine.schedules is not.
    def depth(modules: Sequence[str]) -> int:
        return max((len(module) for module in modules if _under(name, (module,))), default=0)

    return depth(SUITE) > depth(MACHINERY)


def _under(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _is_optimizer(target: Any) -> bool:
    from torch.optim import Optimizer  # only what imports optimizers comes here

    return inspect.isclass(target) and issubclass(target, Optimizer)
