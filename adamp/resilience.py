"""What AdaRem and AdaRem-S share: the momentum, the factor of each entry, the exponent that counts epochs.

Letters: `w` weight, `g` its gradient, `m` momentum, `λ` strength of the factor, `p` its exponent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adamp.base import CheckedOptimizer, check_bool, check_number, descend, refuse_sparse
from adamp.precision import store, working

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
