"""Many networks side by side as one wide network, whose layers compute all of them in one operation.

A parameter of the wide network is that of all networks, concatenated along the first dimension: the output channels.
Network k owns the rows k R to (k + 1) R of a parameter of R rows, and the same of each gradient: its optimizer works on
these views and never sees the other networks. Activations lie side by side along dimension 1. Batch norm and all
channel-wise operations then need no change at all, convolutions run in groups and linear layers as batched products.

Notation: `K` networks, `B` examples.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamp.layers import WNLinear, WSLinear, normalise, standardise
from tasks.base import InputError
from tasks.engine.nested import map_tensors

# Layers without weights that treat each channel, or each entry, by itself
CHANNEL_WISE = (
    nn.Identity, nn.Flatten, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Hardswish,
    nn.Hardsigmoid, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample, nn.ZeroPad2d,
)  # fmt: skip
TOLERANCE = 1e-4  # between a network's own outputs and its part of the wide network's


class WideLinear(nn.Module):
    """K linear layers; the input is (B, in), one for all networks, or (B, K in), one for each.

    Args:
        layer: Any of them; the weights are filled in later.
        count: K.
    """

    def __init__(self, layer: nn.Linear, count: int) -> None:
        super().__init__()
        self.count, self.in_features = count, layer.in_features
        self.weight = _rows(layer.weight, count)
        self.bias = _rows(layer.bias, count) if layer.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K out)."""
        if x.shape[1] == self.in_features:
            return F.linear(x, self.layer_weight(), self.bias)
        inputs = x.view(len(x), self.count, self.in_features).transpose(0, 1)  # (K, B, in)
        weights = self.layer_weight().view(self.count, -1, self.in_features).transpose(1, 2)  # (K, in, out)
        outputs = torch.bmm(inputs, weights).transpose(0, 1).reshape(len(x), -1)
        return outputs if self.bias is None else outputs + self.bias

    def layer_weight(self) -> Tensor:
        """Return the weight that multiplies the input, (K out, in)."""
        return self.weight


class WideNormalisedLinear(WideLinear):
    """K weight-normalised or -standardised linear layers: each row is normalised by itself, whosever it is.

    Args:
        layer: As for `WideLinear`.
        count: K.
    """

    def __init__(self, layer: WNLinear | WSLinear, count: int) -> None:
        super().__init__(layer, count)
        self.eps, self.normalise = layer.eps, {"wn": normalise, "ws": standardise}[layer.kind]

    def layer_weight(self) -> Tensor:
        """Return the normalised weight, (K out, in)."""
        return self.normalise(self.weight, eps=self.eps)


