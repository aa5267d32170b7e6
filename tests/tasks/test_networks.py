import math
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from adamp import scale_invariant_parameters
from adamp.layers import WSConv2d, convert
from tasks.base import InputError
from tasks.networks import (
    efficientnet,
    mobilenetv2,
    resnet18,
    resnet50,
    resnet101,
    resnext50,
    resnext101,
    se_resnet50,
    se_resnet101,
    shufflenetv2,
)

# Builder, parameters for 1,000 classes, share in convolutions that BatchNorm follows, BatchNorm parameters, and one of
# torchvision's or timm's own functions with the same network.
NETWORKS = {
    "resnet18": (resnet18, 11_689_512, 95.53, 9_600),  # AdamP paper: 95.5 % are scale-invariant
    "resnet50": (resnet50, 25_557_032, 91.77, 53_120),  # AdamP paper: 91.8 %
    "resnet101": (resnet101, 44_549_160, 95.16, 105_344),
    "resnext50": (resnext50, 25_028_904, 91.54, 68_224),
    "resnext101": (resnext101, 44_177_704, 95.05, 137_856),
    "se_resnet50": (se_resnet50, 28_088_024, 83.51, 53_120),
    "se_resnet101": (se_resnet101, 49_326_872, 85.95, 105_344),
    "mobilenetv2": (mobilenetv2, 3_504_872, 62.48, 34_112),
    "mobilenetv2_half": (partial(mobilenetv2, multiplier=0.5), 1_968_680, 33.99, 18_544),
    "shufflenetv2": (shufflenetv2, 2_278_604, 54.31, 16_180),
    "shufflenetv2_half": (partial(shufflenetv2, multiplier=0.5), 1_366_792, 24.43, 7_952),
    "efficientnet_b0": (partial(efficientnet, variant="b0"), 5_288_548, 62.95, 42_016),
    "efficientnet_b1": (partial(efficientnet, variant="b1"), 7_794_184, 68.37, 62_048),
    "efficientnet_b2": (partial(efficientnet, variant="b2"), 9_109_994, 69.20, 67_568),
    "efficientnet_b3": (partial(efficientnet, variant="b3"), 12_233_232, 71.36, 87_296),
}
BATCH_NORM = nn.modules.batchnorm._BatchNorm


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def convolutions(network):
    """Return name -> convolution without bias: those that BatchNorm follows."""
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d) and m.bias is None}


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_counts_and_shares_are_the_published_ones(name):
    build, parameters, conv_share, batch_norm = NETWORKS[name]
    with torch.device("meta"):
        network = build(1000)
    assert count(network) == parameters
    conv = sum(layer.weight.numel() for layer in convolutions(network).values())
    assert round(100 * conv / parameters, 2) == conv_share
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM)]
    assert sum(count(module) for module in norms) == batch_norm


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks_run_and_start_with_every_batch_norm_scale_at_one(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0](7, width=0.25, depth=0.25)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORM)]
    assert len(norms) > 5
    assert all(torch.equal(module.weight, torch.ones_like(module.weight)) for module in norms)
    assert count(network) < 300_000 or "res" in name


@pytest.mark.parametrize("name", ["resnet18", "resnext50", "se_resnet50", "shufflenetv2", "efficientnet_b0"])
def test_the_scale_invariant_weights_are_the_convolutions_that_batch_norm_follows(name):
    torch.manual_seed(0)
    network = NETWORKS[name][0](7, width=0.25, depth=0.25)
    found = scale_invariant_parameters(network, (torch.randn(8, 3, 64, 64),))
    expected = {f"{conv}.weight" for conv in convolutions(network)}
    assert {n for n in found if not n.endswith("bias")} == expected


def built(build):
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (resnet18, torchvision.models.resnet18),
        (mobilenetv2, torchvision.models.mobilenet_v2),
        (partial(mobilenetv2, multiplier=0.5), partial(torchvision.models.mobilenet_v2, width_mult=0.5)),
        (shufflenetv2, torchvision.models.shufflenet_v2_x1_0),
        (partial(shufflenetv2, multiplier=0.5), torchvision.models.shufflenet_v2_x0_5),
    ],
)
def test_width_one_is_torchvisions_network_bit_for_bit(ours, theirs):
    one, other = built(lambda: ours(10)), built(lambda: theirs(num_classes=10))
    assert list(one.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    ("ours", "theirs"), [(resnet101, "resnet101"), (resnext50, "resnext50_32x4d"), (resnext101, "timm")]
)
def test_large_networks_have_the_layers_of_torchvision_and_timm(ours, theirs):
    with torch.device("meta"):
        one = ours(10)
        if theirs == "timm":
            import timm

            other = timm.create_model("resnext101_32x4d", num_classes=10)
        else:
            other = getattr(torchvision.models, theirs)(num_classes=10)
    assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    groups = {n: m.groups for n, m in other.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n: m.groups for n, m in one.named_modules() if isinstance(m, nn.Conv2d)} == groups


