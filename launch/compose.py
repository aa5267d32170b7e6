"""Composing configurations: words of the command line -> Hydra's configuration -> a run's `RunSpec` and its name."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.checkout import ROOT
from launch.data_places import listed_place, place_of
from launch.schema import check_options
from launch.targets import check_loaded, check_targets
from launch.trust import TRUSTED
from launch.unread import check_read
from launch.words import did_you_mean, did_you_mean_option, quoted
from tasks.base import InputError
from tasks.engine.config import Train
from tasks.engine.neutral_keys import NAMED, is_neutral_override
from tasks.engine.run_spec import RunSpec

if TYPE_CHECKING:  # torch is loaded only by a run that has something left to do
    from tasks.engine.phases import Phase

CONFIGS = ROOT / "configs"
CONFIG_ERRORS = (InputError, HydraException, OmegaConfBaseException)  # `explain` says them in a line or two


def _refusing(find: Callable[[str | None, str], str | None]) -> Callable[[str | None, str], str | None]:
    """Return a resolver that refuses a wrong file of places as every other wrong input."""

    def resolve(data_root: str | None, name: str) -> str | None:
        try:
            return find(data_root, name)
        except ValueError as error:
            raise InputError(str(error)) from None

    return resolve


# Threads that wait for each other sleep instead of spinning: on cores that other work shares, a run is otherwise
# several times slower. It changes no number, and must be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

for _resolver in (place_of, listed_place):
    OmegaConf.register_new_resolver(_resolver.__name__.removesuffix("_of"), _refusing(_resolver), replace=True)
ConfigStore.instance().store(group="train", name="options", node=Train)


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """Return a run's name from its configuration alone: no time, so that the same command finds the same run.

    Examples:
        >>> config = {"opt_name": "sgd", "opt": {"lr": 0.1, "weight_decay": 0}, "scale_name": "mini",
        ...           "train": {"seed": 0}, "tag": None}
        >>> run_name(config, ["experiment=imagenet-resnet18", "opt=sgd", "train.epochs=2", "gpus=2"])
        'sgd,wd=0,lr=0.1,mini,seed=0,train.epochs=2'
    """
    opt = config["opt"]
    words = [
        str(config["opt_name"]), f"wd={_number(opt, 'weight_decay')}", f"lr={_number(opt, 'lr')}",
        str(config["scale_name"]), f"seed={config['train']['seed']}",
    ]  # fmt: skip
    for override in sorted(readable(overrides)):
        key = override.split("=", 1)[0].lstrip("+~")
        if key not in NAMED and not is_neutral_override(key):
            words.append(override.lstrip("+"))
    if config.get("tag"):
        words.append(str(config["tag"]))
    name = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))
    if len(name) <= 200:
        return name
    # File systems end at 255 bytes. What is cut off must still tell two runs apart, a tag above all.
    return f"{name[:189]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def _number(opt: Mapping[str, Any], key: str) -> str:
    value = opt.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"opt.{key} is {value!r}; it must be a number")
    return f"{value:.12g}"


def plan(cfg: DictConfig, overrides: Sequence[str]) -> RunSpec:
    """Turn a composed configuration into a plan; nothing is built yet.

    Raises:
        InputError: The configuration names no experiment, or a value is out of its range, or a target is not allowed.
    """
    if cfg.experiment_name is None:
        known = ", ".join(sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml")))
        raise InputError(f"no experiment is named; add experiment=NAME, one of: {known}")
    if not isinstance(cfg.gpus, int) or not cfg.gpus >= 1:
        raise InputError(f"gpus is {cfg.gpus}; it must be a whole number of processes, at least 1")
    check_read(cfg, overrides)
    train: Train = OmegaConf.to_object(cfg.train)  # type: ignore[assignment]
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
    check_options(config)
    check_targets(config)
    config.pop("sweep", None)  # which table asked for a run is no part of the run: tables share runs
    name = run_name(config, overrides)

    def make(node: Any) -> Any:
        check_loaded(node)
        # Plain containers: optimizers would hold OmegaConf lists, which a weights-only load refuses.
        return hydra.utils.instantiate(node, _convert_="all")

    def make_phases() -> list[Phase]:
        from tasks.engine.phases import Phase

        given = [dict(phase) for phase in cfg.phases] or [{"epochs": train.epochs}]
        return [
            Phase(
                epochs=phase["epochs"], trainable=phase.get("trainable", ""),
                start_from=phase.get("start_from", "last"),
                opt=make(phase["opt"]) if phase.get("opt") else (make(cfg.opt) if i == 0 else None),
                schedule=make(phase.get("schedule") or cfg.schedule),
            )
            for i, phase in enumerate(given)
        ]  # fmt: skip

    def draw(folder: Path) -> Path:
        from evidence.site.reports import write_run_report  # matplotlib is imported only by a run that draws

        ended = json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "finished"
        for name in cfg.figures if ended else []:  # a run that is told to stop has no time for them
            try:
                hydra.utils.get_method(name)(folder)
            except Exception as trouble:  # one picture less; the run and its page stand
                logging.getLogger(__name__).warning("%s could not draw %s: %s", name, folder, trouble)
        return write_run_report(folder)

    return RunSpec(
        experiment=cfg.experiment_name, name=name, folder=Path(cfg.paths.runs) / cfg.experiment_name / name,
        config=config, train=train, rules=config["opt_groups"], make_task=lambda: make(cfg.task),
        make_phases=make_phases, make_loggers=lambda: list(make(cfg.get("logger") or {}).values()),
        write_report=draw if cfg.pictures else None, overrides_by_property=config["marks"],
        normalise=config["normalise"], normalise_eps=config["normalise_eps"], argv=(*places(), *overrides),
    )  # fmt: skip


def places() -> list[str]:
    """Return the words of the command line that name further folders of configurations, and that they are trusted."""
    if not HydraConfig.initialized():
        return []
    config = HydraConfig.get()
    folders = [
        f"--config-dir={source.path}" for source in config.runtime.config_sources if source.provider == "command-line"
    ]
    folders += [word for word in config.overrides.hydra if word.startswith("hydra.searchpath=")]
    return [TRUSTED, *folders] if folders else []


def readable(words: Sequence[str]) -> list[str]:
    """Return a command line that Hydra can read: values with `=` in them, such as runs' names, are quoted."""
    return quoted(words, _parses)