class WideConv2d(nn.Module):
    """K convolutions as one with K times the groups; the input is (B, in, ...) or (B, K in, ...), as for `WideLinear`.

    Args:
        layer: Any of them; the weights are filled in later.
        count: K.
    """

    def __init__(self, layer: nn.Conv2d, count: int) -> None:
        super().__init__()
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise InputError(f"many networks at once: {layer} pads in a way that is not supported")
        self.count, self.in_channels, self.groups = count, layer.in_channels, layer.groups
        self.options: Any = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        self.weight = _rows(layer.weight, count)
        self.bias = _rows(layer.bias, count) if layer.bias is not None else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, K out, ...)."""
        is_shared = x.shape[1] == self.in_channels
        if is_shared and self.groups > 1:
            x, is_shared = x.repeat(1, self.count, 1, 1), False
        groups = 1 if is_shared else self.groups * self.count
        return F.conv2d(x, self.weight, self.bias, groups=groups, **self.options)


def _rows(parameter: Tensor, count: int) -> nn.Parameter:
    return nn.Parameter(parameter.detach().repeat(count, *[1] * (parameter.dim() - 1)))


def _wide_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, count: int) -> nn.Module:
    wide = type(layer)(
        layer.num_features * count, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
    )  # fmt: skip
    if (like := next(iter((*layer.parameters(), *layer.buffers())), None)) is not None:
        wide.to(like.device, like.dtype)
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.dim():  # num_batches_tracked is one number for all networks
            getattr(wide, name).data.copy_(value.detach().repeat(count))
    return wide


WIDENED: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    nn.Linear: WideLinear, WNLinear: WideNormalisedLinear, WSLinear: WideNormalisedLinear, nn.Conv2d: WideConv2d,
    nn.BatchNorm1d: _wide_norm, nn.BatchNorm2d: _wide_norm,
}  # fmt: skip


def widen(network: nn.Module, count: int) -> nn.Module:
    """Return `count` copies of a network side by side.

    Its blocks may hold code of their own, such as a residual sum, that works on any number of channels.

    Raises:
        InputError: A layer is not known, or a block has parameters of its own.
    """
    if type(network) in WIDENED:
        return WIDENED[type(network)](network, count)
    wide = copy.deepcopy(network)
    for name, module in list(wide.named_modules()):
        if any(type(above) in WIDENED for above in _ancestors(wide, name)):
            continue
        if type(module) in WIDENED:
            wide.set_submodule(name, WIDENED[type(module)](module, count))
        elif not _is_channel_wise(module) and (
            not list(module.children()) or list(module.parameters(recurse=False)) or list(module.buffers(recurse=False))
        ):
            raise InputError(
                f"many networks at once: {type(module).__name__} ({name or 'the network itself'}) is no layer that can "
                "be computed for many networks; use launcher=local"
            )
    return wide


def _is_channel_wise(module: nn.Module) -> bool:
    return isinstance(module, CHANNEL_WISE) or (isinstance(module, nn.Dropout) and module.p == 0)


def _ancestors(root: nn.Module, name: str) -> list[nn.Module]:
    parts = name.split(".")[:-1]
    return [root.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts))]


class WideNetwork:
    """K networks of one architecture, computed together.

    Args:
        network: The architecture, with the weights that every network starts from, on its device.
        count: K.

    Attributes:
        module: All of them: (B, ...) -> (B, K features).
        members: Each by itself, a network like the given one whose parameters, gradients and buffers are parts of the
            wide ones. Whatever changes them changes the wide network.

    Raises:
        InputError: A layer is not known.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        self.module, self.count = widen(network, count), count
        self._parameters = list(self.module.parameters())
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.members = [self._member(network, k) for k in range(count)]

    def _member(self, network: nn.Module, index: int) -> nn.Module:
        member = copy.deepcopy(network)
        wide = dict(self.module.named_parameters()) | dict(self.module.named_buffers())
        for path, module in member.named_modules():
            prefix = f"{path}." if path else ""
            for name, parameter in module.named_parameters(recurse=False):
                whole = wide[prefix + name]
                rows = slice(index * len(parameter), (index + 1) * len(parameter))
                part = nn.Parameter(whole.data[rows])
                assert whole.grad is not None
                part.grad = whole.grad[rows]
                setattr(module, name, part)
            for name, buffer in module.named_buffers(recurse=False):
                whole = wide[prefix + name]
                size = buffer.shape[0] if buffer.dim() else None
                setattr(module, name, whole if size is None else whole[index * size : (index + 1) * size])
        return member

    def zero_grad(self) -> None:
        """Set all gradients to zero in place, so that the members' stay parts of them."""
        torch._foreach_zero_([p.grad for p in self._parameters if p.grad is not None])

    @torch.no_grad()
    def check(self, inputs: Sequence[Any]) -> None:
        """Compare the wide network's outputs with those of its first and last network by itself, in evaluation mode.

        Raises:
            InputError: They differ: a block's own code mixes channels.
        """
        was_training = self.module.training
        self.module.eval()
        try:
            wide = self.module(*inputs)
            for index in {0, self.count - 1}:
                own = self.members[index].eval()(*inputs)
                torch.testing.assert_close(part_of(wide, index, self.count), own, rtol=TOLERANCE, atol=TOLERANCE)
        except (AssertionError, RuntimeError, ValueError, TypeError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"many networks at once: the network computes something else when it stands beside others ({reason}); "
                "use launcher=local"
            ) from None
        finally:
            self.module.train(was_training)


def part_of(outputs: Any, index: int, count: int) -> Any:
    """Return one network's part of outputs (B, K features, ...), in nested containers too."""

    def part(wide: Tensor) -> Tensor:
        if wide.dim() < 2 or wide.shape[1] % count:
            raise ValueError(f"an output of shape {tuple(wide.shape)} is not that of {count} networks")
        size = wide.shape[1] // count
        return wide[:, index * size : (index + 1) * size]

    return map_tensors(part, outputs)


class SharedForward:
    """The forward passes of a wide network between two steps: a pass with the same inputs is made once.

    Args:
        module: The wide network.
        count: K.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        self.module, self.count = module, count
        self._passes: list[tuple[bool, tuple[Any, ...], Any]] = []

    def __call__(self, *inputs: Any) -> Any:
        """Return the wide outputs."""
        with_grad = torch.is_grad_enabled()
        for had_grad, known, outputs in self._passes:
            if had_grad == with_grad and len(known) == len(inputs) and all(map(_is_same, known, inputs)):
                return outputs
        outputs = self.module(*inputs)
        self._passes.append((with_grad, inputs, outputs))
        return outputs

    def forget(self) -> None:
        """Drop the passes: the weights have changed."""
        self._passes.clear()


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or torch.equal(one, other)
    return one is other or (not isinstance(one, Tensor) and bool(one == other))


class Part(nn.Module):
    """Stands for one of K networks: the first that is asked computes all, the others take their part of the outputs.

    Args:
        shared: Common to the networks.
        index: Of the network.
    """

    def __init__(self, shared: SharedForward, index: int) -> None:
        super().__init__()
        self._shared, self._index = shared, index

    def forward(self, *inputs: Any) -> Any:
        """Return the outputs of this network."""
        return part_of(self._shared(*inputs), self._index, self._shared.count)
