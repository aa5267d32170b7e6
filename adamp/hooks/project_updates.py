"""The projection of SGDP and AdamP for any torch optimizer, as step hooks.

Notation: `R` rows (output channels), `w` the weight before a step, `w'` after it, `d = w' - w`, `g` its gradient, `η`
learning rate, `γ` weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from adamp.hooks.handle import (
    HookHandle,
    PresentParams,
    StepArgs,
    attach_step_hooks,
    check_matrices,
    decay_of_step,
    find_hooked_optimizer,
    groups_of,
    is_step_skipped,
    run_after_backward,
)
from adamp.marks import ScaleInvariantMode, check_marked, check_mode, num_blocks, spread
from adamp.projection import (
    CHANNEL,
    NONE,
    Products,
    RowSums,
    channel_view,
    decide,
    forced_decision,
    layer_view,
    radial_coefficient,
    remove_radial,
    row_dot,
    row_sums,
    slice_sums,
)
from adamp.step.checked import check_number, refuse_flattened, refuse_sparse, warn_without_matrices
from adamp.step.dtensor import (
    check_blocks,
    check_placement,
    gather_rows,
    is_sharded,
    layout_of,
    local,
    local_grad,
    scatter_rows,
    sum_over_processes,
)
from adamp.step.precision import as_real, to_compute_dtype


def project_updates(
    optimizer: Optimizer,
    *,
    delta: float = 0.1,
    eps: float = 1e-8,
    wd_ratio: float = 0.1,
    params: Iterable[Tensor] | None = None,
) -> HookHandle:
    r"""Remove from each step of an optimizer the part that points along scale-invariant weights.

    Before the step the gradient decides for each parameter, as in SGDP and AdamP (eq. 11); after it the whole change
    `d` of the parameters that passed the test loses its radial part (eq. 10), and decays as AdamP does::

        w' <- w + Π_w(d) - η γ wd_ratio w       row by row, or as one vector; see `adamp.projection.project`

    On torch's AdamW this is AdamP, and on torch's SGD without weight decay SGDP. The optimizer's state is not touched:
    its momentum stays unprojected, as in the paper's Algorithm 1. Parameters that do not pass the test keep the
    optimizer's result bit for bit; with `delta=0` all do.

    η and γ are the entries `lr` and `weight_decay` of the parameter's group at each step; a group without the latter
    does not decay. Optimizers with a rate of their own (Prodigy) are refused unless γ or `wd_ratio` is 0. The
    optimizer's decay of a projected weight is removed with the radial part, whether it is decoupled or, but for what is
    left of older weights in its momentum, coupled into the gradient; the coupled one does not disturb the test, which
    reads `.grad` before the optimizer adds to it. SGDP divides its decay by `1 - momentum`; here divide `wd_ratio`.
    Entries `scale_invariant` (True, False or a mark of `adamp.marks`, instead of the test), `delta` and `wd_ratio` of a
    group win over the arguments.

    A sharded weight (DTensor) takes two small collectives a step, and gives the step of the whole one.

    Order of the hooks: hooks run in the order in which they were attached. Attach this first, then `shrink_weights`,
    then a `NormProbe`, so that the probe measures the projected step. Copies of an optimizer and its state dict carry
    no hooks: attach anew.

    Args:
        optimizer: Any torch optimizer that makes one step from the gradient (not LBFGS), or a wrapper that holds one.
        delta: Threshold of the test, times 1/sqrt(row length); 0 disables it.
        eps: Clamps the norms of the test, is added to the norm of the projection.
        wd_ratio: Factor of the weight decay of parameters that pass the test.
        params: The parameters to test, all of two or more dimensions; None for every such one of the optimizer.

    Returns:
        A handle whose `remove` ends the projection; also a context manager.

    Raises:
        ValueError: If an option is out of range, a parameter does not qualify, the optimizer runs no hooks or, also at
            a step, its decay is not known.
        RuntimeError: If a parameter is a DTensor of terms of a sum.

    Warns:
        UserWarning: If no parameter has two dimensions, now or at the first step, and at a step if one of `params` has
            left the optimizer.

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
    options = {"delta": delta, "eps": eps, "wd_ratio": wd_ratio}
    for name in options:
        check_number(options, name)
    optimizer = find_hooked_optimizer(optimizer)
    matrices = None if params is None else check_matrices(params, optimizer)
    for param in (all_params := groups_of(optimizer)):
        refuse_flattened(param)
        check_placement(param)
    _check_marks(optimizer)
    has_matrices = matrices is None and warn_without_matrices(all_params, "project_updates")
    hooks = _Projection(matrices, delta=delta, eps=eps, wd_ratio=wd_ratio, has_unseen_shapes=has_matrices)
    hooks.check_rates(optimizer)
    return attach_step_hooks(optimizer, hooks.before, hooks.after, undo=hooks.forget)


def with_projection(
    params: ParamsT,
    lr: float | Tensor,
    *,
    base: Callable[..., Optimizer],
    weight_decay: float = 0.0,
    delta: float = 0.1,
    eps: float = 1e-8,
    wd_ratio: float = 0.1,
) -> Optimizer:
    """Return an optimizer built with `project_updates` attached, in one call as a configuration file needs it.

    Args:
        params: Parameters, or groups of them; entries of a group as in `project_updates`.
        lr: Learning rate η of the base.
        base: Builds the optimizer from `params`, `lr` and `weight_decay`: a class, or a partial with its other options.
        weight_decay: Of the base; see `project_updates` for what it means on projected weights.
        delta: See `project_updates`.
        eps: See `project_updates`; not the `eps` of the base, which is an option of the base.
        wd_ratio: See `project_updates`.

    Returns:
        The base optimizer, with the hooks attached.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = with_projection([weight], 0.1, base=torch.optim.NAdam)
        >>> weight.grad = torch.tensor([[4.0, -3.0]])  # orthogonal to the weight
        >>> optimizer.step()
        >>> type(optimizer).__name__, round(float(weight.detach() @ torch.tensor([3.0, 4.0])), 3)  # still 3² + 4²
        ('NAdam', 25.0)
    """
    optimizer = base(params, lr=lr, weight_decay=weight_decay)
    project_updates(optimizer, delta=delta, eps=eps, wd_ratio=wd_ratio)
    return optimizer


