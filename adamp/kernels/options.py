"""Options of the fused kernels, with the names and meanings of the optimizers' options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

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


class Shards(NamedTuple):
    """Of parameters whose rows are divided among processes, what their parts do not tell.

    Attributes:
        num_rows: Rows of each whole parameter.
        add_up_: Adds up a tensor over the processes that have the other rows, in place.
    """

    num_rows: list[int]
    add_up_: Callable[[Tensor], None]


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
