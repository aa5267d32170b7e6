"""Convolutions and linear layers with a normalised or standardised weight, and their insertion into a model.

The weight of each output filter `W_f` (n entries, the fan-in) enters the layer as

    weight normalisation (WN):     W_f / (‖W_f‖ + eps)                      no gain: batch norm follows
    weight standardisation (WS):   (W_f - mean(W_f)) / (std(W_f) + eps)     std with n - 1 in the denominator

so the layer's function does not change when a filter is scaled. An `eps` of 0 makes that exact, but a filter
that weight decay has shrunk to zero then gives NaN; 1e-5 avoids this and costs invariance at very small
norms.

Reference:
    Salimans and Kingma, "Weight Normalization", 2016. Qiao et al., "Weight Standardization", 2019.
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay", 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, TypeGuard

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Kind = Literal["wn", "ws"]


def normalise(weight: Tensor, *, eps: float) -> Tensor:
    """Return the weight with each filter divided by its norm plus eps, same shape.

    Example:
        >>> normalise(torch.tensor([[3.0, 4.0]]), eps=0.0)
        tensor([[0.6000, 0.8000]])
    """
    dims = list(range(1, weight.dim()))
    norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return weight / (norm + eps)


def standardise(weight: Tensor, *, eps: float) -> Tensor:
    """Return the weight with each filter centred and divided by its standard deviation plus eps, same shape.

    Example:
        >>> standardise(torch.tensor([[1.0, 2.0, 3.0]]), eps=0.0)
        tensor([[-1.,  0.,  1.]])
    """
    dims = list(range(1, weight.dim()))
    centred = weight - weight.mean(dim=dims, keepdim=True)
    return centred / (weight.std(dim=dims, keepdim=True) + eps)


# One node each in a graph of torch.fx, whose symbolic tensors have no number of dimensions to loop over
torch.fx.wrap("normalise")
torch.fx.wrap("standardise")


class _NormalisedWeight(nn.Module):
    """Mixin of the layers below: their kind, their option and its check."""

    kind: ClassVar[Kind]

    def __init__(self, *args: Any, eps: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps={eps!r} is not valid: it must be at least 0 and finite")
        shape = self.get_parameter("weight").shape
        if self.kind == "ws" and shape[1:].numel() < 2:
            raise ValueError(
                f"the weight has shape {tuple(shape)}: a filter of one entry has no standard deviation; "
                "skip this layer or normalise it"
            )
        self.eps = float(eps)

    def extra_repr(self) -> str:
        """Return the arguments in `repr`."""
        arguments: str = super().extra_repr()
        return f"{arguments}, eps={self.eps:g}"


class WNConv2d(_NormalisedWeight, nn.Conv2d):
    """`torch.nn.Conv2d` whose filters are divided by their norm.

    Args:
        *args: As for `torch.nn.Conv2d`.
        eps: Added to each norm, at least 0.
        **kwargs: As for `torch.nn.Conv2d`.

    Raises:
        ValueError: If eps is out of range.

    Example:
        >>> WNConv2d(3, 8, kernel_size=3)(torch.zeros(1, 3, 5, 5)).shape
        torch.Size([1, 8, 3, 3])
    """

    kind = "wn"

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, C, H, W) with the normalised filters."""
        output: Tensor = self._conv_forward(input, normalise(self.weight, eps=self.eps), self.bias)
        return output


