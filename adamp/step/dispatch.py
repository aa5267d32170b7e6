"""The implementations of one and the same step, and the choice of one for each tensor.

- "single": tensor by tensor, in readable torch operations. The specification, and the only one that autograd can pass.
- "foreach": all tensors at once, see `adamp.step.foreach`. Few launches, no host read; supports DTensor.
- "fused": custom kernels, see `adamp.kernels`.
"""

from __future__ import annotations

import functools
import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT

from adamp import kernels
from adamp.kernels.options import Shards, Unmoved
from adamp.marks import check_marked, check_mode, num_blocks
from adamp.step.checked import (
    CheckedOptimizer,
    check_bool,
    check_number,
    refuse_flattened,
    refuse_sparse,
    warn_without_matrices,
)
from adamp.step.dtensor import (
    check_blocks,
    check_grad,
    has_whole_rows,
    is_sharded,
    layout_of,
    local,
    local_grad,
    placement_of,
    sum_over_processes,
)
from adamp.step.foreach import StepBuffers, apply_batches_
from adamp.step.precision import to_compute_dtype_all

Implementation = Literal["single", "foreach", "fused"]


class ParamTensors(NamedTuple):
    """Parameters with a gradient, and their states by name; lists of equal length."""

    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]

    def select(self, indices: Sequence[int]) -> ParamTensors:
        """Return the tensors of some of the parameters."""

        def at(xs: list[Tensor]) -> list[Tensor]:
            return [xs[i] for i in indices]

        return ParamTensors(at(self.params), at(self.grads), {name: at(xs) for name, xs in self.states.items()})

    def split_by(self, keys: Sequence[Any]) -> Iterator[tuple[Any, ParamTensors]]:
        """Divide the parameters by their keys, in the order in which these occur first."""
        for key in dict.fromkeys(keys):
            yield key, self.select([i for i, other in enumerate(keys) if other == key])

    def same_shape_states(self, index: int) -> list[Tensor]:
        """Return the states of one parameter that have its shape."""
        return [xs[index] for name, xs in self.states.items() if name != "step"]


@functools.cache
def _is_cpu_kernel_compiled() -> bool:
    kernel = kernels.kernel_for(torch.device("cpu"))
    return kernel is not None and kernel.is_compiled() and kernel.unavailable_reason() is None


def default_implementation(device: torch.device) -> Implementation:
    """Return the implementation on a device if neither `foreach` nor `fused` is set.

    On the CPU the kernel if it is compiled already, as nothing is compiled unasked. Else, and on a GPU, foreach:
    measured on one CPU thread it takes 0.61 (SGDP) and 0.54 (AdamP) of the time of "single" with ResNet-18's
    parameters; for a GPU it is chosen by its launches, not by a measurement.
    """
    return "fused" if device.type == "cpu" and _is_cpu_kernel_compiled() else "foreach"


def select_implementation(
    group: dict[str, Any], param: Tensor, grad: Tensor, states: Sequence[Tensor]
) -> Implementation:
    """Return the implementation for a tensor: the one its group asks for, where it supports the tensor."""
    if group["differentiable"]:
        return "single"
    if is_sharded(param):
        return "fused" if group["fused"] and _takes_shard(group, param, grad, states) else "foreach"
    otherwise: Implementation = "single" if group["foreach"] is False else "foreach"
    # torch.compile traces these and generates its own kernel; it cannot trace the custom ones.
    if torch.compiler.is_compiling():
        return otherwise
    use_default = group["fused"] is None and group["foreach"] is None and not group["capturable"]
    wants_fused = group["fused"] or (use_default and default_implementation(param.device) == "fused")
    # The kernels' rows are dense in memory, which columns are not; that of the CPU keeps no compensation.
    if wants_fused and not num_blocks(group["scale_invariant"]):
        kernel = kernels.kernel_for(param.device)
        is_lossless = kernel is not None and (kernel.KEEPS_COMPENSATION or not group["kahan_sum"])
        if kernel is not None and is_lossless and kernel.supports(param, grad, *states):
            return "fused"
    return otherwise


