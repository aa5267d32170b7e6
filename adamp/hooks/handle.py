"""What the step hooks share: a handle for several hooks, the moment the gradients are there, arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

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


def when_gradients_are_there(
    args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[], None], *, undo: Callable[[], None] = lambda: None
) -> StepArgs | None:
    """Call `act` at once, or, where `step` was given a closure, each time the closure has computed gradients.

    To be used in a step pre-hook, whose return value this is. `undo` is called before each evaluation of a closure.
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
    """Return each parameter's group, as it is now: loading a state dict makes new ones."""
    return {param: group for group in optimizer.param_groups for param in group["params"]}


def check_matrices(params: Iterable[Tensor], optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters without repetition, in order.

    Raises:
        ValueError: If there is none, one is not the optimizer's, or one has no rows.
    """
    chosen = list(dict.fromkeys(params))
    if not chosen:
        raise ValueError("params is empty: there is nothing to attach to")
    known = groups_of(optimizer)
    for param in chosen:
        if param not in known:
            raise ValueError(f"params holds a tensor of shape {tuple(param.shape)} that the optimizer does not have")
        if param.ndim < 2:
            raise ValueError(f"params holds a parameter of shape {tuple(param.shape)}: only matrices have filters")
    return chosen


def step_was_skipped(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Return a 0-d bool: whether a fused optimizer under GradScaler left the weights alone; None for no such scaler.

    Other optimizers are not called at all then, and neither are their hooks.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) > 0


def refuse_sparse(grad: Tensor, name: str) -> None:
    """Raise RuntimeError for a gradient that is not dense."""
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{name} does not support sparse gradients (shape {tuple(grad.shape)}); build the embedding with "
            "sparse=False"
        )
