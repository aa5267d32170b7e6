"""SGD and Adam with adaptive weight shrink attached, built in one call as a configuration file needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.aws import Kind, shrink_weights
from adamp.base import check_bool


def _marked(params: ParamsT) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Return the groups, those to shrink without weight decay, and the parameters to shrink.

    Groups are not split: a caller may keep something for each of those it gave.
    """
    given: list[Any] = list(params)
    groups: list[dict[str, Any]] = [dict(group) for group in given if isinstance(group, dict)]
    for group in groups:
        check_bool({"shrink": group.setdefault("shrink", False)}, "shrink")
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        if group["shrink"]:
            group |= {"params": list(group["params"]), "weight_decay": 0.0}
    shrunk = [param for group in groups if group["shrink"] for param in group["params"]]
    if not shrunk or len(groups) < len(given):
        raise ValueError(
            "no group of parameters has shrink=True, or not all are groups: mark the group of the weights that the "
            "layers of adamp.layers normalise"
        )
    return groups, shrunk


def sgd_with_shrink(
    params: ParamsT,
    lr: float | Tensor,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    alpha: float = 2.5e-3,
    kind: Kind = "ws",
    eps: float = 0.0,
) -> torch.optim.SGD:
    """Return torch's SGD that shrinks the parameters of some groups by `shrink_weights`, coupled into the gradient.

    Args:
        params: Groups of parameters; those with the entry `shrink=True` shrink and do not decay.
        lr: Learning rate.
        momentum: As in torch.
        nesterov: As in torch.
        weight_decay: Coupled decay of all other parameters.
        alpha: Strength of the shrink; the default is the paper's for ResNets with WS (Table 3).
        kind: See `shrink_weights`.
        eps: See `shrink_weights`.

    Returns:
        The optimizer, with the hooks attached.

    Raises:
        ValueError: If an option is out of range or nothing is left to shrink.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> groups = [{"params": [conv.weight], "shrink": True}, {"params": [conv.bias]}]
        >>> [group["weight_decay"] for group in sgd_with_shrink(groups, 0.1, weight_decay=1e-4).param_groups]
        [0.0, 0.0001]

    Reference:
        Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", §4.
    """
    groups, shrunk = _marked(params)
    optimizer = torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    shrink_weights(optimizer, alpha=alpha, params=shrunk, kind=kind, coupling="gradient", eps=eps)
    return optimizer


def adam_with_shrink(
    params: ParamsT,
    lr: float | Tensor = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    alpha: float = 2.5e-3,
    kind: Kind = "ws",
    eps: float = 0.0,
) -> torch.optim.Adam:
    """Return torch's Adam that shrinks the parameters of some groups by `shrink_weights`, apart from the gradient.

    Args:
        params: As for `sgd_with_shrink`.
        lr: Learning rate.
        betas: As in torch.
        weight_decay: Coupled decay of all other parameters.
        alpha: Strength of the shrink.
        kind: See `shrink_weights`.
        eps: See `shrink_weights`; Adam's own is torch's default.

    Returns:
        The optimizer, with the hooks attached.

    Raises:
        ValueError: If an option is out of range or nothing is left to shrink.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> groups = [{"params": [conv.weight], "shrink": True}, {"params": [conv.bias]}]
        >>> [group["weight_decay"] for group in adam_with_shrink(groups, weight_decay=1e-4).param_groups]
        [0.0, 0.0001]

    Reference:
        Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", §4.
    """
    groups, shrunk = _marked(params)
    optimizer = torch.optim.Adam(groups, lr, betas=betas, weight_decay=weight_decay)
    shrink_weights(optimizer, alpha=alpha, params=shrunk, kind=kind, coupling="weights", eps=eps)
    return optimizer
