"""Small networks with batch norm: layers that it makes scale-invariant, and a linear output that is not."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from tasks.base import InputError


def mlp(shape: tuple[int, int, int], num_classes: int, *, width: int = 32, layers: int = 2) -> nn.Sequential:
    """Return hidden layers of a linear map without bias, batch norm and ReLU, and a linear output with bias.

    Args:
        shape: Of a picture, (C, S, S).
        num_classes: Outputs.
        width: Units of each hidden layer.
        layers: Hidden layers.

    Raises:
        InputError: A size is below 1.
    """
    _check(width=width, layers=layers)
    parts: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = shape[0] * shape[1] * shape[2]
    for number in range(1, layers + 1):
        parts[f"linear{number}"] = nn.Linear(inputs, width, bias=False)
        parts[f"norm{number}"] = nn.BatchNorm1d(width)
        parts[f"relu{number}"] = nn.ReLU()
        inputs = width
    parts["output"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(parts)


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
