"""Weight-normalised and -standardised layers in a wide network, with adaptive weight shrink on each network's part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adamp.hooks.weight_shrink import sgd_with_shrink
from adamp.layers import WNLinear, WSLinear
from tasks.base import InputError
from tasks.engine.group_overrides import convert_networks
from tasks.engine.wide import WideNetwork
from tasks.small_images import mlp

ALPHAS = (0.1, 0.5, 1.0)


def network(kind: str, start_scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    return mlp((1, 4, 4), 3, width=5, normalise=kind, start_scale=start_scale).double()


def optimizer(net: nn.Sequential, kind: str, alpha: float) -> torch.optim.Optimizer:
    shrunk = [layer.weight for layer in net if isinstance(layer, WNLinear | WSLinear)]
    others = [p for p in net.parameters() if all(p is not weight for weight in shrunk)]
    groups = [{"params": shrunk, "shrink": True}, {"params": others}]
    return sgd_with_shrink(groups, 0.3, weight_decay=1e-2, alpha=alpha, kind="wn" if kind == "wn" else "ws")


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64), torch.randint(3, (8,), generator=generator))
        for _ in range(4)
    ]


@pytest.mark.parametrize("kind", ["wn", "ws"])
def test_normalised_networks_with_shrink_train_wide_as_alone(kind: str) -> None:
    wide = WideNetwork(network(kind), len(ALPHAS))
    optimizers = [optimizer(net, kind, alpha) for net, alpha in zip(wide.members, ALPHAS, strict=True)]  # type: ignore[arg-type]
    for images, labels in batches():
        wide.zero_grad()
        logits = wide.module(images).view(len(labels), len(ALPHAS), -1)
        sum(F.cross_entropy(logits[:, k], labels) for k in range(len(ALPHAS))).backward()  # type: ignore[union-attr]
        for each in optimizers:
            each.step()
    for member, alpha in zip(wide.members, ALPHAS, strict=True):
        alone = network(kind)
        own = optimizer(alone, kind, alpha)
        for images, labels in batches():
            own.zero_grad()
            F.cross_entropy(alone(images), labels).backward()
            own.step()
        for value, expected in zip(member.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_a_larger_start_changes_hidden_weights_alone_and_no_output() -> None:
    images = batches()[0][0]
    plain, scaled = network("ws"), network("ws", start_scale=20)
    torch.testing.assert_close(scaled.get_parameter("linear1.weight"), 20 * plain.get_parameter("linear1.weight"))
    torch.testing.assert_close(scaled.get_parameter("output.weight"), plain.get_parameter("output.weight"))
    torch.testing.assert_close(scaled.eval()(images), plain.eval()(images), rtol=1e-2, atol=1e-2)  # eps of the layer


def test_a_network_with_normalised_layers_of_its_own_is_not_converted() -> None:
    net = network("ws")
    convert_networks({"model": net}, "ws")
    assert [type(layer) for layer in net][1] is WSLinear
    with pytest.raises(InputError, match="no convolution"):
        convert_networks({"model": mlp((1, 4, 4), 3)}, "ws")
