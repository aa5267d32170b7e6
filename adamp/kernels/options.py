"""Options of the fused kernels, with the names and meanings of the optimizers' options."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import Tensor

from adamp.marks import ScaleInvariantMode


class Unmoved:
    """A token of tensors of which nothing but gradients has moved between the steps that it is handed to.

    Attributes:
        tables: What a kernel keeps for these steps.
        moved_grads: Addresses of the gradients if they have moved since the kernel last set this to None.
    """

    tables: Any = None
    moved_grads: list[int] | None = None


class StepOptions(TypedDict):
    """Options of both kernels, for all their parameters; `lr` is a float or a 0-d tensor."""

    lr: float | Tensor
    eps: float
    weight_decay: float
    delta: float
    wd_ratio: float
    nesterov: bool
    maximize: bool
    scale_invariant: ScaleInvariantMode
    capturable: bool


class AdamPOptions(StepOptions):
    """Options of `adamp.AdamP` that its kernels take."""

    betas: tuple[float, float]


class SGDPOptions(StepOptions):
    """Options of `adamp.SGDP` that its kernels take."""

    momentum: float
    dampening: float
    project_buffer: bool
