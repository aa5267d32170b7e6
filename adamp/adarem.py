"""AdaRem and AdaRem-S: gradient descent that damps steps against the momentum and lengthens steps along it.

Notation: `w` weight, `g` its gradient, `m` momentum, `a` factor of each entry, `λ` its strength, `p` its exponent,
`η` learning rate, `γ` weight decay, `R` radius of a sphere, `α` norm in units of R.

Reference:
    "Adaptive Gradient Method with Resilience and Momentum", Algorithms 1 and 2.
"""

from __future__ import annotations

import warnings
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.marks import Mark, is_mark
from adamp.step.checked import CheckedOptimizer, apply_update_, check_bool, check_number, refuse_sparse
from adamp.step.dtensor import is_built_by_zero_redundancy, layout_of, local, local_grad, place_like
from adamp.step.entries import Entry, joint_norm, set_largest_momenta_
from adamp.step.precision import to_compute_dtype, write_back

Scope = Literal["tensor", "global"]


def _step_adarem(entry: Entry) -> None:
    """Make one step of AdaRem with one parameter, Algorithm 1: `w <- w - η a g - η γ w`."""
    _apply_update_(entry, step_size=entry.group["lr"])


def _step_on_sphere(entries: list[Entry]) -> None:
    """Make one step of AdaRem-S with the parameters that share one sphere, Algorithm 2."""
    # At the first step, scale the weights to the sphere
    if "alpha" not in entries[0].state:
        _start_sphere(entries)

    # Step off the sphere with the sphere learning rate η / α²
    for entry in entries:
        lr = entry.group["lr"]
        _apply_update_(entry, step_size=lr / entry.state["alpha"].square() if entry.group["slr"] else lr)

    # Back to the sphere; α takes up the growth of the norm
    length = joint_norm(entries)
    for entry in entries:
        growth = (length / entry.state["radius"].to(length.device)).to(entry.w.device, entry.w.dtype)
        growth = torch.where(growth == 0, 1, growth)  # a weight of zeros stays one
        entry.w.div_(growth)
        if entry.group["slr"]:
            entry.state["alpha"].mul_(growth)


def _start_sphere(entries: list[Entry]) -> None:
    """Scale weights to their sphere, and their gradients to those at the new weights: `g(c w) = g(w) / c`."""
    length = joint_norm(entries)
    length = torch.where(length == 0, 1, length)
    for entry in entries:
        norm = length.to(entry.w.device, entry.w.dtype)
        radius = entry.group["radius"]
        entry.state["radius"] = norm.clone() if radius is None else torch.full_like(norm, radius)
        alpha = norm / entry.state["radius"]
        entry.state["alpha"] = alpha if entry.group["slr"] else torch.ones_like(alpha)
        entry.w.div_(alpha)
        if radius is not None:
            entry.g = entry.g * alpha  # not in place: it may be the user's gradient


def _apply_update_(entry: Entry, *, step_size: float | Tensor) -> None:
    """Set `w <- w - step_size a g - η γ w` in place, with decoupled decay."""
    lr, weight_decay = entry.group["lr"], entry.group["weight_decay"]
    decay = lr * weight_decay if weight_decay > 0 else None
    apply_update_(entry.w, _resilient_update(entry), step_size=step_size, decay=decay)


def _resilient_update(entry: Entry) -> Tensor:
    """Return `a g` with `a = 1 + λ^p sign(g) m / max|m|`; a is 1 where max|m| is 0."""
    strength = entry.group["lam"] ** entry.group["lam_power"]
    alignment = torch.where(entry.largest_m == 0, 0, entry.g.sign() * entry.m / entry.largest_m)
    update: Tensor = (1 + strength * alignment) * entry.g
    return update


def _check_scope(options: dict[str, Any], name: str) -> None:
    if options[name] not in ("tensor", "global"):
        raise ValueError(f"{name}={options[name]!r} is not valid: it must be 'tensor' or 'global'")
    if options[name] == "global" and is_built_by_zero_redundancy():
        raise ValueError(
            f"{name}='global' is not valid in ZeroRedundancyOptimizer: each process would take its own parameters for "
            "all; use 'tensor', or torch.distributed.fsdp.fully_shard"
        )


