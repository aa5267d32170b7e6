"""Detection of the scale-invariant parameters of a model, by rescaling them."""

from __future__ import annotations

import copy
import functools
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from adamp.marks import Mark, num_slices, slices_first, spread
from adamp.step.dtensor import is_sharded
from adamp.step.precision import as_real

_EPS = 1e-20  # for normalisations; smaller values amplify the rounding of constant channels
_LARGEST_EPS = 0.01  # a smaller constant that is added, or bounds a value from below, is a normalisation's epsilon
_TOLERANCE = 1e-6  # of the outputs' largest magnitude; rounding stays below 1e-9, a change of a weight does not
_COSINE = 1e-4  # of a weight and its gradient; rounding reached 1e-5 where batch norm sees 8 values, else 1e-16
_FACTOR = 3.0  # weights are multiplied by factors between 1 / 3 and 3
_CONSTANT_FIELDS = vars(nn.Module()).keys() - {"_buffers"}  # what a forward pass does not change in a module


def scale_invariant_parameters(
    model: nn.Module, example_batch: Any, *, per_filter: bool = False, seed: int = 0
) -> dict[str, Mark]:
    """Find the parameters whose scale does not change what the model computes in training mode, and their slices.

    This is the structural truth that the optimizers' test estimates from gradients (§2.1 of the paper): a float64 copy
    of the model, on the CPU and with a negligible epsilon in every normalisation, is run with parameters multiplied by
    random factors. Before each run its buffers and whatever else a forward pass may change are reset. Entries that are
    exactly zero, such as batch norm's biases, are first moved to random values, so that zero is not taken for
    invariant. A parameter without any effect on the outputs is not invariant. Neither the model nor the global random
    state is touched; `SyncBatchNorm` normalises over this process's examples.

    Args:
        model: The model, not sharded.
        example_batch: A tensor, or a tuple of the positional arguments of the model. Batch norm must see more
            than two values per channel: from two values it keeps only their order, and everything before it
            seems invariant.
        per_filter: Return only the parameters marked "rows".
        seed: Of the random values and of dropout.

    Returns:
        The scale-invariant parameters in the model's order, name -> mark of their finest slices (rows or columns, else
        the tensor, see `adamp.marks`). Never those with fewer than two dimensions, as no optimizer projects vectors.

    Raises:
        ValueError: If batch norm sees two values per channel or fewer, the outputs hold no floating-point numbers that
            depend on the parameters, or a parameter is sharded or has no values.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 5, bias=False), nn.LayerNorm(5))
        >>> scale_invariant_parameters(model, torch.randn(16, 4))
        {'0.weight': 'rows', '2.weight': 'tensor'}
    """
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller's mode
        marks = _Rescaling(model, example_batch, seed=seed).marks()
    return {name: mark for name, mark in marks.items() if mark == "rows" or not per_filter}


def mark_groups(model: nn.Module, marks: Mapping[str, Mark]) -> list[dict[str, Any]]:
    """Return the parameter groups of a model for `AdamP`, `SGDP`, `AdaRemS` or an optimizer with `project_updates`.

    Args:
        model: The model; it may be sharded or wrapped since its marks were found, as long as its names are the same.
        marks: Of its scale-invariant parameters, as `scale_invariant_parameters` returns them.

    Returns:
        One group per mark, with the mark as its `scale_invariant`, and one of all other parameters with False.

    Raises:
        ValueError: If a marked name is not one of the model's parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        >>> groups = mark_groups(model, scale_invariant_parameters(model, torch.randn(16, 4)))
        >>> [(group["scale_invariant"], len(group["params"])) for group in groups]
        [('rows', 1), (False, 3)]
    """
    parameters = dict(model.named_parameters())
    for name in marks:
        if name not in parameters:
            raise ValueError(f"marks has the name {name!r}, which is not a parameter of the model")
    groups: dict[Mark | bool, list[Tensor]] = {mark: [] for mark in [*marks.values(), False]}
    for name, param in parameters.items():
        groups[marks.get(name, False)].append(param)
    return [{"params": params, "scale_invariant": mark} for mark, params in groups.items() if params]


