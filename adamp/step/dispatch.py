"""The ways to compute one and the same step, and which of them a tensor takes.

- "single": tensor by tensor, in readable torch operations. The specification; the only one autograd passes through.
- "foreach": all tensors at once, see `adamp.step.foreach`. No host read, few launches; takes sharded weights (DTensor).
- "fused": kernels of our own, see `adamp.kernels`.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from adamp import kernels
from adamp.step.checked import CheckedOptimizer, check_bool, check_number, refuse_sparse
from adamp.step.dtensor import is_sharded, layout_of, local, local_grad, placement_of
from adamp.step.foreach import Batch, descend_together
from adamp.step.precision import working_all

Path = Literal["single", "foreach", "fused"]


class Members(NamedTuple):
    """Parameters with a gradient, and their states by name; lists of equal length."""

    params: list[Tensor]
    grads: list[Tensor]
    states: dict[str, list[Tensor]]

    def pick(self, indices: Sequence[int]) -> Members:
        """Return some of them."""

        def chosen(xs: list[Tensor]) -> list[Tensor]:
            return [xs[i] for i in indices]

        return Members(chosen(self.params), chosen(self.grads), {k: chosen(v) for k, v in self.states.items()})

    def tensors(self, index: int) -> list[Tensor]:
        """Return the states of one parameter that have its shape."""
        return [xs[index] for name, xs in self.states.items() if name != "step"]


@functools.cache
def _cpu_kernel_is_there() -> bool:
    kernel = kernels.of(torch.device("cpu"))
    return kernel is not None and kernel.built() and kernel.refusal() is None


def default_path(device: torch.device) -> Path:
    """Return the path on a device where neither `foreach` nor `fused` is set; fused where the kernel takes a tensor.

    On the CPU the kernel if it is compiled already, as nothing is compiled unasked. Else, and on a GPU, foreach:
    measured on one CPU thread it takes 0.61 (SGDP) and 0.54 (AdamP) of the time of "single" with ResNet-18's
    parameters; for a GPU it is chosen by its launches, not by a measurement.
    """
    return "fused" if device.type == "cpu" and _cpu_kernel_is_there() else "foreach"


def choose_path(group: dict[str, Any], param: Tensor, grad: Tensor, states: Sequence[Tensor]) -> Path:
    """Return the path of a tensor, as its group asks for it where it can go there."""
    if group["differentiable"]:
        return "single"
    if is_sharded(param):
        return "foreach"
    # A compiled step is foreach: the compiler makes its own kernel of it, and cannot look into ours.
    undecided = group["fused"] is None and group["foreach"] is None and not group["capturable"]
    if not torch.compiler.is_compiling() and (group["fused"] or (undecided and default_path(param.device) == "fused")):
        kernel = kernels.of(param.device)
        if kernel is not None and kernel.takes(param, grad, *states):
            return "fused"
    return "single" if group["foreach"] is False else "foreach"


class ProjectedOptimizer(CheckedOptimizer):
    """Base of the optimizers that project their update: options and paths. Subclasses bring the update."""

    _how = ("foreach", "fused", "capturable", "differentiable")

    def _check(self, options: dict[str, Any]) -> None:
        for name in ("lr", "eps", "weight_decay", "delta", "wd_ratio"):
            check_number(options, name)
        for name in ("nesterov", "maximize", "capturable", "differentiable"):
            check_bool(options, name)
        mark = options["scale_invariant"]
        if not (isinstance(mark, bool) or mark == "auto"):
            raise ValueError(f"scale_invariant={mark!r} is not valid: it must be 'auto', True or False")
        for name in ("foreach", "fused"):
            if options[name] is not None:
                check_bool(options, name)
        if options["foreach"] and options["fused"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        for name in ("foreach", "fused"):
            if options[name] and options["differentiable"]:
                raise RuntimeError(f"`{name}` does not support `differentiable`")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # GradScaler then leaves gradients scaled and hands over `grad_scale` and `found_inf`.
        return any(group["fused"] for group in self.param_groups)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as `torch.optim.Optimizer.add_param_group`, after checking its options.

        Raises:
            ValueError: If an option is out of range, `scale_invariant=True` marks a vector, or a parameter is the
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
        """Return what is kept for each parameter of a group."""

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: list[Tensor]
    ) -> None:
        # Name and list arguments as in torch.optim: torch.compile runs this instead of tracing it.
        for param in group["params"]:
            if param.grad is None:
                continue
            refuse_sparse(self, param, param.grad)
            params.append(param)
            grads.append(param.grad)
            state = self.state[param]
            for name, xs in zip(self._state_names(group), states, strict=True):
                if name not in state:
                    state[name] = _new_state(name, param, group)
                xs.append(state[name])

    def _step(self) -> None:
        found_inf = getattr(self, "found_inf", None)
        grad_scale = getattr(self, "grad_scale", None)
        collected = [(group, self._collect(group)) for group in self.param_groups]
        batches = []
        for group, everything in collected:
            for path, members in _split_by_path(group, everything):
                if path == "fused":
                    self._step_fused(group, members, grad_scale=grad_scale, found_inf=found_inf)
                    continue
                if found_inf is not None and bool(found_inf):
                    continue
                members = _prepared(members, maximize=group["maximize"], grad_scale=grad_scale)
                if path == "foreach":
                    batches += [self._update_many(group, bucket) for bucket in _buckets(members)]
                else:
                    self._step_each(group, members)
        descend_together(batches)

    def _collect(self, group: dict[str, Any]) -> Members:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        names = self._state_names(group)
        states: list[list[Tensor]] = [[] for _ in names]
        self._init_group(group, params, grads, *states)
        on_gpu = any(param.is_cuda for param in params) and not torch.compiler.is_compiling()
        if on_gpu and not group["capturable"] and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a step is captured in a CUDA graph, but its group has capturable=False")
        return Members(params, grads, dict(zip(names, states, strict=True)))

    def _step_each(self, group: dict[str, Any], members: Members) -> None:
        for index, (param, grad) in enumerate(zip(members.params, members.grads, strict=True)):
            self._step_one(group, param, grad, {name: xs[index] for name, xs in members.states.items()})

    @abstractmethod
    def _step_one(self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
        """Make the step of one parameter: path "single"."""

    @abstractmethod
    def _update_many(self, group: dict[str, Any], members: Members) -> Batch:
        """Move the states of parameters of one device, dtype and placement on and return what is to be subtracted."""

    @abstractmethod
    def _call_kernel(self, kernel: Any, group: dict[str, Any], members: Members, **amp: Tensor | None) -> None:
        """Make the step of parameters of one device with a kernel."""

    def _step_fused(self, group: dict[str, Any], members: Members, **amp: Tensor | None) -> None:
        for device in dict.fromkeys(param.device for param in members.params):
            here = members.pick([i for i, param in enumerate(members.params) if param.device == device])
            moved = {k: None if v is None else v.to(device, non_blocking=True) for k, v in amp.items()}
            self._call_kernel(kernels.of(device), group, here, **moved)


def batch_of(
    group: dict[str, Any],
    members: Members,
    *,
    weights: list[Tensor],
    grads: list[Tensor],
    updates: list[Tensor],
    states: dict[str, list[Tensor]],
    disposable: bool = True,
    decay_factor: float = 1.0,
    projected: list[Tensor] | None = None,
) -> Batch:
    """Return the batch that subtracts `lr * updates`, and the decay `lr * weight_decay * decay_factor`."""
    lr = group["lr"]
    if isinstance(lr, Tensor):
        lr = lr.to(weights[0].device, weights[0].dtype, non_blocking=True)
    mark = group["scale_invariant"]
    return Batch(
        options=group,
        owned=[
            ([local(param) for param in members.params], weights),
            *(([local(x) for x in members.states[name]], values) for name, values in states.items()),
        ],
        weights=weights,
        grads=grads,
        updates=updates,
        disposable=disposable,
        step_size=lr,
        decay=lr * (group["weight_decay"] * decay_factor) if group["weight_decay"] > 0 else None,
        matrices=[i for i, param in enumerate(members.params) if param.ndim > 1] if mark is not False else [],
        layout=layout_of(members.params),
        projected=projected,
    )


def local_working(members: Members) -> tuple[list[Tensor], list[Tensor], dict[str, list[Tensor]]]:
    """Return this process's weights, gradients and states (not `step`) in working precision."""
    weights = working_all([local(param) for param in members.params])
    pairs = zip(members.grads, members.params, strict=True)
    grads = working_all([local_grad(grad, param) for grad, param in pairs])
    states = {k: working_all([local(x) for x in xs]) for k, xs in members.states.items() if k != "step"}
    return weights, grads, states


