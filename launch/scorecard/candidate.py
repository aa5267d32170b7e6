"""An optimizer by its spec: a name of configs/opt, or a class of a package or a file; and whether it can be scored.

Specs: `adamp`, `timm:lion`, `pytorch_optimizer:SOAP`, `schedulefree:AdamWScheduleFree`, `my.module:MyOpt`,
`./file.py:MyOpt`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import io
import multiprocessing
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import hydra
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evidence.runs.run import ReadError
from launch.checkout import ROOT
from tasks.engine.optim import OptimizerFactory, evaluates_other_weights

# Package -> what pip calls it, where the two differ
DISTRIBUTIONS = {
    "pytorch_optimizer": "pytorch-optimizer",
    "torch_optimizer": "torch-optimizer",
    "dadaptation": "dadaptation",
}
SHAPES = ((6, 4), (6,), (4, 2, 3, 3))  # of the parameters that a candidate is tried on
STEPS = 3
Result = TypeVar("Result")


@dataclass(frozen=True)
class Candidate:
    """An optimizer that is to be scored.

    Attributes:
        spec: As it was typed.
        name: Of its files, with the options that were typed.
        target: Dotted name of its class.
        package: Package and version.
        options: Constructor options that were typed.
        takes_decay: Whether its constructor has the option `weight_decay`.
        is_schedule_free: Whether it scores other weights than it trains.
        words: Overrides that compose its runs' configuration.
        factory: Makes the optimizer from parameter groups; None for one of configs/opt, which its configuration makes.
    """

    spec: str
    name: str
    target: str
    package: str
    options: Mapping[str, Any] = field(default_factory=dict)
    takes_decay: bool = True
    is_schedule_free: bool = False
    words: Sequence[str] = ()
    factory: Callable[..., Optimizer] | None = None

    def configured(self, config: Mapping[str, Any], *, lr: float, weight_decay: float) -> dict[str, Any]:
        """Return the entry `opt` of a run's configuration, at a rate and a decay."""
        base = dict(config) if self.factory is None else {"_target_": self.target, **self.options}
        values = {"lr": lr, **({"weight_decay": weight_decay} if self.takes_decay else {})}
        return {**base, **values}

    def made_by(self, opt: Mapping[str, Any]) -> OptimizerFactory:
        """Return what makes the optimizer of an entry `opt`."""
        if self.factory is None:
            made: OptimizerFactory = hydra.utils.instantiate(dict(opt), _convert_="all")
            return made
        return functools.partial(self.factory, **{key: value for key, value in opt.items() if key != "_target_"})


def resolve(spec: str, options: Mapping[str, Any]) -> Candidate:
    """Return the optimizer of a spec.

    Args:
        spec: See the module's text.
        options: Of its constructor.

    Raises:
        ReadError: There is none, its package is missing, or it cannot be used; one line with the reason.
    """
    name = re.sub(r"\W+", "-", ",".join([spec, *(f"{key}={value}" for key, value in options.items())])).strip("-")
    if ":" not in spec:
        return _configured(spec, options, name)
    place, _, wanted = spec.rpartition(":")
    module = _file(place, spec) if place.endswith(".py") or "/" in place else _module(place, spec)
    cls = _class(module, wanted, spec)
    parameters = inspect.signature(cls).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    _check_signature(spec, cls, options, takes_all=takes_all)
    return Candidate(
        spec, name, f"{cls.__module__}.{cls.__qualname__}", _package(cls), dict(options),
        takes_decay=takes_all or "weight_decay" in parameters, is_schedule_free=_is_schedule_free(cls),
        words=("opt=adamw", *(("schedule=constant",) if _is_schedule_free(cls) else ())), factory=cls,
    )  # fmt: skip


def _configured(spec: str, options: Mapping[str, Any], name: str) -> Candidate:
    from launch.compose import CONFIG_ERRORS, composed, explain

    known = sorted(path.stem for path in (ROOT / "configs" / "opt").glob("*.yaml"))
    if spec not in known:
        raise ReadError(
            f"opt={spec} is no file of configs/opt{_meant(spec, known)}; a class is PACKAGE:CLASS or ./FILE.py:CLASS"
        )
    words = [f"opt={spec}", *(f"opt.{key}={value}" for key, value in options.items())]
    try:
        config = composed(["experiment=projection-effect-mlp", *words]).config
    except CONFIG_ERRORS as error:
        raise ReadError(f"opt={spec}: {explain(error)}") from None
    if config.get("phases"):
        raise ReadError(f"opt={spec} trains in several phases, which a scorecard's runs do not have")
    target = str(config["opt"]["_target_"])
    cls = hydra.utils.get_object(target)
    return Candidate(
        spec, name, target, _package(cls), dict(options), takes_decay="weight_decay" in config["opt"],
        words=tuple(words),
    )  # fmt: skip