class _Rescaling:
    """A float64 copy of a model and the outputs it gives when some parameters are multiplied."""

    def __init__(self, model: nn.Module, example_batch: Any, *, seed: int) -> None:
        _refuse_without_values(model)
        self.model = _double_copy(model)
        arguments = example_batch if isinstance(example_batch, tuple) else (example_batch,)
        self.arguments = tuple(_to_double(argument) for argument in arguments)
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = dict(self.model.named_parameters())
        self.modules = list(self.model.modules())
        for module in self.modules:
            for field, value in list(vars(module).items()):
                if "eps" in field:  # of which a forward pass may make a tensor
                    setattr(module, field, _negligible(value))
            if isinstance(module, _BatchNorm):
                module.register_forward_pre_hook(_refuse_two_values)
            if isinstance(module, nn.SyncBatchNorm):
                module.forward = types.MethodType(_BatchNorm.forward, module)  # type: ignore[method-assign]
        with torch.no_grad():
            for p in self.parameters.values():
                p.requires_grad_()
                p.copy_(torch.where(p == 0, 0.1 * self._normal(p.shape), p))
            self.values = {name: p.clone() for name, p in self.parameters.items()}
        # Copies of the state keep parameters, modules and process groups as they are
        kept = [*self.parameters.values(), *self.modules, *_process_groups(self.modules)]
        self.kept: dict[int, Any] = {id(x): x for x in kept}
        self.state = copy.deepcopy([_changeable_state(module) for module in self.modules], dict(self.kept))
        self.grads = self._gradients()
        with torch.no_grad():
            self.outputs = self._forward({})

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def marks(self) -> dict[str, Mark]:
        """Return the mark of the finest slices of each invariant parameter."""
        marks: dict[str, Mark] = dict(
            self._confirm([(name, "tensor") for name in self.grads if self._fits(name, "tensor")])
        )
        marks |= self._confirm([(name, "rows") for name in marks if self._fits(name, "rows")])
        for columns in (self._blocks_of_columns, lambda name: "columns"):  # the finer ones first
            candidates = [(name, columns(name)) for name, mark in marks.items() if mark == "tensor"]
            marks |= self._confirm([(name, mark) for name, mark in candidates if self._fits(name, mark)])
        return {name: marks[name] for name in self.parameters if name in marks}

    def _blocks_of_columns(self, name: str) -> Mark:
        """Return the mark of the output columns of a transposed convolution with several groups, else of columns."""
        owner = self.model.get_submodule(name.rpartition(".")[0])
        groups = getattr(owner, "groups", 1) if getattr(owner, "transposed", False) else 1
        return ("columns", groups) if groups > 1 else "columns"

    def _gradients(self) -> dict[str, Tensor]:
        """Return the gradients of a random sum of the outputs with respect to the matrices that affect it."""
        with _WithoutEpsilons():  # type: ignore[no-untyped-call]
            outputs = self._forward({})
            total = sum((output * self._normal(output.shape)).sum() for output in outputs if output.requires_grad)
            if not isinstance(total, Tensor):
                raise ValueError("example_batch: the model's outputs do not depend on its parameters")
            matrices = {name: p for name, p in self.parameters.items() if p.ndim > 1 and p.numel() > 0}
            grads = torch.autograd.grad(total, list(matrices.values()), allow_unused=True) if matrices else ()
        found = {name: grad for name, grad in zip(matrices, grads, strict=True) if grad is not None}
        return {name: grad.resolve_conj() for name, grad in found.items() if bool(grad.any())}

    def _fits(self, name: str, mark: Mark) -> bool:
        """Return whether the outputs do not depend to first order on the scale of any slice of a parameter.

        The gradient of a random sum of them is then orthogonal to each slice (eq. 4). The angle does not depend on how
        strong the effect is: attention's biases at their initial size move a language model's losses by less than any
        tolerance on the losses themselves, and are not invariant.
        """
        grad, p = as_real(self.grads[name]), as_real(self.values[name])
        if mark != "tensor" and num_slices(p.shape, mark) == 1:
            return False  # the tensor again
        radial, grads, weights = (slices_first(x, mark).flatten(1) for x in (grad * p, grad, p))
        bound = _COSINE * grads.norm(dim=1) * weights.norm(dim=1)
        if mark != "tensor":  # a slice almost without effect has a gradient of rounding alone
            bound = bound + _TOLERANCE * grad.norm() * p.norm()
        return bool((radial.sum(dim=1).abs() <= bound).all())

    def _confirm(self, candidates: list[tuple[str, Mark]]) -> list[tuple[str, Mark]]:
        """Return those whose slices may be rescaled, by bisection: a set that may be rescaled at once is invariant."""
        if not candidates or self._unchanged(candidates):
            return candidates
        if len(candidates) == 1:
            return []
        middle = len(candidates) // 2
        return self._confirm(candidates[:middle]) + self._confirm(candidates[middle:])

    @torch.no_grad()
    def _unchanged(self, candidates: list[tuple[str, Mark]]) -> bool:
        factors = {}
        for name, mark in candidates:
            shape = self.values[name].shape
            # Away from 1 on both sides: factors in [1/3, 1/sqrt(3)] or [sqrt(3), 3].
            number = num_slices(shape, mark)
            exponent = (torch.rand(number, generator=self.generator, dtype=torch.float64) + 1) / 2
            sign = torch.randint(2, (number,), generator=self.generator) * 2 - 1
            factors[name] = spread(torch.exp(math.log(_FACTOR) * exponent * sign), shape, mark)
        outputs = self._forward(factors)
        return all(
            a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * float(b.abs().max())
            for a, b in zip(outputs, self.outputs, strict=True)
            if b.numel()
        )

    def _forward(self, factors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the outputs from the same state every time, with some parameters multiplied."""
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(self.values[name] * factors[name] if name in factors else self.values[name])
        for module, state in zip(self.modules, copy.deepcopy(self.state, dict(self.kept)), strict=True):
            for field in _changeable_state(module).keys() - state.keys():
                del vars(module)[field]
            vars(module).update(state)
        with torch.random.fork_rng(devices=[]), _WithoutEpsilons():  # type: ignore[no-untyped-call]
            torch.manual_seed(self.seed)  # the same dropout masks every time
            outputs = list(_floating_tensors(self.model(*self.arguments)))
        if not any(output.numel() for output in outputs):
            raise ValueError("example_batch: the model's outputs hold no floating-point numbers to compare")
        return outputs


class _WithoutEpsilons(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes the epsilons of normalisations negligible, whatever they are called and wherever they are written.

    These are an operation's argument `eps` and small constants that are added or bound a value from below.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        position, name = _epsilon_argument(func)
        if name in kwargs:
            kwargs[name] = _negligible(kwargs[name])
        elif position < len(args):
            args = (*args[:position], _negligible(args[position]), *args[position + 1 :])
        return func(*args, **kwargs)


@functools.cache
def _epsilon_argument(func: Any) -> tuple[int, str]:
    """Return position and name of the argument of an operation that may be an epsilon; beyond the last for none."""
    operation = func.overloadpacket.__name__.rstrip("_")
    names = [argument.name for argument in func._schema.arguments]
    wanted = {"add": "other", "clamp": "min", "clamp_min": "min"}.get(operation, "eps" if "norm" in operation else "")
    return (names.index(wanted) if wanted in names else len(names)), wanted


def _negligible(value: Any) -> Any:
    return _EPS if isinstance(value, float) and _EPS < value < _LARGEST_EPS else value


def _double_copy(model: nn.Module) -> nn.Module:
    """Return a copy on the CPU in float64 and training mode."""
    # Neither process groups nor what a forward pass has left in a module, as weight_norm does, can be copied
    memo: dict[int, Any] = {id(x): x for x in _process_groups(model.modules())}
    for module in model.modules():
        memo |= {id(x): x.detach().clone() for x in _floating_tensors(vars(module)) if not x.is_leaf}
    # Not `to`, which would make complex numbers real
    double: nn.Module = copy.deepcopy(model, memo)._apply(_to_double).train()  # type: ignore[no-untyped-call]
    for module in double.modules():
        for name, value in _changeable_state(module).items():
            if isinstance(value, Tensor):  # neither parameter nor buffer
                setattr(module, name, _to_double(value))
    return double


def _process_groups(modules: Iterable[nn.Module]) -> list[Any]:
    if not torch.distributed.is_available():
        return []
    attributes = (value for module in modules for value in vars(module).values())
    return [value for value in attributes if isinstance(value, torch.distributed.ProcessGroup)]


def _changeable_state(module: nn.Module) -> dict[str, Any]:
    """Return what a forward pass may change: buffers and attributes, not parameters, modules and hooks."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}  # lives outside of Python
    return {name: value for name, value in vars(module).items() if name not in _CONSTANT_FIELDS}


def _refuse_without_values(model: nn.Module) -> None:
    for name, p in model.named_parameters():
        if is_sharded(p) or getattr(p, "_is_flat_param", False) or getattr(p, "_fsdp_flattened", False):
            raise ValueError(
                f"model has the sharded parameter {name!r}, which cannot be rescaled: find the marks before the model "
                "is sharded (fully_shard, tensor parallelism), then pass them to mark_groups"
            )
        if p.is_meta:
            raise ValueError(f"model has the parameter {name!r} on the meta device: it needs values to be rescaled")


def _refuse_two_values(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    x = arguments[0]
    values = x.numel() // max(x.shape[1], 1)
    if values <= 2:
        raise ValueError(
            f"example_batch gives batch norm an input of shape {tuple(x.shape)}, {values} values a channel: "
            "it must see more than two; give more or larger examples"
        )


def _to_double(x: Any) -> Any:
    if isinstance(x, Tensor):
        wide = torch.float64 if x.is_floating_point() else torch.complex128 if x.is_complex() else x.dtype
        return x.detach().to("cpu", wide)
    if isinstance(x, Mapping):
        return {key: _to_double(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_to_double(value) for value in x]
    if isinstance(x, tuple):
        values = [_to_double(value) for value in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)  # a named tuple or a plain one
    return x


def _floating_tensors(x: Any) -> Iterable[Tensor]:
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
        elif x.is_complex():
            yield torch.view_as_real(x.resolve_conj())
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _floating_tensors(value)
    elif isinstance(x, list | tuple):
        for value in x:
            yield from _floating_tensors(value)
