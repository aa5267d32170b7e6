"""The published networks: parameters, shapes, what they see, what of them is scale-invariant."""

from functools import partial

import pytest
import torch

from adamp import scale_invariant_parameters
from tasks.base import InputError
from tasks.rebias import bagnet18, feature_resnet18, simple_convnet


@pytest.mark.parametrize(
    ("make", "num_classes", "parameters", "features"),
    [
        (simple_convnet, 10, 531_210, 128),
        (partial(simple_convnet, kernel_size=1), 10, 12_810, 128),
        (feature_resnet18, 9, 11_181_129, 512),
        (bagnet18, 9, 1_480_905, 512),
    ],
)
def test_a_network_has_the_published_size_and_returns_logits_and_features(make, num_classes, parameters, features):
    net = make(num_classes)
    assert sum(p.numel() for p in net.parameters()) == parameters
    logits, found = net(torch.randn(2, 3, 36, 36))
    assert (logits.shape, found.shape) == ((2, num_classes), (2, features))
    assert torch.equal(logits, net.head(found))


def test_the_bagnets_maps_have_the_published_sides():
    x, sides = torch.randn(1, 3, 224, 224), []
    body = bagnet18(9, width=1 / 64).body
    for module in body:
        x = module(x)
        sides.append(x.shape[-1])
    assert sides[:9] == [222, 110, 110, 55, 55, 28, 28, 28, 28]


def reach(net, side):
    """Return how many rows of pixels have an influence on one place of the last map."""
    net = net.eval().double()
    x = torch.randn(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    y = x
    for module in list(net.body)[:-2]:
        y = module(y)
    y[0, :, y.shape[2] // 2, y.shape[3] // 2].sum().backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    return int(rows.max() - rows.min()) + 1


def test_the_biased_networks_see_little_at_a_time():
    torch.manual_seed(0)
    assert reach(simple_convnet(10, kernel_size=1, width=0.25), 28) == 1
    assert reach(bagnet18(9, width=0.25), 64) == 5
    assert reach(simple_convnet(10, width=0.25), 28) == 25


@pytest.mark.parametrize("kernel_size", [1, 7])
def test_every_convolution_of_the_simple_network_is_scale_invariant(kernel_size):
    torch.manual_seed(0)
    net = simple_convnet(10, kernel_size=kernel_size, width=0.25)
    found = scale_invariant_parameters(net, torch.randn(8, 3, 8, 8), per_filter=True)
    assert found.keys() == {name for name, p in net.named_parameters() if p.ndim == 4}


def test_the_bagnets_first_convolution_is_scale_invariant_as_a_whole_only():
    torch.manual_seed(0)
    net = bagnet18(9, width=0.125)
    x = torch.randn(4, 3, 20, 20)
    convolutions = {name for name, p in net.named_parameters() if p.ndim == 4}
    marks = scale_invariant_parameters(net, x)
    assert marks == {name: "tensor" if name == "body.0.0.weight" else "rows" for name in convolutions}
    assert scale_invariant_parameters(net, x, per_filter=True).keys() == convolutions - {"body.0.0.weight"}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (partial(simple_convnet, width=0.03), "model.width=0.03"),
        (partial(bagnet18, width=float("nan")), "model.width=nan"),
        (partial(simple_convnet, kernel_size=4), "model.kernel_size=4"),
    ],
)
def test_a_wrong_option_is_named(make, name):
    with pytest.raises(InputError, match=name):
        make(10)
    with pytest.raises(InputError, match="num_classes=0"):
        simple_convnet(0)