def _check_marks(optimizer: Optimizer) -> None:
    """Raise ValueError if the entry `scale_invariant` of a group is not valid or does not fit one of its weights."""
    for group in optimizer.param_groups:
        if (mode := group.get("scale_invariant", "auto")) == "auto":
            continue
        check_mode({"scale_invariant": mode})
        for param in group["params"]:
            if not is_lazy(param) and param.ndim > 1:
                check_marked(param, mode)
                check_blocks(param, mode)


class _Projection:
    """The hooks, and the weights and decisions that they keep during a step."""

    def __init__(
        self, params: list[Tensor] | None, *, delta: float, eps: float, wd_ratio: float, has_unseen_shapes: bool
    ) -> None:
        self._params, self._delta, self._eps, self._wd_ratio = params, delta, eps, wd_ratio
        self._has_unseen_shapes = has_unseen_shapes
        self._before_step: dict[Tensor, tuple[Tensor, Tensor]] = {}  # a copy of the weight, and the decision
        self._present = PresentParams("project_updates")

    def forget(self) -> None:
        self._before_step = {}

    def check_rates(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            self._decay(group)

    def _decay(self, group: dict[str, Any]) -> float | Tensor:
        """Return the decay of a projected weight in a step, 0 if it has none."""
        wd_ratio = group.get("wd_ratio", self._wd_ratio)
        return decay_of_step(group, "project_updates") * wd_ratio if wd_ratio else 0

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepArgs | None:
        self.forget()
        _check_marks(optimizer)
        if self._has_unseen_shapes:
            self._has_unseen_shapes = False
            warn_without_matrices(groups_of(optimizer), "project_updates")  # flat buffers may have come since
        self.check_rates(optimizer)
        return run_after_backward(args, kwargs, lambda: self._decide(optimizer))

    def _decide(self, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        for param in groups if self._params is None else self._present(self._params, groups):
            if param.grad is None or param.ndim < 2:
                continue
            mode, delta = groups[param].get("scale_invariant", "auto"), groups[param].get("delta", self._delta)
            if mode is False or (mode == "auto" and delta == 0):
                continue
            refuse_sparse(param.grad, "project_updates")
            # Scale-invariance test on the gradient (eq. 11), unless the group forces the decision
            if mode == "auto":
                w, g = to_compute_dtype(local(param)), to_compute_dtype(local_grad(param.grad, param))
                sums = RowSums(*gather_rows(row_sums(w, g), param))
                num_weights = layout_of([param]).global_shapes[0].numel()
                decision = decide(sums, num_weights, delta=delta, eps=self._eps)
            else:
                decision = forced_decision(mode, param.device)
            self._before_step[param] = (as_real(local(param)).clone(), decision)

    @torch.no_grad()
    def after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        groups = groups_of(optimizer)
        for param, (weight_before, decision) in self._before_step.items():
            group = groups[param]
            w0, w1 = to_compute_dtype(weight_before), to_compute_dtype(local(param))
            # Projection of the whole change (eq. 10)
            d = w1 - w0
            if num_blocks(mode := group.get("scale_invariant", "auto")):
                step = _tangent_part_of_columns(d, w0, param, mode, eps=self._eps)
            elif is_sharded(param):
                step = _tangent_part(d, w0, param, decision, eps=self._eps)
            else:
                by_row = remove_radial(d, w0, view=channel_view, eps=self._eps)
                by_layer = remove_radial(d, w0, view=layer_view, eps=self._eps)
                step = torch.where(decision == CHANNEL, by_row, by_layer)
            # Decoupled weight decay instead of the optimizer's, which the projection has removed
            if group.get("weight_decay", 0):
                step = step - self._decay(group) * w0
            is_projected = decision > NONE
            if (skipped := is_step_skipped(optimizer, w0.device)) is not None:
                is_projected = is_projected & ~skipped
            as_real(local(param)).copy_(torch.where(is_projected, w0 + step, w1))
        self.forget()


def _tangent_part(d: Tensor, w0: Tensor, param: Tensor, decision: Tensor, *, eps: float) -> Tensor:
    """Return this process's part of the projected change (eq. 10) of a sharded weight."""
    rows = Products(*gather_rows([row_dot(w0, d), row_dot(w0, w0)], param))
    coefficient = radial_coefficient(decision, rows, Products(rows.wu.sum(), rows.ww.sum()), eps=eps)
    return d - scatter_rows(coefficient, param) * w0


def _tangent_part_of_columns(d: Tensor, w0: Tensor, param: Tensor, mode: ScaleInvariantMode, *, eps: float) -> Tensor:
    """Return this process's part of the change (eq. 10) of a weight whose columns are projected each on its own."""
    sums = torch.stack([slice_sums(w0 * d, mode), slice_sums(w0 * w0, mode)])
    sum_over_processes([(sums, layout_of([param], mode).within_rows)])
    columns = Products(*sums)
    coefficient = radial_coefficient(forced_decision(mode, d.device), columns, columns, eps=eps)
    return d - spread(coefficient, w0.shape, mode) * w0
