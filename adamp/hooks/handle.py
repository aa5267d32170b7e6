"""Step hooks of an optimizer: their handle, a call after backward, their parameters, skipped steps."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from adamp.step.dtensor import check_placement

StepArgs = tuple[tuple[Any, ...], dict[str, Any]]


class HookHandle(RemovableHandle):
    """Removes several hooks at once; also a context manager that does so at its end."""

    def __init__(self, hooks: Iterable[RemovableHandle]) -> None:
        super().__init__(OrderedDict())
        self._hooks = list(hooks)

    def remove(self) -> None:
        """Remove the hooks; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()


def attach_step_hooks(
    optimizer: Optimizer, before: Callable[..., StepArgs | None], after: Callable[..., None]
) -> HookHandle:
    """Register a step pre-hook and a step post-hook, and return one handle of both."""
    return HookHandle([optimizer.register_step_pre_hook(before), optimizer.register_step_post_hook(after)])


def run_after_backward(
    args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None], *, undo: Callable[[], None] = lambda: None
) -> StepArgs | None:
    """Call `act` at once, or, if `step` has a closure, after each backward pass of the closure.

    For a step pre-hook, which returns this value. `undo` is called before each evaluation of a closure.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if closure is None:
        act()
        return None

    def wrapped() -> Any:
        undo()
        loss = closure()
        with torch.no_grad():
            act()
        return loss

    return ((args[0], wrapped, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": wrapped})


def groups_of(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return each parameter's current group; loading a state dict creates new ones."""
    return {param: group for group in optimizer.param_groups for param in group["params"]}


def check_matrices(params: Iterable[Tensor], optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters without repetition, in order.

    Raises:
        ValueError: If there is none, one is not the optimizer's, or one has no rows.
        RuntimeError: If one is a DTensor of terms of a sum.
    """
    matrices = list(dict.fromkeys(params))
    if not matrices:
        raise ValueError("params is empty: there is nothing to attach to")
    groups = groups_of(optimizer)
    for param in matrices:
        if param not in groups:
            raise ValueError(f"params holds a tensor of shape {tuple(param.shape)} that the optimizer does not have")
        if param.ndim < 2:
            raise ValueError(f"params holds a parameter of shape {tuple(param.shape)}: only matrices have filters")
        check_placement(param)
    return matrices


def is_step_skipped(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Return a 0-d bool: whether a fused optimizer under GradScaler skipped its step; None without such a scaler.

    GradScaler does not call other optimizers at all in that case, nor their hooks.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) > 0
