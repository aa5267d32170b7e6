"""AdaRem and AdaRem-S: gradient descent that damps steps against the momentum and lengthens steps along it.

Letters: `w` weight, `g` its gradient, `m` momentum, `η` learning rate, `γ` weight decay, `R` radius of a sphere.

Reference:
    "Adaptive Gradient Method with Resilience and Momentum", Algorithms 1 and 2.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from adamp.step.checked import CheckedOptimizer, check_bool, check_number, descend, refuse_sparse
from adamp.step.precision import store, working

Scope = Literal["tensor", "global"]


@dataclass
class Entry:
    """One parameter of a step: weight, gradient and momentum as real numbers of at least 32 bits."""

    param: Tensor
    w: Tensor
    g: Tensor
    m: Tensor
    state: dict[str, Any]
    group: dict[str, Any]


def check_scope(options: dict[str, Any], name: str) -> None:
    """Raise ValueError unless `options[name]` is a scope."""
    if options[name] not in ("tensor", "global"):
        raise ValueError(f"{name}={options[name]!r} is not valid: it must be 'tensor' or 'global'")


class ResilientOptimizer(CheckedOptimizer):
    """What AdaRem and AdaRem-S share: the momentum, the factor of each entry, the epochs' exponent."""

    def _check(self, options: dict[str, Any]) -> None:
        check_number(options, "lr")
        check_number(options, "weight_decay")
        check_number(options, "beta", below=1)
        check_number(options, "lam", below=1)
        check_number(options, "lam_power")
        if not options["lam_power"] >= 1:
            raise ValueError(f"lam_power={options['lam_power']!r} is not valid: it must be at least 1")
        check_scope(options, "scope")
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

    def _step(self) -> None:
        entries = [
            self._entry(param, group)
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None or self._steps_without_grad(param, group)
        ]
        largest = _largest_momenta(entries)
        self._update(entries, largest)
        for entry in entries:
            entry.m.mul_(entry.group["beta"]).add_(entry.g, alpha=1 - entry.group["beta"])
            store(entry.param, entry.w)
            store(entry.state["exp_avg"], entry.m)

    def _entry(self, param: Tensor, group: dict[str, Any]) -> Entry:
        grad = torch.zeros_like(param) if param.grad is None else param.grad
        refuse_sparse(self, param, grad)
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        g = working(grad)
        return Entry(param, working(param), -g if group["maximize"] else g, working(state["exp_avg"]), state, group)

    def _steps_without_grad(self, param: Tensor, group: dict[str, Any]) -> bool:
        return False

    def _update(self, entries: list[Entry], largest: list[Tensor]) -> None:
        """Move every weight; `largest` holds max|m| for each entry."""
        for entry, top in zip(entries, largest, strict=True):
            step_plain(entry, top)


def _largest_momenta(entries: list[Entry]) -> list[Tensor]:
    """Return 0-d max|m| for each entry: of its own tensor, or of all tensors in groups with scope "global"."""
    tops = [entry.m.abs().max() if entry.m.numel() else entry.m.new_zeros(()) for entry in entries]
    shared = [top for entry, top in zip(entries, tops, strict=True) if entry.group["scope"] == "global"]
    if not shared:
        return tops
    top = torch.stack([x.to(shared[0].device) for x in shared]).max()
    return [
        top.to(own.device, own.dtype) if entry.group["scope"] == "global" else own
        for entry, own in zip(entries, tops, strict=True)
    ]


def resilient_update(entry: Entry, top: Tensor) -> Tensor:
    """Return `a g` with `a = 1 + λ^p sign(g) m / max|m|`; `top` is max|m|, and a is 1 where that is 0."""
    strength = entry.group["lam"] ** entry.group["lam_power"]
    share = torch.where(top == 0, 0, entry.g.sign() * entry.m / top)
    update: Tensor = (1 + strength * share) * entry.g
    return update


def step_plain(entry: Entry, top: Tensor) -> None:
    """Set `w <- w - η a g - η γ w` in place: AdaRem's step."""
    lr, weight_decay = entry.group["lr"], entry.group["weight_decay"]
    decay = lr * weight_decay if weight_decay > 0 else None
    descend(entry.w, resilient_update(entry, top), step_size=lr, decay=decay)


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
        self._check(defaults)
        super().__init__(params, defaults)


