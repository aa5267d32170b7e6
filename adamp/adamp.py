"""AdamP: Adam with decoupled weight decay whose update is projected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.base import ProjectedOptimizer, descend
from adamp.precision import store, working
from adamp.projection import Mark, project


class AdamP(ProjectedOptimizer):
    r"""AdamW that does not let the update lengthen scale-invariant weights.

    For each parameter with gradient `g`, its number of steps `t` and learning rate `η` (Algorithm 2 of the
    paper, with Adam's bias correction as in the authors' package)::

        m <- β1 m + (1 - β1) g                  m, v start at 0
        v <- β2 v + (1 - β2) g²
        u  = m / (sqrt(v / (1 - β2^t)) + eps)   nesterov: (β1 m + (1 - β1) g) in the place of m
        q  = Π_w(u), r = wd_ratio               if w is found scale-invariant (eq. 11), else q = u, r = 1
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
        delta: Threshold of the scale-invariance test, times 1/sqrt(row length). 0 turns it off.
        wd_ratio: Factor of the weight decay of parameters found scale-invariant.
        nesterov: Use Nesterov's update (not NAdam: there is no momentum schedule).
        maximize: Ascend instead of descending.
        scale_invariant: "auto" tests each parameter at each step; True always projects row by row; False
            never projects. Vectors and scalars are never projected.

    Raises:
        ValueError: If an option is out of range.

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
        scale_invariant: Mark = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "maximize": maximize,
            "scale_invariant": scale_invariant,
        }
        self._check(defaults)
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        betas = options["betas"]
        if not (isinstance(betas, tuple | list) and len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"betas={betas!r} is not valid: it must be two numbers, each with 0 <= beta < 1")

    def _upgrade_state(self, state: dict[str, Any]) -> None:
        if "step" in state:  # a Python int in the authors' package, a device tensor in torch's fused Adam
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device="cpu")

    def _step_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for param, grad in zip(params, grads, strict=True):
            state = self.state[param]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device="cpu")
                state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            _single_tensor_adamp(param, grad, state, group)


def _single_tensor_adamp(param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    lr, weight_decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
    w, g, m, v = (working(x) for x in (param, grad, state["exp_avg"], state["exp_avg_sq"]))
    state["step"] += 1
    t = state["step"].double()  # in float32 1 - 0.999^t would be off by 6e-5 at t = 1
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    denominator = (v.sqrt() / (1 - beta2**t).sqrt()).add_(group["eps"])
    update = (m * beta1 + g * (1 - beta1) if group["nesterov"] else m) / denominator

    result = project(
        update,
        w,
        g,
        delta=group["delta"],
        eps=group["eps"],
        wd_ratio=group["wd_ratio"],
        scale_invariant=group["scale_invariant"] if param.ndim > 1 else False,
    )
    decay = lr * weight_decay * result.ratio if weight_decay > 0 else None
    descend(w, result.update, step_size=lr / (1 - beta1**t), decay=decay)
    for target, value in ((param, w), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
        store(target, value)
