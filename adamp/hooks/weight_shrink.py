"""Adaptive weight shrink (AWS): weight decay whose strength follows the scale of each filter.

Notation: `R` filters (first dimension), `W` weight, `W_f` one filter, `g` gradient, `η` learning rate.

Reference:
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", eqs. 20-22.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from adamp.hooks.handle import (
    HookHandle,
    PresentParams,
    StepArgs,
    attach_step_hooks,
    check_matrices,
    find_hooked_optimizer,
    groups_of,
    is_step_skipped,
    learning_rate,
    run_after_backward,
)
from adamp.marks import ScaleInvariantMode, check_marked, check_mode, num_slices, slices_first, spread
from adamp.step.checked import check_betas, check_bool, check_number, is_state_initialisation, refuse_sparse
from adamp.step.dtensor import (
    check_blocks,
    check_grad,
    from_local,
    layout_of,
    local,
    local_grad,
    max_over_processes,
    sum_over_processes,
)
from adamp.step.precision import as_dtype_of, to_compute_dtype, write_back

Kind = Literal["wn", "ws"]
Coupling = Literal["gradient", "weights"]

_BACKWARD_GRAD = "_adamp_backward_grad"  # of a sum, the gradient that backward filled


def shrink_rate(
    weight: Tensor, *, alpha: float, kind: Kind, eps: float = 0.0, scale_invariant: ScaleInvariantMode = True
) -> Tensor:
    """Return γ of each filter: `alpha (‖W_f‖ + eps)` for "wn", `alpha (std(W_f) + eps)` for "ws" (eqs. 20, 22).

    The standard deviation is the population's, `sqrt(mean((W_f - mean(W_f))²))`.

    Args:
        weight: The weight, (R, ...), real or complex; its filters are its rows. Of a DTensor this process's ones.
        alpha: Strength of the shrink.
        kind: How the layer normalises the weight: "wn" by its norm, "ws" by its standard deviation.
        eps: Added to each norm or deviation, as the layer may do.
        scale_invariant: A mark (`adamp.marks`), whose slices are the filters instead of the rows.

    Returns:
        A value per filter that broadcasts over the weight, (R, 1, ..., 1) for rows; at least float32, without gradient.

    Example:
        >>> shrink_rate(torch.tensor([[3.0, 5.0]]), alpha=0.5, kind="ws")
        tensor([[0.5000]])
    """
    whole, layout = to_compute_dtype(local(weight.detach())), layout_of([weight], scale_invariant)
    w, shape = slices_first(whole, scale_invariant), layout.global_shapes[0]
    dims, row_length = tuple(range(1, w.ndim)), shape.numel() // max(num_slices(shape, scale_invariant), 1)

    centred = w
    if kind == "ws":
        mean = w.mean(dim=dims, keepdim=True)
        if layout.within_rows:
            mean = w.sum(dim=dims, keepdim=True)
            sum_over_processes([(mean, layout.within_rows)])
            mean = mean / row_length
        centred = w - mean
    size: Tensor = torch.linalg.vector_norm(centred, dim=dims, keepdim=True)
    if layout.within_rows:
        sum_over_processes([(size.square_(), layout.within_rows)])
        size.sqrt_()
    if kind == "ws":
        size = size / row_length**0.5
    return alpha * (spread(size.flatten(), whole.shape, scale_invariant) + eps)


def shrink_weights(
    optimizer: Optimizer,
    *,
    alpha: float,
    params: Iterable[Tensor],
    kind: Kind = "wn",
    coupling: Coupling = "gradient",
    eps: float = 0.0,
    clamp: float | None = 1.0,
) -> HookHandle:
    r"""Let each step of an optimizer shrink some weights in proportion to their scale (eq. 21).

    For each filter `W_f` of `params`, with γ from the weights before the step (`shrink_rate`)::

        W_f <- W_f - η γ_f W_f - (the optimizer's update)       coupling "weights"
        g_f <- g_f + γ_f W_f                                    coupling "gradient", before the optimizer's step

    Where the paper leaves a choice: its W is taken filter by filter, as WN and WS normalise; with momentum, which
    eq. 21 does not have, `coupling` decides; the deviation is the population's, as printed, while the layers of
    `adamp.layers` divide by n - 1, as the authors' do. Filters are rows, or the slices that the entry `scale_invariant`
    of a parameter's group marks (`adamp.marks`).

    For SGD without momentum both are eq. 21. "gradient" is what torch's SGD does with its weight decay: momentum
    then strengthens the shrink by `1 / (1 - momentum)`. Adam would divide the shrink's size out: use "weights".

    With "gradient" the sum is a new tensor, and after the step `.grad` is again the tensor that backward filled, bit
    for bit: gradients that are accumulated, logged or probed afterwards do not contain the shrink. "weights" computes
    the shrink before the optimizer's update and subtracts it afterwards, also with closures. Both need the memory of
    one copy of the parameters during a step.

    The learning rate is that of the parameter's group at each step. A parameter without gradient is left alone. Take
    the parameters out of the optimizer's weight decay: AWS replaces it. Attach before a probe, so that the probe
    sees the shrink; for SGDP, AdamP and `project_updates`, whose test reads `.grad`, use "weights", attached after
    `project_updates`. Copies of an optimizer and its state dict carry no hooks: attach anew.

    Args:
        optimizer: Any torch optimizer, or a wrapper that holds one.
        alpha: Strength, at least 0: at lr η a step takes `η alpha ‖W_f‖` (WS: `η alpha std(W_f)`) of a filter.
        params: Weights of normalised layers, each in the optimizer and of two or more dimensions.
        kind: "wn" for weights divided by their norm, "ws" by their standard deviation.
        coupling: "weights" or "gradient", see above.
        eps: Added to each norm or deviation, at least 0.
        clamp: Upper bound of η γ_f. From 1 on a shrink would turn a filter round, from 2 on it diverges. None for
            none; then a warning says so if the present weights are beyond 2.

    Returns:
        A handle whose `remove` ends the shrinking; also a context manager.

    Raises:
        ValueError: If an option is out of range, a parameter does not qualify, the optimizer runs no hooks or, also at
            a step, its steps have another rate than the group's `lr` (which "gradient" needs for `clamp` alone).

    Warns:
        UserWarning: At a step, if one of `params` has left the optimizer.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> handle = shrink_weights(optimizer, alpha=0.2, params=[weight])
        >>> weight.grad = torch.zeros(1, 2)
        >>> optimizer.step()
        >>> weight.detach()  # times 1 - 0.1 * 0.2 * 5
        tensor([[2.7000, 3.6000]])
        >>> weight.grad
        tensor([[0., 0.]])

    Reference:
        Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", eqs. 20-22.
    """
    for name, value in (("alpha", alpha), ("eps", eps), ("clamp", 1.0 if clamp is None else clamp)):
        check_number({name: value}, name)
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp={clamp!r} is not valid: it must be above 0, or None")
    if kind not in ("wn", "ws"):
        raise ValueError(f"kind={kind!r} is not valid: it must be 'wn' or 'ws'")
    if coupling not in ("gradient", "weights"):
        raise ValueError(f"coupling={coupling!r} is not valid: it must be 'gradient' or 'weights'")
    optimizer = find_hooked_optimizer(optimizer)
    matrices, groups = check_matrices(params, optimizer), groups_of(optimizer)
    modes = {param: groups[param].get("scale_invariant", True) for param in matrices}
    for param, mode in modes.items():
        check_mode({"scale_invariant": mode})
        check_marked(param, mode)
        check_blocks(param, mode)
        num_filters = num_slices(param.shape, mode)
        if kind == "ws" and num_filters and param.numel() // num_filters < 2:
            raise ValueError(
                f"params holds a weight of shape {tuple(param.shape)}: a filter of one entry has no standard deviation"
            )
    shrink = _Shrink(modes, alpha=alpha, kind=kind, eps=eps, clamp=clamp)
    if coupling == "weights" or clamp is not None:
        shrink.check_rates(optimizer)
    if clamp is None:
        shrink.warn_if_beyond(2.0, optimizer)
    if coupling == "gradient":
        return attach_step_hooks(
            optimizer, shrink.before_gradient, shrink.after_gradient, undo=shrink.restore_gradients
        )
    return attach_step_hooks(optimizer, shrink.before_weights, shrink.after_weights, undo=shrink.forget)


class _Shrink:
    """The hooks, and the tensors that they keep during a step."""

    def __init__(
        self,
        modes: dict[Tensor, ScaleInvariantMode],
        *,
        alpha: float,
        kind: Kind,
        eps: float,
        clamp: float | None,
    ) -> None:
        self._params, self._modes, self._clamp = list(modes), modes, clamp
        self._options: dict[str, Any] = {"alpha": alpha, "kind": kind, "eps": eps}
        self._amounts: dict[Tensor, Tensor] = {}  # η γ W of each parameter, before the step
        self._grads: dict[Tensor, tuple[Tensor, Tensor]] = {}  # backward's gradient, and the sum that replaces it
        self._present = PresentParams("shrink_weights")

    def check_rates(self, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        for param in self._present(self._params, groups):
            learning_rate(groups[param], "shrink_weights")

    def _rate(self, param: Tensor, lr: float | Tensor) -> Tensor:
        """Return γ of each filter (eqs. 20, 22), with `lr γ` at most `clamp`."""
        gamma = shrink_rate(param, **self._options, scale_invariant=self._modes[param])
        if self._clamp is None:
            return gamma
        if isinstance(lr, Tensor):
            return torch.minimum(gamma, (self._clamp / lr).to(gamma.device, gamma.dtype))  # inf at lr 0
        return gamma.clamp(max=self._clamp / lr) if lr > 0 else gamma

    @torch.no_grad()
    def warn_if_beyond(self, limit: float, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        greatest = max((self._largest_rate(p, groups[p]["lr"]) for p in self._params if p.numel()), default=0.0)
        if greatest >= limit:
            warnings.warn(
                f"lr x gamma is {greatest:.3g} for the largest filter: from {limit:g} on the shrink overshoots and "
                "diverges; lower alpha or lr, or set clamp=1",
                stacklevel=3,
            )

    def _largest_rate(self, param: Tensor, lr: float | Tensor) -> float:
        rates, layout = self._rate(param, 1.0) * lr, layout_of([param], self._modes[param])
        largest = rates.max() if rates.numel() else rates.new_zeros(())
        max_over_processes([(largest, layout.across_rows)])
        return float(largest)

    def forget(self) -> None:
        self._amounts = {}

    @torch.no_grad()
    def before_weights(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepArgs | None:
        self.forget()
        groups = groups_of(optimizer)
        present = self._present(self._params, groups)
        for param in present:
            lr = learning_rate(groups[param], "shrink_weights")
            self._amounts[param] = lr * self._rate(param, lr) * to_compute_dtype(local(param))
        return run_after_backward(args, kwargs, lambda: self._check_gradients(present))

    def _check_gradients(self, params: Iterable[Tensor]) -> None:
        """Refuse gradients that are sparse or placed otherwise, before anything has moved."""
        for param in params:
            if param.grad is not None:
                refuse_sparse(param.grad, "shrink_weights")
                check_grad(param.grad, param)

    @torch.no_grad()
    def after_weights(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for param, amount in self._amounts.items():
            if param.grad is None:
                continue
            if (skipped := is_step_skipped(optimizer, amount.device)) is not None:
                amount = torch.where(skipped, 0, amount)
            w = to_compute_dtype(local(param)).sub_(amount)
            write_back(local(param), w)
        self.forget()

    @torch.no_grad()
    def before_gradient(self, optimizer: Optimizer, args: Any, kwargs: Any) -> StepArgs | None:
        if getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                "the gradients are still scaled: call scaler.unscale_(optimizer) before scaler.step(optimizer)"
            )
        self._grads.clear()
        if is_state_initialisation(optimizer):
            return None
        return run_after_backward(args, kwargs, lambda: self._add_to_gradients(optimizer), undo=self.restore_gradients)

    def _add_to_gradients(self, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        present = self._present(self._params, groups)
        self._check_gradients(present)
        for param in present:
            raw = param.grad
            if raw is None:
                continue
            lr = 0.0 if self._clamp is None else learning_rate(groups[param], "shrink_weights")
            gamma = self._rate(param, lr)
            # g_f + γ_f W_f (eq. 21)
            grad, w = local_grad(raw, param), to_compute_dtype(local(param))
            total = to_compute_dtype(grad) + gamma * w
            param.grad = from_local(as_dtype_of(total, grad), param)
            backward_grad = getattr(raw, _BACKWARD_GRAD, raw)  # below the sum of hooks attached before
            setattr(param.grad, _BACKWARD_GRAD, backward_grad)
            self._grads[param] = (backward_grad, param.grad)

    def restore_gradients(self) -> None:
        for param, (raw, total) in self._grads.items():
            if param.grad is total:
                param.grad = raw
        self._grads.clear()

    @torch.no_grad()
    def after_gradient(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.restore_gradients()


def _split_groups(params: ParamsT) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Return the groups, with weight decay 0 where `shrink=True`, and the parameters to shrink.

    Groups are not split: a caller may hold data for each of them.
    """
    entries: list[Any] = list(params)
    groups: list[dict[str, Any]] = [dict(group) for group in entries if isinstance(group, dict)]
    for group in groups:
        check_bool({"shrink": group.setdefault("shrink", False)}, "shrink")
        if isinstance(group["params"], Tensor):
            group["params"] = [group["params"]]
        if group["shrink"]:
            group |= {"params": list(group["params"]), "weight_decay": 0.0}
    entries_shrunk = [entry for group in groups if group["shrink"] for entry in group["params"]]
    shrunk = [entry[1] if isinstance(entry, tuple) else entry for entry in entries_shrunk]  # or named parameters
    if not shrunk or len(groups) < len(entries):
        raise ValueError(
            "no group of parameters has shrink=True, or not all are groups: mark the group of the weights that the "
            "layers of adamp.layers normalise"
        )
    return groups, shrunk


def sgd_with_shrink(
    params: ParamsT,
    lr: float | Tensor,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    alpha: float = 2.5e-3,
    kind: Kind = "ws",
    eps: float = 0.0,
) -> torch.optim.SGD:
    """Return torch's SGD that shrinks the parameters of some groups by `shrink_weights`, coupled into the gradient.

    Args:
        params: Groups of parameters; those with the entry `shrink=True` shrink and do not decay.
        lr: Learning rate.
        momentum: As in torch.
        nesterov: As in torch.
        weight_decay: Coupled decay of all other parameters.
        alpha: Strength of the shrink; the default is the paper's for ResNets with WS (Table 3).
        kind: See `shrink_weights`.
        eps: See `shrink_weights`.

    Returns:
        The optimizer, with the hooks attached.

    Raises:
        ValueError: If an option is out of range or nothing is left to shrink.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> groups = [{"params": [conv.weight], "shrink": True}, {"params": [conv.bias]}]
        >>> [group["weight_decay"] for group in sgd_with_shrink(groups, 0.1, weight_decay=1e-4).param_groups]
        [0.0, 0.0001]

    Reference:
        Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", §4.
    """
    groups, shrunk = _split_groups(params)
    optimizer = torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    shrink_weights(optimizer, alpha=alpha, params=shrunk, kind=kind, coupling="gradient", eps=eps)
    return optimizer


def adam_with_shrink(
    params: ParamsT,
    lr: float | Tensor = 1e-3,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    alpha: float = 2.5e-3,
    kind: Kind = "ws",
    eps: float = 0.0,
) -> torch.optim.Adam:
    """Return torch's Adam that shrinks the parameters of some groups by `shrink_weights`, apart from the gradient.

    Args:
        params: As for `sgd_with_shrink`.
        lr: Learning rate.
        betas: As in torch.
        weight_decay: As for `sgd_with_shrink`, as are `alpha` and `kind`.
        alpha: See above.
        kind: See above.
        eps: See `shrink_weights`; Adam's `eps` is torch's default.

    Returns:
        The optimizer, with the hooks attached.

    Raises:
        ValueError: If an option is out of range or no group is to shrink.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> optimizer = adam_with_shrink([{"params": [conv.weight], "shrink": True}])
        >>> optimizer.param_groups[0]["weight_decay"]
        0.0

    Reference:
        Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", §4.
    """
    groups, shrunk = _split_groups(params)
    optimizer = torch.optim.Adam(groups, lr, betas=check_betas(betas), weight_decay=weight_decay)
    shrink_weights(optimizer, alpha=alpha, params=shrunk, kind=kind, coupling="weights", eps=eps)
    return optimizer
