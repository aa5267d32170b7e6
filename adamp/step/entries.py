"""The parameters of a step of AdaRem, and what it takes over all of them: largest momenta and joint norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adamp.step.dtensor import max_over_processes, sum_over_processes


@dataclass
class Entry:
    """One parameter of a step: weight, gradient and momentum in the compute dtype, and max|m|, 0-d.

    Of a sharded parameter this process's part, with the groups of processes among which it is divided.
    """

    param: Tensor
    w: Tensor
    g: Tensor
    m: Tensor
    largest_m: Tensor
    state: dict[str, Any]
    group: dict[str, Any]
    processes: tuple[Any, ...]


def set_largest_momenta_(entries: list[Entry]) -> None:
    """Set max|m| of each entry: of its tensor, or of all tensors in groups with scope "global"."""
    for entry in entries:
        if entry.m.numel():
            entry.largest_m = entry.m.abs().max()
    max_over_processes((entry.largest_m, entry.processes) for entry in entries)
    in_global_scope = [entry for entry in entries if entry.group["scope"] == "global"]
    if in_global_scope:
        device = in_global_scope[0].largest_m.device
        largest = torch.stack([entry.largest_m.to(device) for entry in in_global_scope]).max()
        for entry in in_global_scope:
            entry.largest_m = largest.to(entry.m.device, entry.m.dtype)


def joint_norm(entries: list[Entry]) -> Tensor:
    """Return the joint norm of some weights, 0-d, on the device of the first."""
    norms: list[Tensor] = [torch.linalg.vector_norm(entry.w) for entry in entries]
    # Of sharded weights, the squares add up over the processes
    sharded = [(norm.square_(), entry.processes) for norm, entry in zip(norms, entries, strict=True) if entry.processes]
    sum_over_processes(sharded)
    for norm, _ in sharded:
        norm.sqrt_()
    if len(norms) == 1:
        return norms[0]
    joint: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device, norms[0].dtype) for n in norms]))
    return joint
