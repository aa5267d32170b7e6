"""Optimizers by name: for configurations, and for timm's own factory."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import ParamsT

from adamp.adamp import AdamP
from adamp.adarem import AdaRem, AdaRemS
from adamp.scale_invariance import mark_groups, scale_invariant_parameters
from adamp.sgdp import SGDP

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adamp": AdamP,
    "sgdp": SGDP,
    "adarem": AdaRem,
    "adarem_s": AdaRemS,
}
TIMM_TAKES = {  # what timm may pass on: it drops the options that an optimizer is not said to have
    "adamp": {"has_eps": True, "has_betas": True},
    "sgdp": {"has_eps": True, "has_momentum": True},
    "adarem": {"has_eps": False},
    "adarem_s": {"has_eps": False},
}


def create(
    name: str, model: nn.Module | ParamsT, *, example_batch: Any = None, **options: Any
) -> torch.optim.Optimizer:
    """Return an optimizer by its name.

    Args:
        name: adamp, sgdp, adarem or adarem_s.
        model: A model, or parameters or groups of them.
        example_batch: Inputs of the model, as for `scale_invariant_parameters`. With them the parameters are in groups
            by their marks (`mark_groups`), in place of the optimizer's test. Not for adarem, which has no such option.
        **options: Of the optimizer's constructor, such as `lr`.

    Raises:
        ValueError: The name is unknown, or an example batch comes without a model or for adarem.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> optimizer = create("sgdp", model, example_batch=torch.randn(16, 4), lr=0.1, momentum=0.9)
        >>> [(group["scale_invariant"], len(group["params"])) for group in optimizer.param_groups]
        [('rows', 1), (False, 5)]
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"name={name!r} is not valid: it must be one of {', '.join(OPTIMIZERS)}")
    make: Any = OPTIMIZERS[name]
    if example_batch is None:
        return make(model.parameters() if isinstance(model, nn.Module) else model, **options)  # type: ignore[no-any-return]
    if not isinstance(model, nn.Module):
        raise ValueError(f"example_batch is for a model, and model is a {type(model).__name__}: leave it out")
    if name == "adarem":
        raise ValueError("example_batch is not valid for adarem, which does not use scale invariance: leave it out")
    return make(mark_groups(model, scale_invariant_parameters(model, example_batch)), **options)  # type: ignore[no-any-return]


def register_with_timm() -> None:
    """Give timm's factory this package's optimizers: `create_optimizer_v2(model, opt="adamp", ...)`.

    They take the place of timm's `adamp` and `sgdp`, with the defaults of their constructors: timm's own are
    `wd_ratio=0.01, nesterov=True` for adamp and `nesterov=True` for sgdp. AdaRem is `adarem`, AdaRem-S is `adarems`,
    since timm reads an underscore as the end of a prefix such as `lookahead_`.

    Raises:
        ImportError: timm is not installed, or older than 1.0.12, the first version with a registry.
    """
    try:
        timm = importlib.import_module("timm.optim._optim_factory")
        registry, info = timm.default_registry, timm.OptimInfo
    except (ImportError, AttributeError) as error:
        raise ImportError("register_with_timm needs timm 1.0.12 or newer: pip install -U timm") from error
    for name, optimizer in OPTIMIZERS.items():
        description = f"{optimizer.__name__} of adamp-optimizers"
        timm_name = name.replace("_", "")
        registry._optimizers.pop(timm_name, None)  # registering over a name would log a warning
        registry.register(info(timm_name, optimizer, description, **TIMM_TAKES[name]))