class ResilientOptimizer(CheckedOptimizer):
    """Base of AdaRem and AdaRem-S: the momentum, the factor of each entry and its exponent, which counts epochs."""

    def _check(self, options: dict[str, Any]) -> None:
        check_number(options, "lr")
        check_number(options, "weight_decay")
        check_number(options, "beta", below=1)
        check_number(options, "lam", below=1)
        check_number(options, "lam_power")
        if not options["lam_power"] >= 1:
            raise ValueError(f"lam_power={options['lam_power']!r} is not valid: it must be at least 1")
        _check_scope(options, "scope")
        check_bool(options, "maximize")

    def set_epoch(self, epoch: int) -> None:
        """Tell the optimizer that epoch `epoch` begins, counted from 0: λ is raised to `epoch + 1`.

        Sets `lam_power` of every group, which the state dict holds. A schedule may set that entry instead.

        Raises:
            ValueError: If epoch is negative or not finite.
        """
        check_number({"epoch": epoch}, "epoch")
        for group in self.param_groups:
            group["lam_power"] = epoch + 1

    def _init_state(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._entry(param, group)

    def _step(self) -> None:
        entries = [
            self._entry(param, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None or self._steps_without_grad(param, group)
        ]
        # Factor of each entry and weights, with the momentum before this step
        set_largest_momenta_(entries)
        self._update(entries)
        # Momentum
        for entry in entries:
            entry.m.mul_(entry.group["beta"]).add_(entry.g, alpha=1 - entry.group["beta"])
            write_back(local(entry.param), entry.w)
            write_back(local(entry.state["exp_avg"]), entry.m)

    def _entry(self, param: Tensor, group: dict[str, Any]) -> Entry:
        grad = torch.zeros_like(param) if param.grad is None else param.grad
        refuse_sparse(grad, type(self).__name__)
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        parts = (local(param), local_grad(grad, param), local(state["exp_avg"]))
        w, g, m = (to_compute_dtype(x) for x in parts)
        layout = layout_of([param])
        processes = layout.across_rows + layout.within_rows
        return Entry(param, w, -g if group["maximize"] else g, m, m.new_zeros(()), state, group, processes)

    def _steps_without_grad(self, param: Tensor, group: dict[str, Any]) -> bool:
        return False

    def _update(self, entries: list[Entry]) -> None:
        """Update every weight."""
        for entry in entries:
            _step_adarem(entry)


class AdaRem(ResilientOptimizer):
    r"""Gradient descent whose entries move more where the gradient agrees with the momentum, less where it does not.

    For each parameter with gradient `g`, learning rate `η` and weight decay `γ` (Algorithm 1)::

        b = sign(g) m / max|m|           m starts at 0; b = 0 where max|m| is 0
        a = 1 + λ^p b                    p = 1 in the first epoch, 2 in the second, ...
        w <- w - η a g - η γ w
        m <- β m + (1 - β) g             after the step

    The factor `a` stays within `[1 - λ, 1 + λ]`, so no entry ever moves up its gradient, and the first step is one
    of plain SGD. There is no accumulated velocity: at equal `lr` a step is about ten times shorter than that of
    torch's SGD with momentum 0.9.

    Where this departs from the paper's print: `b` is its `g m / (|g| max|m| + eps)` without the eps, which would
    switch the method off at gradients of 1e-6; λ is raised once an epoch, as its §4.1.1 says, and starts at λ^1, so
    that `a` is never 0. Its `m` is one vector for the whole network, which is `scope="global"`.

    Args:
        params: Parameters, or groups of them; every option below can be set for each group.
        lr: Learning rate η, a float or a 0-d tensor.
        beta: β, in [0, 1).
        lam: λ, in [0, 1). 0 gives plain SGD.
        weight_decay: Decoupled weight decay γ per unit of lr, at least 0; not scaled by `a`, not part of `m`.
        scope: max|m| is taken over each "tensor", or over all tensors with a gradient in such groups ("global").
        maximize: Ascend instead of descending.

    The exponent p is the entry `lam_power` of each group; `set_epoch` or a schedule moves it.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = AdaRem([weight], lr=0.1, beta=0.5, lam=0.5)
        >>> for epoch, slopes in enumerate([[1.0, 1.0], [1.0, -1.0]]):
        ...     optimizer.set_epoch(epoch)
        ...     weight.grad = torch.tensor(slopes)
        ...     optimizer.step()
        >>> weight.detach()  # second step: 0.1 (1 + 0.25) along the momentum, 0.1 (1 - 0.25) against it
        tensor([0.7750, 0.9750])

    Reference:
        "Adaptive Gradient Method with Resilience and Momentum", Algorithm 1.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        beta: float = 0.9,
        lam: float = 0.999,
        weight_decay: float = 0.0,
        scope: Scope = "tensor",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "lam": lam,
            "lam_power": 1,
            "weight_decay": weight_decay,
            "scope": scope,
            "maximize": maximize,
        }
        super().__init__(params, defaults)


class AdaRemS(ResilientOptimizer):
    r"""AdaRem that keeps scale-invariant weights on spheres, at the learning rate that decay would give there.

    Parameters in groups marked `scale_invariant` are scaled to norm `R` at their first step and stay there; all
    others make AdaRem's step. On a sphere, with `g` taken there and AdaRem's factor `a` (Algorithm 2, sphere
    learning rate, SLR)::

        v <- (1 - η γ) w - η / α² a g    α = ‖w‖ / R before the first step
        α <- α ‖v‖ / R
        w <- R v / ‖v‖

    `α w` is the weight that decay γ and learning rate η would give without the sphere: with `lam=0` directions are
    those of SGD with weight decay, whatever the learning rate's schedule and R. The decay acts through α alone;
    the paper's print subtracts it once more.

    With `slr=False` α is left out: `v = (1 - η γ) w - η a g`, as printed. The decay then only divides the learning
    rate by `1 - η γ`, and the result depends on R.

    Args:
        params: Parameters, or groups of them; every option below can be set for each group.
        lr: Learning rate η of the weights off their spheres, a float or a 0-d tensor.
        beta: β, in [0, 1).
        lam: λ, in [0, 1). 0 gives SGD on spheres.
        weight_decay: Weight decay γ per unit of lr, at least 0; decoupled off the spheres.
        scope: max|m| is taken over each "tensor", or over all tensors with a gradient in such groups ("global").
        scale_invariant: Keep these parameters on spheres: True, or any mark of `adamp.marks`, each of which implies
            that the whole tensor is scale-invariant.
        sphere: One sphere for each "tensor", or a single one for all tensors of such groups ("global"): the paper's
            letter. All of them must have a gradient in the first step; later, no gradient counts as gradient 0.
        radius: R, above 0; None for the norm at the first step. With `slr` it does not change directions.
        slr: Use the sphere learning rate.
        maximize: Ascend instead of descending.

    Raises:
        ValueError: If an option is out of range.

    Warns:
        UserWarning: At the first step, if no group is marked.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = AdaRemS([{"params": [weight], "scale_invariant": True}], lr=0.1, radius=1.0)
        >>> torch.nn.functional.cosine_similarity(weight, torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> optimizer.step()
        >>> weight.detach(), weight.norm().item()
        (tensor([[0.5974, 0.8019]]), 1.0)

    Reference:
        "Adaptive Gradient Method with Resilience and Momentum", Algorithm 2.
    """

    _warned = False
    _may_have_unset_spheres = True  # of this object, before its first step and after loading

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        beta: float = 0.9,
        lam: float = 0.999,
        weight_decay: float = 0.0,
        scope: Scope = "tensor",
        scale_invariant: bool | Mark = False,
        sphere: Scope = "tensor",
        radius: float | None = None,
        slr: bool = True,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "lam": lam,
            "lam_power": 1,
            "weight_decay": weight_decay,
            "scope": scope,
            "scale_invariant": scale_invariant,
            "sphere": sphere,
            "radius": radius,
            "slr": slr,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        _check_scope(options, "sphere")
        if not is_mark(options["scale_invariant"]):
            check_bool(options, "scale_invariant")
        check_bool(options, "slr")
        if options["radius"] is not None:
            check_number(options, "radius")
            if not options["radius"] > 0:
                raise ValueError(f"radius={options['radius']!r} is not valid: it must be above 0, or None")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, keeping the precision of α and R, which torch would round to a bf16 weight's."""
        super().load_state_dict(state_dict)
        self._may_have_unset_spheres = True
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(saved, params, strict=True):
            for name in ("alpha", "radius"):
                if name in (state := state_dict["state"].get(index, {})):
                    self.state[param][name] = place_like(state[name], param).to(param.device, copy=True)

    def _init_state(self) -> None:
        super()._init_state()
        for group in self.param_groups:
            for param in group["params"]:
                if group["scale_invariant"] and param.grad is not None:
                    # α = 0 until the first step sets up the sphere: state dicts need the entries before
                    unset = self._entry(param, group).w.new_zeros(())
                    self.state[param].update(alpha=unset, radius=unset.clone())

    def _step(self) -> None:
        if self._may_have_unset_spheres:
            for state in self.state.values():
                if "alpha" in state and float(state["alpha"]) == 0:
                    del state["alpha"], state["radius"]
            self._may_have_unset_spheres = False
        super()._step()

    def _steps_without_grad(self, param: Tensor, group: dict[str, Any]) -> bool:
        shares_sphere = group["scale_invariant"] and group["sphere"] == "global"
        return shares_sphere and "alpha" in self.state.get(param, {})

    def _update(self, entries: list[Entry]) -> None:
        if not self._warned and not any(group["scale_invariant"] for group in self.param_groups):
            self._warned = True
            warnings.warn(
                "no parameter group of AdaRemS has scale_invariant=True: every parameter makes AdaRem's step",
                stacklevel=4,
            )
        marked = [entry for entry in entries if entry.group["scale_invariant"]]
        on_shared_sphere = [entry for entry in marked if entry.group["sphere"] == "global"]
        # Whatever raises does so before a weight has moved
        for name in ("radius", "slr"):
            if len({entry.group[name] for entry in on_shared_sphere}) > 1:
                raise ValueError(f"{name} differs between the groups that share one sphere; give them one value")
        is_new = ["alpha" not in entry.state for entry in on_shared_sphere]
        if any(is_new) and not all(is_new):
            shape = tuple(on_shared_sphere[is_new.index(True)].param.shape)
            raise RuntimeError(
                f"a parameter of shape {shape} has its first gradient after the sphere that it shares was set up; "
                "give all of them a gradient in the first step, or use sphere='tensor'"
            )
        for entry in entries:
            if not entry.group["scale_invariant"]:
                _step_adarem(entry)
            elif entry.group["sphere"] == "tensor":
                _step_on_sphere([entry])
        if on_shared_sphere:
            _step_on_sphere(on_shared_sphere)
