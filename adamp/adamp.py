"""AdamP: Adam with decoupled weight decay whose update is projected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.kernels.options import AdamPOptions, Shards, Unmoved
from adamp.marks import ScaleInvariantMode
from adamp.projection import project
from adamp.step.checked import check_betas, decayed_update
from adamp.step.dispatch import (
    ParamTensors,
    ProjectedOptimizer,
    kernel_extras,
    local_in_compute_dtype,
    step_buffers,
    step_device,
)
from adamp.step.foreach import StepBuffers
from adamp.step.precision import subtract_compensated_, to_compute_dtype, write_back


def _single_tensor_adamp(param: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Make one step of AdamP with one parameter: Algorithm 2 of the paper, with Adam's bias correction."""
    lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    # Float32 copies of half precision; with autograd, copies that it does not see change
    differentiable = group["differentiable"]
    stored = (param, state["exp_avg"], state["exp_avg_sq"])
    w, m, v = (to_compute_dtype(x, copy=differentiable) for x in stored)
    g = to_compute_dtype(grad)

    # First and second moment of the gradient
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)

    # Bias correction of the second moment; that of the first one is in the step size below
    state["step"] += 1
    t = state["step"].double()  # in float32 1 - 0.999^t would be off by 6e-5 at t = 1
    denominator = (v.sqrt() / (1 - beta2**t).sqrt()).add_(group["eps"])

    # Adam's update, or Nesterov's
    update = (m * beta1 + g * (1 - beta1) if group["nesterov"] else m) / denominator

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

    # Decoupled weight decay and step, rounded once
    decay = lr * weight_decay * projection.ratio if weight_decay > 0 else None
    step = decayed_update(w, projection.update, step_size=lr / (1 - beta1**t), decay=decay)
    if group["kahan_sum"]:
        subtract_compensated_(param, w, step, state["compensation"])
    else:
        write_back(param, w - step if differentiable else w.sub_(step), copied=differentiable)
    for target, value in zip(stored[1:], (m, v), strict=True):
        write_back(target, value, copied=differentiable)


class AdamP(ProjectedOptimizer):
    r"""AdamW that does not let the update lengthen scale-invariant weights.

    For each parameter with gradient `g`, its number of steps `t` and learning rate `η` (Algorithm 2 of the
    paper, with Adam's bias correction as in the authors' package)::

        m <- β1 m + (1 - β1) g                  m, v start at 0
        v <- β2 v + (1 - β2) g²
        u  = m / (sqrt(v / (1 - β2^t)) + eps)   nesterov: β1 m + (1 - β1) g instead of m
        q  = Π_w(u), r = wd_ratio               if w passes the scale-invariance test (eq. 11), else q = u, r = 1
        w <- w - η / (1 - β1^t) q - η weight_decay r w

    `Π_w` removes the part of the update along each output channel of `w`, see `adamp.projection.project`.

    Where the paper and the authors' package differ: bias correction, `wd_ratio` and the Nesterov option are
    in the package only, and followed here. The decay is rounded once together with the step, so a decay too
    small for the package's `w * (1 - x)` in float32 still acts.

    Args:
        params: Parameters, or groups of them; every option below can be set for each group.
        lr: Learning rate η, a float or a 0-d tensor.
        betas: Decay rates of the two moments, each in [0, 1).
        eps: Added to the denominator; also guards the norms in the test and in the projection.
        weight_decay: Decoupled weight decay per unit of lr, at least 0. The paper states lr times this value.
        delta: Threshold of the scale-invariance test, times 1/sqrt(row length); 0 disables it.
        wd_ratio: Factor of the weight decay of parameters that pass the test.
        nesterov: Use Nesterov's update (not NAdam: there is no momentum schedule).
        maximize: Ascend instead of descending.
        kahan_sum: Keep what rounding takes from each weight (state `compensation`, in the weight's dtype) and add it to
            its next step, so that bfloat16 weights learn at small rates without a float32 copy.
        scale_invariant: "auto" tests each parameter at each step; True always projects row by row, a mark slice by
            slice (`adamp.marks`); False never projects. Vectors and scalars are never projected.
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
        >>> optimizer = AdamP([weight], lr=0.1, weight_decay=0.01)
        >>> torch.nn.functional.cosine_similarity(weight, torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> optimizer.step()
        >>> weight.detach()
        tensor([[2.8877, 4.0836]])

    Reference:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        ICLR 2021. https://arxiv.org/abs/2006.08217
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        maximize: bool = False,
        kahan_sum: bool = False,
        scale_invariant: ScaleInvariantMode = "auto",
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": check_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "maximize": maximize,
            "kahan_sum": kahan_sum,
            "scale_invariant": scale_invariant,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_betas(options["betas"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as the base class does; its betas become a tuple."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["betas"] = check_betas(group["betas"])

    def _upgrade_state(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "step" in state:  # a Python int in the authors' package
            step = torch.as_tensor(state["step"], dtype=torch.float32, device=step_device(param, group))
            state["step"] = step.reshape(())

    def _state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("step", "exp_avg", "exp_avg_sq", *(("compensation",) if group["kahan_sum"] else ()))

    def _step_single(self, group: dict[str, Any], param: Tensor, grad: Tensor, state: dict[str, Tensor]) -> None:
        _single_tensor_adamp(param, grad, state, group)

    def _update_foreach(self, group: dict[str, Any], tensors: ParamTensors) -> StepBuffers:
        return _multi_tensor_adamp(tensors, group)

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
        kernel.adamp(
            tensors.params,
            tensors.grads,
            *(tensors.states[name] for name in ("exp_avg", "exp_avg_sq", "step")),
            **{name: group[name] for name in AdamPOptions.__annotations__},
            **kernel_extras(tensors, shards),
            unmoved=unmoved,
            grad_scale=grad_scale,
            found_inf=found_inf,
        )


def _multi_tensor_adamp(tensors: ParamTensors, group: dict[str, Any]) -> StepBuffers:
    """Update the moments of many tensors at once and return Adam's updates, which `apply_batches_` projects."""
    beta1, beta2 = group["betas"]
    weights, grads, states = local_in_compute_dtype(tensors)
    ms, vs, steps = states["exp_avg"], states["exp_avg_sq"], tensors.states["step"]

    # First and second moment of the gradients
    torch._foreach_add_(steps, 1)
    torch._foreach_mul_(ms, beta1)
    torch._foreach_add_(ms, grads, alpha=1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, grads, grads, value=1 - beta2)

    # Bias corrections, in float64 as above; on the device if a graph has to recompute them or the counts are there
    t = torch.stack(steps).double()
    corrections = torch.stack([1 - beta1**t, (1 - beta2**t).sqrt()])
    on_device = group["capturable"] or torch.compiler.is_compiling() or steps[0].device.type != "cpu"
    first, second = corrections.to(weights[0].dtype).unbind() if on_device else corrections.tolist()
    denominators = torch._foreach_sqrt(vs)
    torch._foreach_div_(denominators, list(second))
    torch._foreach_add_(denominators, group["eps"])
    torch._foreach_mul_(denominators, list(first))

    # Adam's updates, or Nesterov's
    if group["nesterov"]:
        updates = torch._foreach_mul(ms, beta1)
        torch._foreach_add_(updates, grads, alpha=1 - beta1)
        torch._foreach_div_(updates, denominators)
    else:
        updates = torch._foreach_div(ms, denominators)
    return step_buffers(group, tensors, weights=weights, grads=grads, updates=list(updates), states=states)