def _takes_shard(group: dict[str, Any], param: Tensor, grad: Tensor, states: Sequence[Tensor]) -> bool:
    """Return whether the kernel can step this process's rows of a DTensor; each process comes to the same answer."""
    kernel = kernels.kernel_for(param.device)
    if torch.compiler.is_compiling() or kernel is None or not kernel.TAKES_SHARDS:
        return False
    is_alike = all(placement_of(x) == placement_of(param) for x in (grad, *states))
    if not is_alike or not has_whole_rows(param) or group["scale_invariant"] not in ("auto", "rows", True, False):
        return False
    return bool(kernel.supports(*map(local, (param, grad, *states))))


class Part(NamedTuple):
    """Parameters of a group with one implementation; of the fused one, with one device, dtype and placement as well.

    Attributes:
        implementation: Their implementation.
        device: The device of the first.
        indices: Their places in the group.
        tensors: The parameters, their gradients and states.
        unmoved: A token, another one after a tensor other than a gradient has moved.
    """

    implementation: Implementation
    device: torch.device
    indices: list[int]
    tensors: ParamTensors
    unmoved: Unmoved


class GroupPlan:
    """The parts of a group, kept while its tensors stay what they are and where they are.

    Gradients are compared by address and kind and not kept: their memory is free for the next backward pass.

    Args:
        group: The group.
        states: The states of each of its parameters, empty for one without a gradient so far.
        parts: The parts.
    """

    def __init__(self, group: dict[str, Any], states: list[dict[str, Any]], parts: list[Part]) -> None:
        self.params, self.states, self.options = list(group["params"]), states, _choice_options(group)
        grads = [param.grad for param in self.params]
        self.parts = [_with_grads(part, []) for part in parts]
        self.state_values = _values(states)
        self.memory = self.params + [x for x in self.state_values if isinstance(x, Tensor)]
        plain = (Tensor, torch.nn.Parameter)
        self.is_plain = all(type(x) in plain for x in [*self.memory, *grads] if x is not None)
        self.on_gpu = any(param.is_cuda for param in self.params)
        if self.is_plain:
            self.addresses = _addresses(self.memory)
            self.grad_kinds, self.grad_addresses = _kinds(grads), _addresses(grads)

    def current_parts(self, group: dict[str, Any]) -> list[Part] | None:
        """Return the parts with today's gradients, or None if the plan does not hold any more."""
        if not self.is_plain or self.options != _choice_options(group) or not _same(self.params, group["params"]):
            return None
        if not _same(self.state_values, _values(self.states)):
            return None
        grads = [param.grad for param in self.params]
        if self.addresses != _addresses(self.memory) or self.grad_kinds != _kinds(grads):
            return None
        parts = [_with_grads(part, [grads[i] for i in part.indices]) for part in self.parts]
        grad_addresses = _addresses(grads)
        if self.grad_addresses != grad_addresses:
            self.grad_addresses = grad_addresses
            for part in parts:
                is_whole = len(part.indices) == len(grad_addresses)
                part.unmoved.moved_grads = grad_addresses if is_whole else _addresses(part.tensors.grads)
        return parts


def _with_grads(part: Part, grads: list[Any]) -> Part:
    return part._replace(tensors=part.tensors._replace(grads=grads))


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [*map(Tensor.data_ptr, _present(tensors))]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [x for x in tensors if x is not None]


def _values(states: Sequence[dict[str, Any]]) -> list[Any]:
    return [*chain.from_iterable(map(dict.values, states))]


def _choice_options(group: dict[str, Any]) -> tuple[Any, ...]:
    names = ("foreach", "fused", "capturable", "differentiable", "scale_invariant", "kahan_sum")
    # Without momentum there is no buffer
    return (*(group[name] for name in names), group.get("momentum") == 0)


def _same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return len(first) == len(second) and all(map(operator.is_, first, second))


def _kinds(grads: Sequence[Tensor | None]) -> tuple[list[Any], ...]:
    """Return what a choice depends on in the gradients, in few passes; shapes and devices are the parameters'."""
    present = _present(grads)
    layouts = [grad.layout for grad in present]
    are_strided = layouts.count(torch.strided) == len(layouts)
    return (
        [grad is None for grad in grads],
        [*map(type, present)],
        [grad.dtype for grad in present],
        layouts,
        [*map(Tensor.stride, present)] if are_strided else [],
        [*map(Tensor.is_neg, present)],
    )


