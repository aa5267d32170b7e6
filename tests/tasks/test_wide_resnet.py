import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adamp import scale_invariant_parameters
from tasks.base import InputError
from tasks.wide_resnet import Block, WideResNet


def small(**options):
    torch.manual_seed(0)
    return WideResNet(10, **{"depth": 10, "width": 2, **options})


@pytest.mark.parametrize(
    ("shortcut", "parameters", "convolutions"), [("pad", 45_901_914, 45_873_072), ("conv", 46_160_474, 46_131_632)]
)
def test_wide_resnet_34_10_has_the_published_number_of_parameters(shortcut, parameters, convolutions):
    with torch.device("meta"):
        network = WideResNet(10, shortcut=shortcut)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(p.numel() for p in network.parameters() if p.dim() == 4) == convolutions
    assert len([m for m in network.modules() if isinstance(m, Block)]) == 15


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
@pytest.mark.parametrize(("depth", "width"), [(10, 1), (10, 2), (16, 1)])
def test_pictures_become_logits_and_every_parameter_learns(shortcut, depth, width):
    network = small(depth=depth, width=width, shortcut=shortcut)
    sizes = []
    for group in network.groups:
        group.register_forward_hook(lambda module, args, out: sizes.append(out.shape[1:]))
    logits = network(torch.rand(4, 3, 32, 32))
    assert logits.shape == (4, 10)
    assert sizes == [(16 * width, 32, 32), (32 * width, 16, 16), (64 * width, 8, 8)]
    F.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_the_padded_shortcut_averages_and_adds_zero_channels_on_both_sides():
    block = Block(4, 8, stride=2, shortcut="pad").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    active = F.relu(block.bn1(x))
    assert not out[:, :2].any()
    assert not out[:, 6:].any()
    torch.testing.assert_close(out[:, 2:6], F.avg_pool2d(active, 2))


def test_the_later_recipes_activation_passes_a_tenth_of_what_is_negative():
    block = Block(4, 8, stride=1, shortcut="pad", negative_slope=0.1).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x)[:, 2:6], F.leaky_relu(block.bn1(x), 0.1))
    network = small(negative_slope=0.1)
    assert {m.negative_slope for m in network.modules() if isinstance(m, Block)} == {network.negative_slope} == {0.1}


def test_a_block_that_keeps_its_channels_adds_its_own_input():
    block = Block(4, 4, stride=1, shortcut="pad").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x.clone()), x)


def test_the_stem_and_the_first_convolutions_alone_are_scale_invariant():
    found = scale_invariant_parameters(small(), torch.rand(3, 3, 8, 8))
    assert found.keys() == {"stem.weight", *(f"groups.{g}.0.conv1.weight" for g in range(3))}


def test_about_47_percent_of_wide_resnet_34_10_is_scale_invariant():
    with torch.device("meta"):
        named = dict(WideResNet(10).named_parameters())
    invariant = sum(p.numel() for name, p in named.items() if name.endswith("conv1.weight") or name == "stem.weight")
    assert invariant == 21_681_072
    assert 0.472 < invariant / sum(p.numel() for p in named.values()) < 0.473


def test_weights_start_as_the_reference_starts_them():
    network = small(width=4)
    conv = network.groups[1][0].conv2.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert (network.bn.weight == 1).all()
    assert not network.bn.bias.any()
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, "model.depth=12"),
        ({"depth": 4}, "model.depth=4"),
        ({"width": 0}, "model.width=0"),
        ({"width": 1.5}, "model.width=1.5"),
        ({"shortcut": "none"}, "model.shortcut=none"),
        ({"num_classes": 0}, "model.num_classes=0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(InputError, match=message):
        WideResNet(**{"num_classes": 10, **options})
