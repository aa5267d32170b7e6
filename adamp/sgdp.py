"""SGDP: stochastic gradient descent with momentum whose update is projected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.kernels.options import SGDPOptions, Shards, Unmoved
from adamp.marks import ScaleInvariantMode
from adamp.projection import project
from adamp.step.checked import check_bool, check_number, decayed_update
from adamp.step.dispatch import (
    ParamTensors,
    ProjectedOptimizer,
    kernel_extras,
    local_in_compute_dtype,
    step_buffers,
)
from adamp.step.foreach import StepBuffers
from adamp.step.precision import subtract_compensated_, to_compute_dtype, write_back


def _single_tensor_sgdp(param: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Make one step of SGDP with one parameter: Algorithm 1 of the paper."""
    momentum_buffer = state.get("momentum_buffer")
    lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
    # Float32 copies of half precision; with autograd, copies that it does not see change
    differentiable = group["differentiable"]
    w, g = to_compute_dtype(param, copy=differentiable), to_compute_dtype(grad)

    # Momentum and its update, or Nesterov's; no buffer at momentum 0
    buffer = None
    if momentum_buffer is None:
        update = g if group["nesterov"] else g * (1 - group["dampening"])
    else:
        buffer = to_compute_dtype(momentum_buffer, copy=differentiable)
        buffer.mul_(momentum).add_(g, alpha=1 - group["dampening"])
        update = g + momentum * buffer if group["nesterov"] else buffer

    # Scale-invariance test on the gradient (eq. 11) and projection of the update (eq. 10)
    projection = project(
        update,
        w,
        g,
        delta=group["delta"],
        eps=group["eps"],
        wd_ratio=group["wd_ratio"],
        scale_invariant=group["scale_invariant"] if param.ndim > 1 else False,
    )

    # Decoupled weight decay, as strong as SGD's coupled one, and step, rounded once
    decay = lr * weight_decay / (1 - momentum) * projection.ratio if weight_decay > 0 else None
    step = decayed_update(w, projection.update, step_size=lr, decay=decay)
    if group["kahan_sum"]:
        subtract_compensated_(param, w, step, state["compensation"])
    else:
        write_back(param, w - step if differentiable else w.sub_(step), copied=differentiable)

    # The authors' package keeps the projected update as the momentum; the paper does not
    if momentum_buffer is not None and buffer is not None:
        if group["project_buffer"] and not group["nesterov"]:
            buffer = projection.update
        write_back(momentum_buffer, buffer, copied=differentiable or group["project_buffer"])