class AdaRemS(ResilientOptimizer):
    r"""AdaRem that keeps scale-invariant weights on spheres, at the learning rate that decay would give there.

    Parameters in groups with `scale_invariant=True` are scaled to norm `R` at their first step and stay there; all
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
        scale_invariant: Keep these parameters on spheres.
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

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        beta: float = 0.9,
        lam: float = 0.999,
        weight_decay: float = 0.0,
        scope: Scope = "tensor",
        scale_invariant: bool = False,
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
        self._check(defaults)
        super().__init__(params, defaults)

    def _check(self, options: dict[str, Any]) -> None:
        super()._check(options)
        check_scope(options, "sphere")
        check_bool(options, "scale_invariant")
        check_bool(options, "slr")
        if options["radius"] is not None:
            check_number(options, "radius")
            if not options["radius"] > 0:
                raise ValueError(f"radius={options['radius']!r} is not valid: it must be above 0, or None")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, keeping the precision of α and R, which torch would round to a bf16 weight's."""
        super().load_state_dict(state_dict)
        saved = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, param in zip(saved, params, strict=True):
            for name in ("alpha", "radius"):
                if name in (state := state_dict["state"].get(index, {})):
                    self.state[param][name] = state[name].to(param.device, copy=True)

    def _steps_without_grad(self, param: Tensor, group: dict[str, Any]) -> bool:
        shared = group["scale_invariant"] and group["sphere"] == "global"
        return shared and "alpha" in self.state.get(param, {})

    def _update(self, entries: list[Entry], largest: list[Tensor]) -> None:
        if not self._warned and not any(group["scale_invariant"] for group in self.param_groups):
            self._warned = True
            warnings.warn(
                "no parameter group of AdaRemS has scale_invariant=True: every parameter makes AdaRem's step",
                stacklevel=4,
            )
        shared: list[tuple[Entry, Tensor]] = []
        for entry, top in zip(entries, largest, strict=True):
            if not entry.group["scale_invariant"]:
                step_plain(entry, top)
            elif entry.group["sphere"] == "global":
                shared.append((entry, top))
            else:
                _step_sphere([(entry, top)])
        for name in ("radius", "slr"):
            if len({entry.group[name] for entry, _ in shared}) > 1:
                raise ValueError(f"{name} differs between the groups that share one sphere; give them one value")
        if shared:
            _step_sphere(shared)


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the joint norm of some tensors, 0-d, where the first one lies."""
    norms: list[Tensor] = [torch.linalg.vector_norm(x) for x in tensors]
    if len(norms) == 1:
        return norms[0]
    joint: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, norms[0].dtype) for n in norms]))
    return joint


def _step_sphere(members: list[tuple[Entry, Tensor]]) -> None:
    """Move the weights that share one sphere."""
    entries = [entry for entry, _ in members]
    fresh = ["alpha" not in entry.state for entry in entries]
    if all(fresh):
        _start_sphere(entries)
    elif any(fresh):
        shape = tuple(entries[fresh.index(True)].param.shape)
        raise RuntimeError(
            f"a parameter of shape {shape} has its first gradient after the sphere that it shares was set up; "
            "give all of them a gradient in the first step, or use sphere='tensor'"
        )
    for entry, top in members:
        group, alpha = entry.group, entry.state["alpha"]
        lr, weight_decay = group["lr"], group["weight_decay"]
        step_size = lr / alpha.square() if group["slr"] else lr
        decay = lr * weight_decay if weight_decay > 0 else None
        descend(entry.w, resilient_update(entry, top), step_size=step_size, decay=decay)
    length = _norm([entry.w for entry in entries])
    for entry in entries:
        growth = (length / entry.state["radius"].to(length.device)).to(entry.w.device, entry.w.dtype)
        growth = torch.where(growth == 0, 1, growth)  # a weight of zeros stays one
        entry.w.div_(growth)
        if entry.group["slr"]:
            entry.state["alpha"].mul_(growth)


def _start_sphere(entries: list[Entry]) -> None:
    """Scale weights to their sphere, and their gradients to what they would be there: `g(c w) = g(w) / c`."""
    length = _norm([entry.w for entry in entries])
    length = torch.where(length == 0, 1, length)
    for entry in entries:
        own = length.to(entry.w.device, entry.w.dtype)
        radius = entry.group["radius"]
        entry.state["radius"] = own.clone() if radius is None else torch.full_like(own, radius)
        alpha = own / entry.state["radius"]
        entry.state["alpha"] = alpha if entry.group["slr"] else torch.ones_like(alpha)
        entry.w.div_(alpha)
        if radius is not None:
            entry.g = entry.g * alpha  # not in place: it may be the user's gradient