def _parses(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def composed(overrides: Sequence[str]) -> RunSpec:
    """Return the plan of the run that overrides stand for, without running it; made before the next is composed."""
    overrides = readable(overrides)
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # what asks for the choices of groups asks it
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    return plan(own, overrides)


def identify(overrides: Sequence[str], seeds: Sequence[int]) -> tuple[str, list[str]]:
    """Return the experiment and, for each seed, the name of the run that overrides stand for, without running it.

    Composing takes half a second, and is the same for all seeds.
    """
    planned = composed([*overrides, f"train.seed={seeds[0]}"])
    config = planned.config
    return planned.experiment, [run_name({**config, "train": {**config["train"], "seed": s}}, overrides) for s in seeds]


def explain(error: BaseException, words: Sequence[str] = ()) -> str:
    """Return a configuration error in one or two lines: what was given, what is known, what was meant perhaps.

    Args:
        error: What Hydra, OmegaConf or a constructor raised.
        words: The command line; it chooses the configuration whose options are searched for the nearest.
    """
    cause: BaseException | None = error
    while cause is not None:  # Hydra wraps what a constructor raised
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__
    text = re.sub(r"\s*\n\s*", " ", str(error)).strip()
    if found := re.search(r"InputError raised while resolving interpolation: (.*?)(?: full_key: |$)", text):
        return found[1]  # of a resolver
    if found := re.search(r"Could not find '(\w+)/([^']+)' Available options in '\w+': (.+?) Config search path", text):
        group, value, known = found.groups()
        return (
            f"{group}={value} is not known{did_you_mean(value, known.split())}; choose one of: "
            f"{', '.join(known.split())}"
        )
    reason = str(error.__cause__) if isinstance(error.__cause__, OmegaConfBaseException) else text
    reason = re.sub(r"\s*\n\s*", " ", reason).strip()
    if re.search(r"full_key: image_size\b", reason):
        return "image_size is no option here; give data.image_size=N, or model.image_size=N for detection"
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1]
        if "not in" in reason or reason == text:  # no such key, or no such group
            return f"{key} is no option here{did_you_mean_option(key, option_names(words))}; --cfg job prints all"
    if found := re.search(r"(.*?) full_key: (\S+)", reason):
        return f"{found[2]}: {found[1]}"
    if found := re.search(r"Error parsing override '([^']+)' missing EQUAL", reason):
        place = words.index(found[1]) if found[1] in words else len(words)
        value = next((word for word in words[place + 1 : place + 2] if "=" not in word), "VALUE")
        return f"{found[1]} is not key=value; write {found[1]}={value}"
    if found := re.search(r"(.*) See https://hydra\.cc/\S*override_grammar", reason):
        word = next((word for word in words if "=" in word and not _parses(word)), "an argument")
        key, _, value = word.partition("=")
        spelling = f"; as text it is '{key}=\"{value}\"'" if value and '"' not in value else ""
        return f"{word} cannot be read as key=value: {found[1]}{spelling}"
    return reason[:400]


def option_names(words: Sequence[str]) -> list[str]:
    """Return the dotted keys of the configuration that the groups among words choose, and the groups' names."""
    groups = [path.name for path in CONFIGS.iterdir() if path.is_dir()]
    chosen = [word.split(",")[0] for word in words if word.partition("=")[0] in groups]
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            cfg = hydra.compose("train", chosen)
    except CONFIG_ERRORS:
        return groups

    def keys(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict):
            return [prefix]
        return [key for name, value in node.items() for key in keys(value, f"{prefix}.{name}" if prefix else str(name))]

    return [*groups, *keys(OmegaConf.to_container(cfg), "")]