@pytest.mark.parametrize("build", [resnet18, resnet50])
def test_width_scales_every_channel_count(build):
    with torch.device("meta"):
        full, quarter = build(7), build(7, width=0.25)
    for (name, one), other in zip(full.named_parameters(), quarter.parameters(), strict=True):
        expected = [size // 4 for size in one.shape[:2]]
        if name == "conv1.weight":
            expected[1] = 3
        if name.startswith("fc."):
            expected[0] = 7
        assert list(other.shape) == expected[: one.ndim] + list(one.shape[2:]), name
    assert list(quarter.conv1.kernel_size) == [7, 7]


def test_a_narrow_resnext_has_fewer_groups_of_as_many_channels():
    with torch.device("meta"):
        full, quarter = resnext50(7), resnext50(7, width=0.25)
    for one, other in zip(full.modules(), quarter.modules(), strict=True):
        if isinstance(one, nn.Conv2d) and one.groups > 1:
            assert other.groups == one.groups // 4
            assert other.weight.shape[1] == one.weight.shape[1]


def test_depth_scales_the_blocks_of_each_stage_and_rounds_up():
    with torch.device("meta"):
        network = resnet101(7, depth=0.25)
        assert [len(getattr(network, f"layer{k}")) for k in (1, 2, 3, 4)] == [1, 1, 6, 1]
        assert len(mobilenetv2(7, depth=0.5).features) == 1 + (1 + 1 + 2 + 2 + 2 + 2 + 1) + 1
        assert count(efficientnet(7, depth=0.5)) < count(efficientnet(7))


def test_a_normalised_network_keeps_its_parameters_and_squeeze_and_excitation_its_layers():
    with torch.device("meta"):
        network = convert(resnet50(1000), "ws")
        assert count(network) == 25_557_032
        assert sum(isinstance(module, WSConv2d) for module in network.modules()) == 53
        plain = [n for n, m in convert(se_resnet50(7), "ws").named_modules() if type(m) is nn.Conv2d]
    assert plain
    assert all(".se." in name for name in plain)


@pytest.mark.parametrize("kind", [None, "ws", "wn"])
def test_a_start_scale_changes_the_weights_and_not_the_function(kind):
    one, large = (
        built(lambda s=scale: resnet50(7, width=0.25, depth=0.25, start_scale=s)).double() for scale in (1, 100)
    )
    pairs = list(zip(large.named_parameters(), one.parameters(), strict=True))
    convs = [float((p.norm() / q.norm()).detach()) for (_, p), q in pairs if p.ndim == 4]
    assert len(convs) > 10
    assert all(math.isclose(ratio, 100, rel_tol=1e-5) for ratio in convs)
    assert all(torch.equal(p, q) for (_, p), q in pairs if p.ndim < 4)
    if kind:
        one, large = convert(one, kind, eps=0.0), convert(large, kind, eps=0.0)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(one(x), large(x), atol=1e-3)  # BatchNorm's own eps is not scaled


@pytest.mark.parametrize("width", [0, -1, 0.001, 0.3, float("nan"), float("inf")])
def test_a_width_that_gives_no_whole_channels_is_refused(width):
    with pytest.raises(InputError, match=r"model\.width="):
        resnet18(10, width=width)


@pytest.mark.parametrize(
    ("build", "option", "value"),
    [
        (resnet18, "depth", 0),
        (resnet18, "depth", float("nan")),
        (resnext50, "width", 0.015625),
        (mobilenetv2, "width", 0),
        (mobilenetv2, "multiplier", float("nan")),
        (mobilenetv2, "dropout", 1.0),
        (shufflenetv2, "multiplier", 0.7),
        (resnet50, "start_scale", 0),
        (efficientnet, "variant", "b9"),
        (efficientnet, "drop_path", -0.1),
        (efficientnet, "depth", -1),
    ],
)
def test_a_wrong_option_of_a_network_is_named(build, option, value):
    with pytest.raises(InputError, match=rf"model\.{option}="):
        build(10, **{option: value})


@pytest.mark.parametrize("build", [resnet18, se_resnet50, mobilenetv2, shufflenetv2, efficientnet])
def test_a_network_needs_a_class(build):
    with pytest.raises(InputError, match=r"model\.num_classes=0"):
        build(0)
