"""Small networks with batch norm: layers that it makes scale-invariant, and a linear output that is not."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from adamp.layers import WNLinear, WSLinear
from tasks.base import InputError

LINEAR: dict[str | None, type[nn.Linear]] = {None: nn.Linear, "wn": WNLinear, "ws": WSLinear}


def mlp(
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 32,
    layers: int = 2,
    normalise: str | None = None,
    start_scale: float = 1.0,
    batch_norm: bool = True,
) -> nn.Sequential:
    """Return hidden layers of a linear map without bias, batch norm and ReLU, and a linear output with bias.

    Without batch norm the linear maps have biases instead, and no weight is scale-invariant unless `normalise` says so.

    Args:
        shape: Of a picture, (C, S, S).
        num_classes: Outputs.
        width: Units of each hidden layer.
        layers: Hidden layers.
        normalise: Weight-normalise ("wn") or -standardise ("ws") the hidden layers (`adamp.layers`); None leaves them.
        start_scale: Factor on the hidden layers' initial weights, which batch norm takes out again.
        batch_norm: Whether batch norm follows each hidden layer.

    Raises:
        InputError: A size is below 1, or another option is out of its range.
    """
    _check(width=width, layers=layers)
    if normalise not in LINEAR:
        raise InputError(f"model.normalise is {normalise!r}; choose wn, ws or null")
    if not start_scale > 0:
        raise InputError(f"model.start_scale is {start_scale}; it must be above 0")
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = shape[0] * shape[1] * shape[2]
    for number in range(1, layers + 1):
        parts[f"linear{number}"] = hidden = LINEAR[normalise](inputs, width, bias=not batch_norm)
        with torch.no_grad():
            hidden.weight.mul_(start_scale)
        if batch_norm:
            parts[f"norm{number}"] = nn.BatchNorm1d(width)
        parts[f"relu{number}"] = nn.ReLU()
        inputs = width
    parts["output"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(parts)


def unit_linear(shape: tuple[int, int, int], num_classes: int) -> nn.Sequential:
    """Return one weight-normalised linear layer, without gain or bias: logits are the picture along unit directions.

    Args:
        shape: Of a picture, (C, S, S).
        num_classes: Outputs.
    """
    layer = WNLinear(shape[0] * shape[1] * shape[2], num_classes, bias=False)
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=layer))


def convnet(shape: tuple[int, int, int], num_classes: int, *, width: int = 8, layers: int = 4) -> nn.Sequential:
    """Return 3x3 convolutions without bias, batch norm and ReLU, the third of stride 2, a mean and a linear output.

    Args:
        shape: Of a picture, (C, S, S).
        num_classes: Outputs.
        width: Channels of each convolution.
        layers: Convolutions.

    Raises:
        InputError: A size is below 1.
    """
    _check(width=width, layers=layers)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = shape[0]
    for number in range(1, layers + 1):
        stride = 2 if number == 3 else 1
        parts[f"conv{number}"] = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        parts[f"norm{number}"] = nn.BatchNorm2d(width)
        parts[f"relu{number}"] = nn.ReLU()
        channels = width
    parts["pool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["output"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if not size >= 1:
            raise InputError(f"model.{name} is {size}; it must be at least 1")