class SGDP(ProjectedOptimizer):
    r"""SGD with momentum that does not let the update lengthen scale-invariant weights.

    For each parameter with gradient `g`, momentum `μ` and learning rate `η` (Algorithm 1 of the paper)::

        b <- μ b + (1 - dampening) g            b starts at 0
        u  = g + μ b if nesterov else b
        q  = Π_w(u), r = wd_ratio               if w passes the scale-invariance test (eq. 11), else q = u, r = 1
        w <- w - η q - η weight_decay r / (1 - μ) w

    `Π_w` removes the part of the update along each output channel of `w`, see `adamp.projection.project`.

    Where the paper and the authors' package differ: `wd_ratio` and the division of the decoupled decay by
    `1 - μ` are in the package only, and followed here; the division gives it the strength of SGD's coupled
    decay. Without Nesterov the package writes the projected update into the momentum buffer; the paper does
    not, nor do we by default (`project_buffer`). The decay is rounded once together with the step, so a decay
    too small for the package's `w * (1 - x)` in float32 still acts. At momentum 0 there is no buffer.

    Args:
        params: Parameters, or groups of them; every option below can be set for each group.
        lr: Learning rate η, a float or a 0-d tensor.
        momentum: μ, at least 0; below 1 where weight decay is used.
        weight_decay: Decoupled weight decay per unit of lr, at least 0.
        dampening: Taken off the gradient's weight in the buffer, at least 0.
        nesterov: Use Nesterov's update; at momentum 0, where torch's SGD refuses it, this is the plain gradient.
        eps: Guards the norms in the test and in the projection.
        delta: Threshold of the scale-invariance test, times 1/sqrt(row length); 0 disables it.
        wd_ratio: Factor of the weight decay of parameters that pass the test.
        maximize: Ascend instead of descending.
        kahan_sum: Keep what rounding takes from each weight (state `compensation`, in the weight's dtype) and add it to
            its next step, so that bfloat16 weights learn at small rates without a float32 copy.
        scale_invariant: "auto" tests each parameter at each step; True always projects row by row, a mark slice by
            slice (`adamp.marks`); False never projects. Vectors and scalars are never projected.
        project_buffer: Without Nesterov, keep the projected update as the momentum buffer, as the authors'
            package does.
        foreach: Step all tensors at once; None: see `adamp.step.dispatch.default_implementation`.
        fused: Use the custom kernels: compiled C++ on the CPU, Triton on CUDA. Unsupported tensors fall back to the
            other implementations.
        capturable: Keep the whole step on the device, so that a CUDA graph can capture it.
        differentiable: Let autograd differentiate through the step.

    Raises:
        ValueError: If an option is out of range.
        RuntimeError: If options exclude each other, or there is no kernel for `fused=True`.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = SGDP([weight], lr=0.1, momentum=0.9, nesterov=True)
        >>> torch.nn.functional.cosine_similarity(weight, torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[2.9757, 4.0182]])

    Reference:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        ICLR 2021. https://arxiv.org/abs/2006.08217
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        maximize: bool = False,
        kahan_sum: bool = False,
        scale_invariant: ScaleInvariantMode = "auto",
        project_buffer: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "dampening": dampening,
            "nesterov": nesterov,
            "eps": eps,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "maximize": maximize,
            "kahan_sum": kahan_sum,
            "scale_invariant": scale_invariant,
            "project_buffer": project_buffer,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_number(options, "momentum")
        check_number(options, "dampening")
        check_bool(options, "project_buffer")
        if options["weight_decay"] > 0 and not options["momentum"] < 1:
            raise ValueError(
                f"momentum={options['momentum']!r} is not valid with weight_decay={options['weight_decay']!r}: "
                "the decay is divided by 1 - momentum, so momentum must be below 1"
            )

    def _upgrade_state(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "momentum" in state:  # the name in the authors' package
            state["momentum_buffer"] = state.pop("momentum")

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        # At momentum 0 no buffer: 0 times an infinite entry would keep it NaN for ever after one bad gradient.
        buffers = ("momentum_buffer",) if group["momentum"] != 0 else ()
        return (*buffers, *(("compensation",) if group["kahan_sum"] else ()))

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: list[Tensor]
    ) -> None:
        super()._init_group(group, params, grads, *states)
        if group["momentum"] == 0:  # a stale buffer would resume later
            for param in params:
                self.state[param].pop("momentum_buffer", None)

    def _step_single(self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
        _single_tensor_sgdp(param, grad, state, group)

    def _update_foreach(self, group: dict[str, Any], tensors: ParamTensors) -> StepBuffers:
        return _multi_tensor_sgdp(tensors, group)

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
        kernel.sgdp(
            tensors.params,
            tensors.grads,
            tensors.states.get("momentum_buffer"),
            **{name: group[name] for name in SGDPOptions.__annotations__},
            **kernel_extras(tensors, shards),
            unmoved=unmoved,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )


def _multi_tensor_sgdp(tensors: ParamTensors, group: dict[str, Any]) -> StepBuffers:
    """Update the momentum of many tensors at once and return SGD's updates, which `apply_batches_` projects."""
    momentum = group["momentum"]
    weights, grads, states = local_in_compute_dtype(tensors)
    buffers = states.get("momentum_buffer")
    projected = None
    # Momentum and its updates, or Nesterov's; no buffers at momentum 0
    if buffers is None:
        updates = grads if group["nesterov"] else list(torch._foreach_mul(grads, 1 - group["dampening"]))
    else:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
        updates = buffers
        if group["nesterov"]:
            updates = list(torch._foreach_mul(buffers, momentum))
            torch._foreach_add_(updates, grads)
        elif group["project_buffer"]:
            projected = buffers
    return step_buffers(
        group,
        tensors,
        weights=weights,
        grads=grads,
        updates=updates,
        states=states,
        # Nesterov's update is a new tensor with momentum, the gradient without; the plain one is the buffer or new.
        can_overwrite_updates=group["nesterov"] == (momentum != 0),
        # The decay is as strong as SGD's coupled one
        decay_factor=1 / (1 - momentum) if group["weight_decay"] > 0 else 1.0,
        projected=projected,
    )
