"""Networks with weight-standardised or weight-normalised convolutions: the WS- and WN- networks of the AWS paper."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from adamp.layers import WNConv2d, WSConv2d, convert
from tasks.base import InputError
from tasks.networks.checks import check_factor


def normalised(
    num_classes: int,
    *,
    network: Callable[..., nn.Module],
    kind: str = "ws",
    eps: float = 1e-5,
    start_scale: float = 1.0,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """Return a network whose convolutions, stem and downsampling included, are normalised.

    Convolutions with a bias stay as they are: they belong to SE layers, and no BatchNorm follows them. So does the
    classifier. Reference: Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight
    Decay", section 4.

    Args:
        num_classes: Outputs of the classifier, K.
        network: Builds the plain network from `num_classes`, `width` and `depth`.
        kind: "ws" standardises each filter, "wn" divides it by its norm.
        eps: Added to the deviation or norm. With 0 a filter that decay has shrunk to nothing gives NaN.
        start_scale: Factor on the initial weights of these convolutions, which does not change the function; 20 and
            100 in the paper's Figures 5 and 6.
        width: Factor on every channel count.
        depth: Factor on the number of blocks.
    """
    if kind not in ("ws", "wn"):
        raise InputError(f"model.kind={kind}: must be ws or wn")
    if not eps >= 0:
        raise InputError(f"model.eps={eps}: must be at least 0")
    check_factor("start_scale", start_scale)
    plain = network(num_classes=num_classes, width=width, depth=depth)
    made = convert(plain, "ws" if kind == "ws" else "wn", eps=eps)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, WSConv2d | WNConv2d):
                module.weight.mul_(start_scale)
    return made
