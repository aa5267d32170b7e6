"""Base class of the optimizers: option checks, closure, sparse gradients, older checkpoints; the decayed update."""

from __future__ import annotations

import inspect
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from adamp.step.dtensor import check_placement, is_sharded, place_like


def is_in_range(value: Any, *, below: float = math.inf) -> bool:
    """Return whether `value` is one number with `0 <= value < below`; a tensor must be 0-d."""
    try:
        return bool(0 <= value < below) and not (isinstance(value, Tensor) and value.ndim > 0)
    except (TypeError, ValueError, RuntimeError):
        return False  # not a number, or a tensor of several


def check_number(options: dict[str, Any], name: str, *, below: float = math.inf) -> None:
    """Raise ValueError unless `0 <= options[name] < below`; a tensor must be 0-d."""
    value = options[name]
    if not is_in_range(value, below=below):
        bound = f"0 <= {name}" + (f" < {below:g}" if below < math.inf else " and finite")
        raise ValueError(f"{name}={value!r} is not valid: it must be one number with {bound}")


def check_bool(options: dict[str, Any], name: str) -> None:
    """Raise ValueError unless `options[name]` is a bool."""
    if not isinstance(options[name], bool):
        raise ValueError(f"{name}={options[name]!r} is not valid: it must be True or False")


def check_betas(betas: Any) -> tuple[float, float]:
    """Return the two decay rates of Adam as a tuple, whatever sequence they came in, such as Hydra's.

    Raises:
        ValueError: If they are not two numbers, each with `0 <= beta < 1`.
    """
    if not (isinstance(betas, Sequence) and len(betas) == 2 and all(is_in_range(beta, below=1) for beta in betas)):
        raise ValueError(f"betas={betas!r} is not valid: it must be two numbers, each with 0 <= beta < 1")
    return betas[0], betas[1]


def refuse_sparse(grad: Tensor, name: str) -> None:
    """Raise RuntimeError, in the name of an optimizer or a hook, if a gradient is not a dense tensor."""
    if grad.layout is not torch.strided:
        raise RuntimeError(
            f"{name} does not support sparse gradients (parameter of shape {tuple(grad.shape)}); build the embedding "
            "with sparse=False"
        )


def refuse_flattened(param: Tensor) -> None:
    """Raise ValueError for a parameter that the older FullyShardedDataParallel has flattened."""
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            f"a parameter of shape {tuple(param.shape)} was flattened by FullyShardedDataParallel: without its rows it "
            "could not be projected; use torch.distributed.fsdp.fully_shard"
        )


def warn_without_matrices(params: Iterable[Tensor], owner: str) -> bool:
    """Warn if not one of the parameters has the two dimensions that a projection needs; return whether one has."""
    params = list(params)
    has_matrices = any(is_lazy(param) or param.ndim > 1 for param in params)
    if params and not has_matrices:
        warnings.warn(
            f"{owner} has no parameter of two or more dimensions, so nothing is projected: a wrapper may have merged "
            "them into flat buffers; give it the parameters in their own shapes",
            stacklevel=3,
        )
    return has_matrices


def is_state_initialisation(optimizer: Optimizer) -> bool:
    """Return whether this step only creates the state of a fresh optimizer: rates and gradients are all 0.

    `torch.distributed.checkpoint.state_dict` takes such a step, as state dicts need every entry. Gradients are read on
    the host, but only in the first step of an optimizer, and only at rate 0.
    """
    # The compiler first: it creates state as it traces, and may trace again from the start
    if torch.compiler.is_compiling() or optimizer.state:
        return False
    for group in optimizer.param_groups:
        lr = group.get("lr")
        if lr is None or (isinstance(lr, Tensor) and lr.device.type != "cpu") or lr != 0:
            return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Every process of a sharded gradient sees the whole of it: they have to agree
    return bool(grads) and not any(bool((g.full_tensor() if is_sharded(g) else g).any()) for g in grads)


def decayed_update(
    weight: Tensor, update: Tensor, *, step_size: float | Tensor, decay: float | Tensor | None
) -> Tensor:
    """Return `step_size u + decay w`, which a step subtracts from the weight; no decay for None.

    Algebraically the new weight is `(1 - decay) w - step_size u`, but this is rounded once: in float32 `1 - decay` is
    exactly 1 for a decay below 2^-25, which AdamP reaches with lr 1e-3, weight_decay 1e-4 and wd_ratio 0.1.
    """
    step = update * step_size
    if decay is not None:
        step = step + weight * decay
    return step


def apply_update_(weight: Tensor, update: Tensor, *, step_size: float | Tensor, decay: float | Tensor | None) -> None:
    """Subtract the `decayed_update` from the weight in place."""
    weight.sub_(decayed_update(weight, update, step_size=step_size, decay=decay))


class CheckedOptimizer(Optimizer):
    """An optimizer that checks every group's options and loads checkpoints that have fewer of them."""

    # Options that choose how a step is computed, not its result: loading a checkpoint does not change them.
    IMPLEMENTATION_OPTIONS: tuple[str, ...] = ()

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._check(defaults)
        super().__init__(params, defaults)

    @abstractmethod
    def _check(self, options: dict[str, Any]) -> None:
        """Raise ValueError if one of a group's options, or of the defaults, is out of range."""

    @abstractmethod
    def _step(self) -> None:
        """Update every parameter that has a gradient."""

    @abstractmethod
    def _init_state(self) -> None:
        """Create the state of every parameter that has a gradient, as it is before the first step."""

    def _upgrade_state(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Convert one parameter's state from an older checkpoint to the current layout, in place."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer.add_param_group`, after checking its options.

        Raises:
            ValueError: If an option is out of range.
            RuntimeError: If a parameter is a DTensor of terms of a sum.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            for param in self.param_groups[-1]["params"]:
                check_placement(param)
        except RuntimeError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        current = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        # A pickled optimizer of an earlier release has not heard of the options since.
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if parameter.default is not parameter.empty:
                self.defaults.setdefault(name, parameter.default)
        for index, group in enumerate(self.param_groups):
            # An option that the checkpoint does not have keeps this optimizer's value.
            options = current[index] if index < len(current) else self.defaults
            for name, default in self.defaults.items():
                group.setdefault(name, options.get(name, default))
            for name in self.IMPLEMENTATION_OPTIONS:
                group[name] = options.get(name, group[name])
        for group in self.param_groups:
            for param in group["params"]:
                if param in self.state:
                    param_state = self.state[param]
                    for name, value in list(param_state.items()):
                        if value is None:  # torch's SGD saves None for a buffer that it has not created yet
                            del param_state[name]
                        elif isinstance(value, Tensor):
                            param_state[name] = place_like(value, param)
                    self._upgrade_state(param, param_state, group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Reevaluates the model and returns the loss; called once, with gradients enabled.

        Returns:
            The closure's return value, or None.

        Raises:
            RuntimeError: If a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        elif is_state_initialisation(self):
            self._init_state()
            return None
        with torch.set_grad_enabled(self.defaults.get("differentiable", False)):
            self._step()
        return loss