def _file(place: str, spec: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise ReadError(f"opt={spec}: there is no file {place}")
    found = importlib.util.spec_from_file_location(f"scorecard_{path.stem}", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's own file raises
        raise ReadError(f"opt={spec}: {place} cannot be imported: {type(error).__name__}: {error}") from None
    return module


def _module(place: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        missing = (error.name or place).partition(".")[0]
        if missing != place.partition(".")[0]:
            raise ReadError(f"opt={spec}: {place} needs the package {missing}: pip install {missing}") from None
        name = DISTRIBUTIONS.get(missing, missing)
        raise ReadError(f"opt={spec} needs the package {missing}: .venv/bin/python -m pip install {name}") from None
    except Exception as error:
        raise ReadError(f"opt={spec}: {place} cannot be imported: {type(error).__name__}: {error}") from None


def _class(module: ModuleType, wanted: str, spec: str) -> type[Optimizer]:
    places = [module]
    with contextlib.suppress(ImportError):  # timm and torch hold theirs there
        places.append(importlib.import_module(f"{module.__name__}.optim"))
    known = {name: value for place in reversed(places) for name, value in vars(place).items()}
    optimizers = [n for n, value in known.items() if inspect.isclass(value) and issubclass(value, Optimizer)]
    by_case = {name.lower(): name for name in optimizers}
    chosen = known.get(wanted, known.get(by_case.get(wanted.lower(), "")))
    if chosen is None:
        raise ReadError(f"opt={spec}: {module.__name__} has no {wanted}{_meant(wanted, optimizers)}")
    if inspect.ismodule(chosen) and wanted.lower() in by_case:  # timm.optim.lion is the file of timm.optim.Lion
        chosen = known[by_case[wanted.lower()]]
    if not (inspect.isclass(chosen) and issubclass(chosen, Optimizer)):
        raise ReadError(f"opt={spec}: {wanted} is no optimizer: a subclass of torch.optim.Optimizer is needed")
    return chosen


def _check_signature(spec: str, cls: type[Optimizer], options: Mapping[str, Any], *, takes_all: bool) -> None:
    """Refuse a class whose constructor or step cannot be called."""
    parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first are the network's
    names = [each.name for each in parameters]
    plain = [each for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
    for key in options:
        if key not in names and not takes_all:
            raise ReadError(f"opt.{key}: {cls.__name__} has no such option{_meant(key, names)}")
    for each in plain:
        if each.default is each.empty and each.name not in {*options, "lr"}:
            raise ReadError(f"opt={spec}: {cls.__name__} needs the option {each.name}: give opt.{each.name}=VALUE")
    closure = inspect.signature(cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ReadError(f"opt={spec}: {cls.__name__} needs a closure that computes the loss several times a step")
    if "lr" not in names and not takes_all:
        raise ReadError(f"opt={spec}: {cls.__name__} has no option lr, which is what a scorecard tunes")


def _is_schedule_free(cls: type[Optimizer]) -> bool:
    return all(callable(getattr(cls, mode, None)) for mode in ("train", "eval"))


def _package(target: Any) -> str:
    root = str(getattr(target, "__module__", "")).partition(".")[0]
    try:
        return f"{root} {metadata.version(DISTRIBUTIONS.get(root, root))}"
    except metadata.PackageNotFoundError:
        return root


def _meant(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def in_child(call: Callable[..., Result], *arguments: Any) -> Result:
    """Call in a forked process, so that this one computes nothing before it forks others."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return pool.submit(call, *arguments).result()


def check(candidate: Candidate, opt: Mapping[str, Any]) -> None:
    """Refuse an optimizer that cannot be scored: it is tried for a few steps, in a process of its own.

    Args:
        candidate: The optimizer.
        opt: Its entry of a run's configuration.

    Raises:
        ReadError: One line with the reason.
    """
    try:
        reason = in_child(_refusal, candidate, dict(opt))
    except BrokenProcessPool:
        reason = "its process ended in its first steps"
    if reason:
        raise ReadError(f"opt={candidate.spec}: {reason}")


def _refusal(candidate: Candidate, opt: Mapping[str, Any]) -> str:
    """Return why an optimizer cannot be scored, "" where it can."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    # As many networks at once have them: parameters and gradients are rows of larger tensors
    wholes = [(torch.randn(2 * shape[0], *shape[1:]), torch.zeros(2 * shape[0], *shape[1:])) for shape in SHAPES]
    parameters = [nn.Parameter(whole[: len(whole) // 2]) for whole, _ in wholes]
    for parameter, (_, grads) in zip(parameters, wholes, strict=True):
        parameter.grad = grads[: len(parameter)]
    places = [
        (parameter.data_ptr(), parameter.grad.data_ptr()) for parameter in parameters if parameter.grad is not None
    ]
    start = [parameter.detach().clone() for parameter in parameters]
    rule = {"weight_decay": 0.0} if candidate.takes_decay else {}
    try:
        optimizer = candidate.made_by(opt)([{"params": parameters[:1]}, {"params": parameters[1:], **rule}])
        if evaluates_other_weights(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        for _ in range(STEPS):
            for _, grads in wholes:
                grads.normal_()
            optimizer.step()
        torch.load(_saved(optimizer), weights_only=True)
    except Exception as error:
        return f"a step without a closure fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return _fault(optimizer, parameters, places, start)


def _saved(optimizer: Optimizer) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return file


def _fault(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], places: Sequence[tuple[int, int]], start: Sequence[Tensor]
) -> str:
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if [id(parameter) for parameter in held] != [id(parameter) for parameter in parameters]:
        return "it changes the identity of its parameters: its groups hold other ones than they were given"
    if [(p.data_ptr(), p.grad.data_ptr() if p.grad is not None else 0) for p in parameters] != list(places):
        return "it changes the identity of its parameters: their storage or their gradients are others after a step"
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
        return f"it gives values that are not finite within {STEPS} steps of random gradients"
    if all(torch.equal(parameter, before) for parameter, before in zip(parameters, start, strict=True)):
        return f"it moves no weight within {STEPS} steps"
    return ""
