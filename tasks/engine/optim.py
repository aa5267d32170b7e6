"""Parameter groups, optimizers and the application of schedules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamp.adarem import ResilientOptimizer
from tasks.base import InputError
from tasks.engine.schedules import Schedule

ParamGroups = list[dict[str, Any]]
OptimizerFactory = Callable[[ParamGroups], Optimizer]
Rule = Mapping[str, Any]  # {"match": regex, "lr_scale": 100, "weight_decay": 0, ...}


def parameter_groups(name: str, network: nn.Module, rules: Sequence[Rule]) -> ParamGroups:
    """Split a network's parameters into groups by regular expressions over "network.parameter"; first match wins.

    Parameters that no rule matches form the first group with the optimizer's own values. A rule's other entries
    override the optimizer's, and `lr_scale` multiplies the learning rate. The rules have passed `check_rules`.
    """
    groups: ParamGroups = [{"params": [], "rule": ""}]
    for rule in rules:
        groups.append({"params": [], "rule": rule["match"], **{k: v for k, v in rule.items() if k != "match"}})
    for parameter_name, parameter in network.named_parameters():
        hits = (i for i, rule in enumerate(rules, 1) if re.search(rule["match"], f"{name}.{parameter_name}"))
        groups[next(hits, 0)]["params"].append(parameter)
    return groups


def check_rules(networks: Mapping[str, nn.Module], rules: Sequence[Rule]) -> None:
    """Refuse invalid rules: a typing error ignored in silence would change the run.

    Raises:
        InputError: A rule has no `match`, its expression is broken, or it matches no parameter.
    """
    names = [f"{role}.{name}" for role, net in networks.items() for name, _ in net.named_parameters()]
    for rule in rules:
        if not isinstance(rule, Mapping):
            raise InputError(f"opt_groups holds {rule!r}; it must be a list of rules: [{{match: ..., lr_scale: 10}}]")
        if "match" not in rule:
            raise InputError(f"opt_groups holds a rule without `match`: {dict(rule)}")
        try:
            hit = any(re.search(rule["match"], name) for name in names)
        except re.error as error:
            raise InputError(f"opt_groups: {rule['match']!r} is not a regular expression ({error})") from None
        if not hit:
            raise InputError(f"opt_groups: {rule['match']!r} matches no parameter; names look like {names[0]!r}")


def build_optimizer(factory: OptimizerFactory, groups: ParamGroups) -> Optimizer:
    """Build the optimizer; its errors name the option to change.

    Raises:
        InputError: A rate or decay that is not a finite number, or whatever the optimizer itself refuses.
    """
    keywords = dict(getattr(factory, "keywords", {}))
    for key in ("lr", "weight_decay"):
        for value in [keywords.get(key), *(group.get(key) for group in groups)]:
            # torch.optim checks `lr < 0`, which lets NaN through.
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"opt.{key} is {value}; it must be finite and at least 0")
    scales = [group.pop("lr_scale", 1.0) for group in groups]
    filled = [(group, scale) for group, scale in zip(groups, scales, strict=True) if group["params"]]
    try:
        optimizer = factory([group for group, _ in filled])
    except (ValueError, TypeError) as error:
        function = getattr(factory, "func", factory)
        raise InputError(f"opt: {getattr(function, '__name__', function)} refuses its arguments: {error}") from None
    for group, (_, scale) in zip(optimizer.param_groups, filled, strict=True):
        group["lr"] = group["lr"] * scale
    return optimizer


def apply_schedules(optimizer: Optimizer, schedules: Mapping[str, Schedule], *, epoch: float, epochs: float) -> None:
    """Set each scheduled entry of each group to its own initial value times the schedule's multiplier.

    The group holds the initial value as `initial_<entry>`, as with torch's schedulers, so that it is saved with the
    optimizer.
    """
    for entry, schedule in schedules.items():
        multiplier = schedule(epoch, epochs)
        for group in optimizer.param_groups:
            if entry not in group:
                raise InputError(f"schedule: the optimizer's groups have no entry {entry!r} to schedule")
            value = group[entry]
            initial = group.setdefault(f"initial_{entry}", value.clone() if isinstance(value, Tensor) else value)
            if isinstance(value, Tensor):
                value.copy_(initial * multiplier)
            else:
                group[entry] = initial * multiplier


@contextmanager
def scaled_learning_rates(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Multiply every group's learning rate inside the block, and restore each bit for bit after it."""
    if factor == 1:
        yield
        return
    before = [group["lr"] for group in optimizer.param_groups]
    for group, lr in zip(optimizer.param_groups, before, strict=True):
        group["lr"] = lr * factor  # out of place: a tensor rate keeps its value
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr


def evaluates_other_weights(optimizer: Optimizer) -> bool:
    """Whether an optimizer scores other weights than it trains, as schedule-free ones do: it has `train` and `eval`."""
    return all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))


def rate_and_decay(optimizer: Optimizer) -> tuple[float, dict[str, float]]:
    """Return the first group's learning rate, and its weight decay per step in units comparable between optimizers.

    Returns:
        The rate, and these fractions of a weight: `weight_decay_step`, lr x weight_decay as given; `decay/other`, the
        long-run decay per step, momentum included; `decay/projected`, the same for a weight that the optimizer's test
        finds scale-invariant. The last two are left out for a decay that the optimizer rescales along with the
        gradient (Adam, RMSprop): there the decay is no fixed fraction.
    """
    group = optimizer.param_groups[0]
    lr, decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
    shares = {"weight_decay_step": lr * decay}
    projects = {"delta", "wd_ratio"} <= group.keys()
    if projects or isinstance(optimizer, torch.optim.SGD):
        shares["decay/other"] = lr * decay / max(1 - float(group.get("momentum", 0.0)), 1e-12)
    elif isinstance(optimizer, torch.optim.AdamW | ResilientOptimizer) or group.get("decoupled_weight_decay"):
        shares["decay/other"] = lr * decay
    if "decay/other" in shares:
        shares["decay/projected"] = shares["decay/other"] * (float(group["wd_ratio"]) if projects else 1.0)
    return lr, shares


def gradient_norm(network: nn.Module) -> Tensor:
    """Return the global L2 norm of a network's gradients, 0-d, float32."""
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    if not grads:
        return torch.zeros(())
    norms: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in grads]))
    return norms