def _check_parameter(param: Tensor, group: dict[str, Any]) -> None:
    shape = tuple(param.shape)
    if group["scale_invariant"] is True and param.ndim < 2:
        raise ValueError(
            f"scale_invariant=True marks a parameter of shape {shape}: only parameters of two or more dimensions are "
            "projected; put it in a group with 'auto' or False"
        )
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            f"a parameter of shape {shape} was flattened by FullyShardedDataParallel: without its rows it could not be "
            "projected; use torch.distributed.fsdp.fully_shard"
        )
    if group["fused"]:
        kernel = kernels.of(param.device)
        reason = f"there is none for {param.device.type}" if kernel is None else kernel.refusal()
        if reason is not None:
            raise RuntimeError(f"`fused=True` requires a kernel: {reason}")


def _new_state(name: str, param: Tensor, group: dict[str, Any]) -> Tensor:
    if name == "step":
        return torch.zeros((), dtype=torch.float32, device=step_device(param, group))
    return torch.zeros_like(param, memory_format=torch.preserve_format)


def step_device(param: Tensor, group: dict[str, Any]) -> torch.device:
    """Return where the number of steps is kept: on the CPU, unless it has to be read on the parameter's device."""
    return param.device if group["capturable"] or group["fused"] else torch.device("cpu")


def _split_by_path(group: dict[str, Any], members: Members) -> Iterator[tuple[Path, Members]]:
    paths = [
        choose_path(group, param, grad, members.tensors(i))
        for i, (param, grad) in enumerate(zip(members.params, members.grads, strict=True))
    ]
    for path in dict.fromkeys(paths):
        yield path, members.pick([i for i, own in enumerate(paths) if own == path])


def _prepared(members: Members, *, maximize: bool, grad_scale: Tensor | None) -> Members:
    """Return the members with the gradients of the loss to be lowered; `.grad` is never written to."""
    grads = members.grads
    if grad_scale is not None:
        grads = [grad / grad_scale.to(grad.device) for grad in grads]
    if maximize:
        grads = [-grad for grad in grads]
    return members._replace(grads=grads)


def _buckets(members: Members) -> Iterator[Members]:
    """Divide by device, dtype and placement."""
    keys = [
        (param.device, param.dtype, grad.dtype, placement_of(param))
        for param, grad in zip(members.params, members.grads, strict=True)
    ]
    for key in dict.fromkeys(keys):
        yield members.pick([i for i, own in enumerate(keys) if own == key])
