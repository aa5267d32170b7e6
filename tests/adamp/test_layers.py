"""Weight-normalised and weight-standardised layers, and their insertion into a model."""

import math

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

from adamp.layers import WNConv2d, WNLinear, WSConv2d, WSLinear, convert, normalise, standardise

CONVS = pytest.mark.parametrize("cls", [WNConv2d, WSConv2d])
SCRIPTS = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
LAYERS = pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda eps: WNConv2d(4, 6, 3, groups=2, bias=False, eps=eps), (2, 4, 5, 5)),
        (lambda eps: WSConv2d(4, 6, 3, groups=2, bias=False, eps=eps), (2, 4, 5, 5)),
        (lambda eps: WNLinear(4, 6, eps=eps), (2, 4)),
        (lambda eps: WSLinear(4, 6, eps=eps), (2, 4)),
    ],
)


def test_normalised_filters_have_norm_one_and_standardised_ones_mean_zero_and_deviation_one():
    w = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones(5, dtype=torch.float64)
    torch.testing.assert_close(normalise(w, eps=0.0).flatten(1).norm(dim=1), one)
    s = standardise(w, eps=0.0).flatten(1)
    torch.testing.assert_close(s.mean(1), 0 * one, atol=1e-15, rtol=0)
    torch.testing.assert_close(s.std(1), one)  # unbiased
    torch.testing.assert_close(normalise(w, eps=0.5)[0], w[0] / (w[0].norm() + 0.5))
    torch.testing.assert_close(standardise(w, eps=0.5)[0], (w[0] - w[0].mean()) / (w[0].std() + 0.5))


@LAYERS
def test_the_scale_of_a_filter_does_not_matter_and_the_gradient_is_tangent(make, shape):
    layer = make(0.0).double()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = layer(x)
    before.square().sum().backward()
    inner = (layer.weight.grad * layer.weight.detach()).flatten(1).sum(1)
    assert float(inner.abs().max()) < 1e-12
    with torch.no_grad():
        layer.weight *= torch.rand(6, *[1] * (layer.weight.ndim - 1)).double() + 0.5
    torch.testing.assert_close(layer(x), before)


@LAYERS
def test_a_zero_filter_stays_finite_with_eps(make, shape):
    layer = make(1e-5)
    with torch.no_grad():
        layer.weight.zero_()
    layer(torch.ones(shape)).sum().backward()
    assert torch.isfinite(layer.weight.grad).all()


@pytest.mark.parametrize("eps", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("cls", [WNConv2d, WSConv2d])
def test_a_bad_eps_is_refused(cls, eps):
    with pytest.raises(ValueError, match=r"^eps="):
        cls(2, 2, 3, eps=eps)


def test_a_filter_of_one_entry_cannot_be_standardised():
    with pytest.raises(ValueError, match="one entry"):
        WSConv2d(4, 4, 1, groups=4)
    with pytest.raises(ValueError, match="one entry"):
        WSLinear(1, 4)


def test_eps_is_shown():
    assert "eps=1e-05" in repr(WNConv2d(2, 2, 3))
    assert "eps=0.5" in repr(WSLinear(2, 2, eps=0.5))


class Block(nn.Module):
    """A convolution that occurs twice, an SE layer with bias, and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, stride=1, padding=1, dilation=1, bias=False, padding_mode="reflect")
        self.inner = nn.Sequential(nn.BatchNorm2d(3), self.conv)
        self.se = nn.Conv2d(3, 3, 1)
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        x = self.inner(self.conv(x))
        return self.fc((x * self.se(x).sigmoid()).mean((2, 3)))


@pytest.mark.parametrize(("kind", "cls", "change"), [("wn", WNConv2d, normalise), ("ws", WSConv2d, standardise)])
def test_convert_replaces_convolutions_without_bias(kind, cls, change):
    model = Block().double().eval()
    weight, names = model.conv.weight, list(model.state_dict())
    assert convert(model, kind, eps=0.25) is model
    assert type(model.conv) is cls
    assert model.inner[1] is model.conv
    assert model.conv.eps == 0.25
    assert not model.conv.training
    assert model.conv.weight is weight
    assert type(model.se) is nn.Conv2d
    assert type(model.fc) is nn.Linear
    assert list(model.state_dict()) == names
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    torch.testing.assert_close(model.conv(x), F.conv2d(padded, change(weight, eps=0.25)))
    assert model(x).shape == (2, 2)


def test_a_convolution_with_two_names_in_one_parent_is_converted_once_for_both():
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    model = convert(nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), conv, nn.BatchNorm2d(3)), "ws")
    assert type(model[0]) is WSConv2d
    assert model[3] is model[0]


@pytest.mark.parametrize(
    "computed_by",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.spectral_norm,
        lambda conv: nn.utils.prune.random_unstructured(conv, "weight", amount=0.5),
    ],
)
def test_a_convolution_whose_weight_is_computed_is_refused_by_its_name(computed_by):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), computed_by(nn.Conv2d(4, 4, 3, bias=False)))
    with pytest.raises(ValueError, match="a parameter of '1' is computed from other tensors"):
        convert(model, "wn")
    assert type(model[0]) is nn.Conv2d
    convert(model, "wn", skip=lambda name, conv: name == "1")
    assert type(model[0]) is WNConv2d


@SCRIPTS
@pytest.mark.parametrize("kind", ["wn", "ws"])
@pytest.mark.parametrize("trace", ["fx", "script"])
def test_a_converted_model_is_traceable(kind, trace):
    model = convert(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False)), kind)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    if trace == "script":
        assert torch.equal(torch.jit.script(model)(x), model(x))
    else:
        extraction = pytest.importorskip("torchvision.models.feature_extraction")
        features = extraction.create_feature_extractor(model, {"0": "first", "2": "last"})(x)
        assert torch.equal(features["first"], model[0](x))
        assert torch.equal(features["last"], model(x))


@SCRIPTS
@pytest.mark.parametrize("cls", [WNLinear, WSLinear])
def test_linear_layers_are_scriptable(cls):
    layer, x = cls(3, 2), torch.ones(4, 3)
    assert torch.equal(torch.jit.script(layer)(x), layer(x))


def test_skip_chooses_by_name_and_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, bias=False))
    convert(model, "wn", skip=lambda name, conv: name == "0")
    assert [type(m) for m in model] == [nn.Conv2d, WNConv2d, WNConv2d]
    assert model[1].bias is not None


def test_a_single_convolution_is_returned_converted():
    assert type(convert(nn.Conv2d(3, 4, 3, bias=False), "ws")) is WSConv2d


def test_convert_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="kind='gn'"):
        convert(nn.Conv2d(3, 4, 3, bias=False), "gn")
    with pytest.raises(ValueError, match=r"no torch\.nn\.Conv2d"):
        convert(nn.Sequential(nn.Conv2d(3, 4, 3)), "ws")
    with pytest.raises(ValueError, match="one entry"):
        convert(nn.Conv2d(4, 4, 1, groups=4, bias=False), "ws")
    with pytest.raises(ValueError, match=r"no torch\.nn\.Conv2d"):
        convert(convert(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)), "ws"), "ws")


def test_every_convolution_of_resnet18_is_converted_and_nothing_else():
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=10)
    size = sum(p.numel() for p in model.parameters())
    convert(model, "ws")
    assert sum(type(m) is WSConv2d for m in model.modules()) == 20
    assert sum(p.numel() for p in model.parameters()) == size
