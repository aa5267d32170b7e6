"""The projection of SGDP and AdamP around any torch optimizer, as step hooks.

Letters: `R` rows (output channels), `w` the weight before a step, `w'` after it, `d = w' - w`, `g` its gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamp.base import check_number
from adamp.hooks import HookHandle, StepArgs, check_matrices, groups_of, refuse_sparse, when_gradients_are_there
from adamp.precision import as_real, working
from adamp.projection import CHANNEL, NONE, channel_view, decide, layer_view, remove_radial, row_sums


def project_updates(
    optimizer: Optimizer, *, delta: float = 0.1, eps: float = 1e-8, params: Iterable[Tensor] | None = None
) -> HookHandle:
    r"""Remove from each step of an optimizer the part that points along scale-invariant weights.

    Before the step the gradient decides for each parameter, as in SGDP and AdamP (eq. 11); after it the whole change
    `d` of the parameters found scale-invariant loses its radial part (eq. 10)::

        d <- Π_w(d),  w' <- w + Π_w(d)      row by row, or as one vector; see `adamp.projection.project`

    The optimizer's state is not touched: its momentum stays unprojected, as in the paper's Algorithm 1. Parameters
    that do not pass the test keep the optimizer's result bit for bit. `scale_invariant` in a parameter group, True or
    False, takes the place of the test as it does for SGDP.

    Weight decay: all of `d` is projected, so a projected weight is not decayed at all, as with `wd_ratio=0`; for a
    decay of its own attach `shrink_weights` with `coupling="weights"` after this. A decay that the optimizer couples
    into the gradient does not disturb the test, which reads `.grad` before the optimizer adds to it.

    Order of the hooks: hooks run in the order in which they were attached. Attach this first, then `shrink_weights`,
    then a `NormProbe`, so that the probe measures the projected step. Copies of an optimizer and its state dict carry
    no hooks: attach anew.

    Args:
        optimizer: Any torch optimizer that makes one step from the gradient (not LBFGS).
        delta: Threshold of the test, times 1/sqrt(row length). 0 turns it off.
        eps: Clamps the norms of the test, is added to the norm of the projection.
        params: The parameters to test, all of two or more dimensions; None for every such one of the optimizer.

    Returns:
        A handle whose `remove` ends the projection; also a context manager.

    Raises:
        ValueError: If an option is out of range or a parameter does not qualify.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = torch.optim.Adam([weight], lr=0.1)
        >>> handle = project_updates(optimizer)
        >>> torch.nn.functional.cosine_similarity(weight, torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> optimizer.step()
        >>> weight.detach()  # Adam alone: 2.9, 4.1
        tensor([[2.8880, 4.0840]])

    Reference:
        Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        ICLR 2021. https://arxiv.org/abs/2006.08217
    """
    options = {"delta": delta, "eps": eps}
    check_number(options, "delta")
    check_number(options, "eps")
    chosen = None if params is None else check_matrices(params, optimizer)
    hooks = _Projection(chosen, delta=delta, eps=eps)
    return HookHandle([optimizer.register_step_pre_hook(hooks.before), optimizer.register_step_post_hook(hooks.after)])


class _Projection:
    """The hooks; what they keep lives from a step's beginning to its end."""

    def __init__(self, params: list[Tensor] | None, *, delta: float, eps: float) -> None:
        self._params, self._delta, self._eps = params, delta, eps
        self._kept: dict[Tensor, tuple[Tensor, Tensor]] = {}  # the weight before the step, and the decision

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepArgs | None:
        self._kept = {}
        return when_gradients_are_there(args, kwargs, lambda: self._decide(optimizer))

    def _decide(self, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        params = [p for p in groups if p.ndim > 1] if self._params is None else self._params
        for param in params:
            mark = groups[param].get("scale_invariant", "auto")
            if param.grad is None or mark is False or (mark == "auto" and self._delta == 0):
                continue
            refuse_sparse(param.grad, "project_updates")
            w = working(param)
            sums = row_sums(w, working(param.grad))
            decision = decide(sums, w.numel(), delta=self._delta, eps=self._eps, scale_invariant=mark)
            self._kept[param] = (as_real(param).clone(), decision)

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for param, (before, decision) in self._kept.items():
            w0, w1 = working(before), working(param)
            d = w1 - w0
            by_row = remove_radial(d, w0, view=channel_view, eps=self._eps)
            by_layer = remove_radial(d, w0, view=layer_view, eps=self._eps)
            projected = w0 + torch.where(decision == CHANNEL, by_row, by_layer)
            as_real(param).copy_(torch.where(decision > NONE, projected, w1))
        self._kept = {}
