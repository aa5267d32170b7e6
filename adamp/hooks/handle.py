"""Step hooks of an optimizer: where they run, their handle, exceptions, their parameters and the rate of a group."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from adamp.step.checked import refuse_flattened
from adamp.step.dtensor import check_placement

StepArgs = tuple[tuple[Any, ...], dict[str, Any]]


class HookHandle(RemovableHandle):
    """Removes the hooks of an optimizer's steps; also a context manager that does so at its end."""

    def __init__(self, hooks: _AttachedHooks) -> None:
        super().__init__(OrderedDict())
        self._hooks = hooks

    def remove(self) -> None:
        """Remove the hooks, within a step at its end; a second call does nothing."""
        self._hooks.remove()


def find_hooked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer whose step runs hooks: the given one, or the one inside a wrapper that runs none.

    Wrappers that do not initialise torch's base class run none, such as those of accelerate and Lightning, and timm's
    Lookahead.

    Raises:
        ValueError: If a wrapper does not hold exactly one optimizer.
    """
    while not (hasattr(type(optimizer).step, "hooked") and hasattr(optimizer, "_optimizer_step_pre_hooks")):
        held = {id(value): value for value in vars(optimizer).values() if isinstance(value, Optimizer)}
        if len(held) != 1:
            raise ValueError(
                f"{type(optimizer).__name__} runs no step hooks, and holds {len(held)} optimizers where one could take "
                "them: attach to the optimizer that makes the step"
            )
        optimizer = next(iter(held.values()))
    return optimizer


class _AttachedHooks:
    """A step pre-hook and a post-hook, and a step in the place of the optimizer's that undoes the first if it raises.

    Torch has no hook for a step that raises. It also runs hooks twice where a step calls that of its base class; here
    that is one step.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        before: Callable[..., StepArgs | None],
        after: Callable[..., None],
        undo: Callable[[], None],
    ) -> None:
        self._optimizer, self._before, self._after, self._undo = optimizer, before, after, undo
        self._depth: int | None = None  # of steps that run hooks, within `__call__`
        self._is_removed = False
        self._handles = [
            optimizer.register_step_pre_hook(self._run_before),
            optimizer.register_step_post_hook(self._run_after),
        ]
        # An instance's step is a scheduler's or another hook's, and bound already
        own_step, class_step = vars(optimizer).get("step"), type(optimizer).step

        def step(optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
            self._depth = 0
            try:
                return class_step(optimizer, *args, **kwargs) if own_step is None else own_step(*args, **kwargs)
            except BaseException:
                self._undo()
                raise
            finally:
                self._depth = None
                if self._is_removed:
                    self.remove()

        self._own_step = own_step
        self.__func__ = self.__wrapped__ = step  # as of a method: schedulers and gradient scaling look at them
        if hasattr(own_step, "_wrapped_by_lr_sched"):
            self._wrapped_by_lr_sched = True
        optimizer.step = self  # type: ignore[method-assign]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self._optimizer, *args, **kwargs)

    def _run_before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepArgs | None:
        if self._depth is not None:
            self._depth += 1
            if self._depth > 1:
                return None
        return self._before(optimizer, args, kwargs)

    def _run_after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._depth is not None:
            self._depth -= 1
            if self._depth > 0:
                return
        self._after(optimizer, args, kwargs)

    def remove(self) -> None:
        if self._depth is not None:  # within a step, which ends as it began
            self._is_removed = True
            return
        for handle in self._handles:
            handle.remove()
        self._undo = lambda: None
        if vars(self._optimizer).get("step") is self:
            del self._optimizer.step
            if self._own_step is not None:
                self._optimizer.step = self._own_step


def attach_step_hooks(
    optimizer: Optimizer,
    before: Callable[..., StepArgs | None],
    after: Callable[..., None],
    *,
    undo: Callable[[], None],
) -> HookHandle:
    """Register a step pre-hook and a step post-hook, and return one handle of both.

    Args:
        optimizer: One that runs hooks, see `find_hooked_optimizer`.
        before: Called before each step.
        after: Called after each step that did not raise.
        undo: Called instead of `after` when a step raises: the hooks leave no trace then.
    """
    return HookHandle(_AttachedHooks(optimizer, before, after, undo))


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
        if is_lazy(param):
            raise ValueError("params holds a parameter of a lazy module: run its first forward pass before")
        if param not in groups:
            raise ValueError(f"params holds a tensor of shape {tuple(param.shape)} that the optimizer does not have")
        refuse_flattened(param)
        if param.ndim < 2:
            raise ValueError(f"params holds a parameter of shape {tuple(param.shape)}: only matrices have filters")
        check_placement(param)
    return matrices


class PresentParams:
    """Leaves out the parameters that the optimizer no longer has, with a warning for each."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._departed: set[Tensor] = set()

    def __call__(self, params: Iterable[Tensor], groups: dict[Tensor, dict[str, Any]]) -> list[Tensor]:
        """Return those of the parameters that are in `groups`."""
        params = list(params)
        for param in params:
            if param not in groups and param not in self._departed:
                self._departed.add(param)
                warnings.warn(
                    f"a parameter of shape {tuple(param.shape)} has left the optimizer: {self._owner} skips it",
                    stacklevel=2,
                )
        return [param for param in params if param in groups]


# Entries of groups whose steps and decay are not of the size of `lr`
_OTHER_RATES = {"d": "D-Adaptation and Prodigy estimate it", "weight_lr_power": "schedule-free methods average weights"}


def learning_rate(group: dict[str, Any], owner: str) -> float | Tensor:
    """Return the learning rate of a group, of which its decoupled weight decay takes a share.

    Raises:
        ValueError: If it is not the group's `lr`.
    """
    lr: float | Tensor | None = group.get("lr")
    if lr is None:
        raise ValueError(f"lr=None is not valid: {owner} needs the learning rate of a group")
    for name, reason in _OTHER_RATES.items():
        if name in group:
            raise ValueError(
                f"lr={lr!r} is not the rate of a group with the entry {name!r} ({reason}): {owner} cannot know it"
            )
    return lr


def decay_of_step(group: dict[str, Any], owner: str) -> float | Tensor:
    """Return the share of a weight that the decoupled weight decay of its group takes in a step.

    Raises:
        ValueError: If it is not known.
    """
    decay: float = group.get("weight_decay", 0)
    if not decay or group.get("fixed_decay"):  # pytorch_optimizer: apart from the learning rate
        return decay
    lr = learning_rate(group, owner)
    if group.get("corrected_weight_decay"):  # timm: the rate twice
        lr = lr * lr / group["max_lr_snapshot"]
    return lr * decay


def is_step_skipped(optimizer: Optimizer, device: torch.device) -> Tensor | None:
    """Return a 0-d bool: whether a fused optimizer under GradScaler skipped its step; None without such a scaler.

    GradScaler does not call other optimizers at all in that case, nor their hooks.
    """
    found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
    return None if found_inf is None else found_inf.to(device).reshape(()) > 0