class WSConv2d(_NormalisedWeight, nn.Conv2d):
    """`torch.nn.Conv2d` whose filters are centred and divided by their standard deviation.

    Args:
        *args: As for `torch.nn.Conv2d`.
        eps: Added to each standard deviation, at least 0.
        **kwargs: As for `torch.nn.Conv2d`.

    Raises:
        ValueError: If eps is out of range or a filter has a single entry.

    Example:
        >>> WSConv2d(3, 8, kernel_size=3)(torch.zeros(1, 3, 5, 5)).shape
        torch.Size([1, 8, 3, 3])
    """

    kind = "ws"

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `input` (B, C, H, W) with the standardised filters."""
        output: Tensor = self._conv_forward(input, standardise(self.weight, eps=self.eps), self.bias)
        return output


class WNLinear(_NormalisedWeight, nn.Linear):
    """`torch.nn.Linear` whose rows are divided by their norm.

    Args:
        *args: As for `torch.nn.Linear`.
        eps: Added to each norm, at least 0.
        **kwargs: As for `torch.nn.Linear`.

    Raises:
        ValueError: If eps is out of range.

    Example:
        >>> WNLinear(3, 8)(torch.zeros(1, 3)).shape
        torch.Size([1, 8])
    """

    kind = "wn"

    def forward(self, input: Tensor) -> Tensor:
        """Apply the normalised rows to `input` (..., D)."""
        return F.linear(input, normalise(self.weight, eps=self.eps), self.bias)


class WSLinear(_NormalisedWeight, nn.Linear):
    """`torch.nn.Linear` whose rows are centred and divided by their standard deviation.

    Args:
        *args: As for `torch.nn.Linear`.
        eps: Added to each standard deviation, at least 0.
        **kwargs: As for `torch.nn.Linear`.

    Raises:
        ValueError: If eps is out of range or a row has a single entry.

    Example:
        >>> WSLinear(3, 8)(torch.zeros(1, 3)).shape
        torch.Size([1, 8])
    """

    kind = "ws"

    def forward(self, input: Tensor) -> Tensor:
        """Apply the standardised rows to `input` (..., D)."""
        return F.linear(input, standardise(self.weight, eps=self.eps), self.bias)


_CONVOLUTIONS: dict[str, type[WNConv2d] | type[WSConv2d]] = {"wn": WNConv2d, "ws": WSConv2d}


def has_bias(name: str, conv: nn.Conv2d) -> bool:
    """Return whether the convolution has a bias: then no batch norm follows (SE layers, detection heads)."""
    return conv.bias is not None


def convert(
    model: nn.Module, kind: Kind, *, eps: float = 1e-5, skip: Callable[[str, nn.Conv2d], bool] = has_bias
) -> nn.Module:
    """Replace the convolutions of a model by weight-normalised or weight-standardised ones, in place.

    The new layers hold the same Parameter objects, so values, devices, dtypes and optimizers built before
    stay. Only modules whose type is exactly `torch.nn.Conv2d` are replaced; forward hooks on them are lost.
    Linear layers, the classifier among them, stay as they are.

    Args:
        model: The model to change.
        kind: "wn" for weight normalisation, "ws" for weight standardisation.
        eps: Added to the norm or standard deviation, at least 0.
        skip: Takes a convolution's name and the convolution, returns True to leave it alone. By default those
            with a bias stay, since no normalisation layer follows them.

    Returns:
        The model itself, or the new layer if the model is a single convolution.

    Raises:
        ValueError: If kind or eps is not valid, no convolution is left to replace, a filter to standardise has a
            single entry, or a convolution computes its weight already (weight_norm, spectral_norm, pruning).

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 1, 1))
        >>> [type(layer).__name__ for layer in convert(model, "ws")]
        ['WSConv2d', 'BatchNorm2d', 'Conv2d']
    """
    if kind not in _CONVOLUTIONS:
        raise ValueError(f"kind={kind!r} is not valid: it must be 'wn' or 'ws'")
    chosen = [(name, module) for name, module in model.named_modules() if _is_conv2d(module) and not skip(name, module)]
    if not chosen:
        raise ValueError(f"kind={kind!r}: the model has no torch.nn.Conv2d that skip leaves to be replaced")
    for name, conv in chosen:
        if set(conv._parameters) != {"weight", "bias"}:
            raise ValueError(
                f"a parameter of {name or 'the convolution'!r} is computed from other tensors (weight_norm, "
                "spectral_norm, pruning): remove that first, or skip this layer"
            )
    replacements: dict[nn.Module, nn.Module] = {conv: _replacement(conv, kind, eps) for _, conv in chosen}
    for parent in list(model.modules()):
        # Not named_children, which leaves out the second name of a module
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def _is_conv2d(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    # A parametrised module is of a class of its own, derived from the one it had
    cls = type(module)
    return (cls.__base__ if is_parametrized(module) else cls) is nn.Conv2d


def _replacement(conv: nn.Conv2d, kind: Kind, eps: float) -> nn.Module:
    layer = _CONVOLUTIONS[kind](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",  # nothing is drawn: the parameters are the old ones
        eps=eps,
    )
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer.train(conv.training)