class ProjectedOptimizer(CheckedOptimizer):
    """Base of the optimizers that project their update: options and implementations; subclasses add the update."""

    IMPLEMENTATION_OPTIONS = ("foreach", "fused", "capturable", "differentiable")
    _has_unseen_shapes = False

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        self._has_unseen_shapes = self._warn_without_matrices()

    def _warn_without_matrices(self) -> bool:
        candidates = [group["params"] for group in self.param_groups if group["scale_invariant"] is not False]
        return warn_without_matrices(chain.from_iterable(candidates), type(self).__name__)

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay", "delta", "wd_ratio"):
            check_number(options, name)
        for name in ("nesterov", "maximize", "kahan_sum", "capturable", "differentiable"):
            check_bool(options, name)
        check_mode(options)
        for name in ("foreach", "fused"):
            if options[name] is not None:
                check_bool(options, name)
        if options["foreach"] and options["fused"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        for name in ("foreach", "fused", "kahan_sum"):
            if options[name] and options["differentiable"]:
                raise RuntimeError(f"`{name}` does not support `differentiable`")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then leaves gradients scaled and sets `grad_scale` and `found_inf`.
        return any(group["fused"] for group in self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer.add_param_group`, after checking its options.

        Raises:
            ValueError: If an option is out of range, a mark does not fit a parameter, or a parameter is the
                flattened one of the older FullyShardedDataParallel, which has lost its rows.
            RuntimeError: If options exclude each other, or there is no kernel for `fused=True`.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for param in group["params"]:
                _check_parameter(param, group)
        except Exception:
            self.param_groups.pop()
            raise

    @abstractmethod
    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of the states of each parameter of a group."""

    @abstractmethod
    def _step_single(self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
        """Make the step of one parameter with torch operations."""

    @abstractmethod
    def _update_foreach(self, group: dict[str, Any], tensors: ParamTensors) -> StepBuffers:
        """Update the states of parameters of one device, dtype and placement and return their updates."""

    @abstractmethod
    def _step_fused(
        self,
        group: dict[str, Any],
        tensors: ParamTensors,
        *,
        kernel: Any,
        unmoved: Unmoved,
        shards: Shards | None,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Make the step of parameters of one device and dtype, and of this process's rows of them, with its kernel."""

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: list[Tensor]
    ) -> None:
        # Name and list arguments as in torch.optim: torch.compile runs this instead of tracing it.
        for param in group["params"]:
            if param.grad is None:
                continue
            refuse_sparse(param.grad, type(self).__name__)
            check_grad(param.grad, param)
            params.append(param)
            grads.append(param.grad)
            state = self.state[param]
            for name, xs in zip(self._state_names(group), states, strict=True):
                if name not in state:
                    state[name] = _new_state(name, param, group)
                elif name == "step":  # set by hand, or created before the group's options changed
                    state[name] = state[name].to(step_device(param, group), torch.float32)
                xs.append(state[name])

    def _init_state(self) -> None:
        for group in self.param_groups:
            self._collect(group)

    def _step(self) -> None:
        if not torch.compiler.is_compiling() and self._has_unseen_shapes:
            self._has_unseen_shapes = False
            self._warn_without_matrices()  # DeepSpeed's ZeRO has put flat buffers into the groups by now
        found_inf = getattr(self, "found_inf", None)
        grad_scale = getattr(self, "grad_scale", None)
        parts_by_group = [(group, self._parts(i, group)) for i, group in enumerate(self.param_groups)]
        batches = []
        undo: list[tuple[list[Tensor], list[Tensor]]] = []
        for group, parts in parts_by_group:
            for implementation, device, _, tensors, unmoved in parts:
                # The kernels read GradScaler's factor and flag themselves
                if implementation == "fused":
                    shards = _shards_of(tensors, group)
                    self._step_fused(
                        group,
                        tensors if shards is None else _local_tensors(tensors),
                        kernel=kernels.kernel_for(device),
                        unmoved=unmoved,
                        shards=shards,
                        grad_scale=_to_device(grad_scale, device),
                        found_inf=_to_device(found_inf, device),
                    )
                    continue
                if found_inf is not None:
                    changed = _changed_by_step(tensors)
                    # On a device nothing waits for the flag: where it is set, the step is undone
                    if not group["differentiable"] and _are_on_device(found_inf, *changed):
                        undo.append((changed, [x.clone() for x in changed]))
                    elif bool(found_inf):
                        continue
                tensors = _with_descent_gradients(tensors, maximize=group["maximize"], grad_scale=grad_scale)
                if implementation == "foreach":
                    batches += [self._update_foreach(group, bucket) for bucket in _split_by_placement(tensors)]
                    continue
                for index, (param, grad) in enumerate(zip(tensors.params, tensors.grads, strict=True)):
                    self._step_single(group, param, grad, {name: xs[index] for name, xs in tensors.states.items()})
        apply_batches_(batches)
        for changed, before in undo:
            assert found_inf is not None
            _restore_where_(found_inf, changed, before)

    def _parts(self, index: int, group: dict[str, Any]) -> list[Part]:
        """Return the group's parameters with a gradient, divided by implementation, with their states."""
        if torch.compiler.is_compiling():
            return _split_by_implementation(group, self._collect(group))
        plans: dict[int, tuple[list[Any], GroupPlan]] = self.__dict__.setdefault("_plans", {})
        if index in plans:
            states, plan = plans[index]
            parts = plan.current_parts(group) if _same(states, list(self.state.values())) else None
            if parts is not None:
                _check_capture(group, on_gpu=plan.on_gpu)
                return parts
        parts = _split_by_implementation(group, self._collect(group))
        plan = GroupPlan(group, [self.state.get(param, {}) for param in group["params"]], parts)
        plans[index] = (list(self.state.values()), plan)
        return parts

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.pop("_plans", None)  # it holds the states that a loaded checkpoint replaces
        super().__setstate__(state)

    def _collect(self, group: dict[str, Any]) -> ParamTensors:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        names = self._state_names(group)
        states: list[list[Tensor]] = [[] for _ in names]
        self._init_group(group, params, grads, *states)
        if not torch.compiler.is_compiling():
            _check_capture(group, on_gpu=any(param.is_cuda for param in params))
        return ParamTensors(params, grads, dict(zip(names, states, strict=True)))


def step_buffers(
    group: dict[str, Any],
    tensors: ParamTensors,
    *,
    weights: list[Tensor],
    grads: list[Tensor],
    updates: list[Tensor],
    states: dict[str, list[Tensor]],
    can_overwrite_updates: bool = True,
    decay_factor: float = 1.0,
    projected: list[Tensor] | None = None,
) -> StepBuffers:
    """Return the buffers of a step that subtracts `lr * updates` and the decay `lr * weight_decay * decay_factor`."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.to(weights[0].device, weights[0].dtype, non_blocking=True)
    layout = layout_of(tensors.params, group["scale_invariant"])
    may_project = group["scale_invariant"] is not False
    matrices = [i for i, param in enumerate(tensors.params) if param.ndim > 1 and may_project]
    return StepBuffers(
        options=group,
        weights=weights,
        grads=grads,
        updates=updates,
        can_overwrite_updates=can_overwrite_updates,
        step_size=lr,
        decay=lr * (group["weight_decay"] * decay_factor) if group["weight_decay"] > 0 else None,
        matrices=sorted(matrices, key=lambda i: (weights[i].shape[0], layout.global_shapes[i][0])),
        layout=layout,
        write_backs=[
            ([local(param) for param in tensors.params], weights),
            *(([local(x) for x in tensors.states[name]], values) for name, values in states.items()),
        ],
        projected=projected,
        compensations=states.get("compensation"),
    )


def kernel_extras(tensors: ParamTensors, shards: Shards | None) -> dict[str, Any]:
    """Return the arguments that only some kernels take: what rounding has taken, and the processes of the rows."""
    extras = {"compensations": tensors.states.get("compensation"), "shards": shards}
    return {name: value for name, value in extras.items() if value is not None}


def _shards_of(tensors: ParamTensors, group: dict[str, Any]) -> Shards | None:
    """Return the whole rows and the processes of parameters of one placement, None for ordinary tensors."""
    if not is_sharded(tensors.params[0]):
        return None
    layout = layout_of(tensors.params, group["scale_invariant"])
    num_rows = [shape[0] if shape else 1 for shape in layout.global_shapes]
    return Shards(num_rows, lambda totals: sum_over_processes([(totals, layout.across_rows)]))


def _local_tensors(tensors: ParamTensors) -> ParamTensors:
    states = {name: [*map(local, xs)] for name, xs in tensors.states.items()}
    return ParamTensors([*map(local, tensors.params)], [*map(local, tensors.grads)], states)


def local_in_compute_dtype(tensors: ParamTensors) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
    """Return this process's weights, gradients and states (not `step`) in the compute dtype."""
    weights = to_compute_dtype_all([local(param) for param in tensors.params])
    pairs = zip(tensors.grads, tensors.params, strict=True)
    grads = to_compute_dtype_all([local_grad(grad, param) for grad, param in pairs])
    states = {
        name: to_compute_dtype_all([local(x) for x in xs]) for name, xs in tensors.states.items() if name != "step"
    }
    return weights, grads, states


def _check_parameter(param: Tensor, group: dict[str, Any]) -> None:
    if is_lazy(param):
        return  # no shape before the first forward pass
    check_marked(param, group["scale_invariant"])
    check_blocks(param, group["scale_invariant"])
    refuse_flattened(param)
    if group["fused"]:
        kernel = kernels.kernel_for(param.device)
        reason = f"there is none for {param.device.type}" if kernel is None else kernel.unavailable_reason()
        if reason is not None:
            raise RuntimeError(f"`fused=True` requires a kernel: {reason}")


def _new_state(name: str, param: Tensor, group: dict[str, Any]) -> Tensor:
    if name == "step":
        return torch.zeros((), dtype=torch.float32, device=step_device(param, group))
    return torch.zeros_like(param, memory_format=torch.preserve_format)


def step_device(param: Tensor, group: dict[str, Any]) -> torch.device:
    """Return the device of the step count: the CPU, unless it has to be read on the parameter's device."""
    return param.device if group["capturable"] or group["fused"] else torch.device("cpu")


def _to_device(value: Tensor | None, device: torch.device) -> Tensor | None:
    # The CPU kernel reads the value at once, so it must have arrived
    return None if value is None else value.to(device, non_blocking=device.type != "cpu")


def _changed_by_step(tensors: ParamTensors) -> list[Tensor]:
    return [local(x) for x in chain(tensors.params, *tensors.states.values())]


def _are_on_device(*tensors: Tensor) -> bool:
    return all(x.device.type != "cpu" for x in tensors)


def _restore_where_(flag: Tensor, tensors: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Set the tensors to what they were before if the flag, one number, is not 0; bit for bit, without a host read."""
    for x, old in zip(tensors, before, strict=True):
        is_set = flag.to(x.device, non_blocking=True).reshape(()) != 0
        x.copy_(torch.where(is_set, old, x))


def _check_capture(group: dict[str, Any], *, on_gpu: bool) -> None:
    if on_gpu and not group["capturable"] and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a step is captured in a CUDA graph, but its group has capturable=False")


def _split_by_implementation(group: dict[str, Any], tensors: ParamTensors) -> list[Part]:
    with_grad = [i for i, param in enumerate(group["params"]) if param.grad is not None]
    keys: list[tuple[Any, ...]] = []
    for i, (param, grad) in enumerate(zip(tensors.params, tensors.grads, strict=True)):
        implementation = select_implementation(group, param, grad, tensors.same_shape_states(i))
        is_fused = implementation == "fused"
        keys.append((implementation, *((param.device, param.dtype, placement_of(param)) if is_fused else ())))
    parts = []
    for key in dict.fromkeys(keys):
        members = [i for i, other in enumerate(keys) if other == key]
        some = tensors.select(members)
        parts.append(Part(key[0], some.params[0].device, [with_grad[i] for i in members], some, Unmoved()))
    return parts


def _split_by_placement(tensors: ParamTensors) -> Iterator[ParamTensors]:
    """Divide by device, dtype and placement."""
    pairs = zip(tensors.params, tensors.grads, strict=True)
    keys = [(param.device, param.dtype, grad.dtype, placement_of(param)) for param, grad in pairs]
    return (bucket for _, bucket in tensors.split_by(keys))


def _with_descent_gradients(tensors: ParamTensors, *, maximize: bool, grad_scale: Tensor | None) -> ParamTensors:
    """Return the tensors with gradients of the loss to be minimised, unscaled; `.grad` is never written to."""
    grads = tensors.grads
    if grad_scale is not None:
        # In the compute dtype: a small half-precision gradient over a large scale would be 0
        wide = [grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads]
        grads = [grad / grad_scale.to(grad.device) for grad in wide]
    if maximize:
        grads = [-grad for grad in grads]
    return ParamTensors(tensors.params, grads, tensors.states)  # torch 2.6 cannot trace _replace
