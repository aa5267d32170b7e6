import pytest
import torch
import torchvision

from tasks.base import InputError
from tasks.networks import resnet18, resnet50


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("build", "parameters", "conv_share"), [(resnet18, 11_689_512, 95.53), (resnet50, 25_557_032, 91.77)]
)
def test_parameter_counts_are_those_of_the_paper(build, parameters, conv_share):
    network = build(1000)
    assert count(network) == parameters
    conv = sum(p.numel() for p in network.parameters() if p.ndim == 4)
    assert round(100 * conv / parameters, 2) == conv_share  # AdamP paper: 95.5 and 91.8 % are scale-invariant


def test_width_one_is_torchvisions_network_bit_for_bit():
    torch.manual_seed(0)
    ours = resnet18(10)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10)
    assert str(ours.layer2) == str(theirs.layer2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for one, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))


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


def test_a_quarter_resnet18_has_16_to_128_channels():
    network = resnet18(10, width=0.25)
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    assert [stage[-1].conv2.out_channels for stage in stages] == [16, 32, 64, 128]
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("width", [0, -1, 0.001, 0.3, float("nan"), float("inf")])
def test_a_width_that_gives_no_whole_channels_is_refused(width):
    with pytest.raises(InputError, match=r"model\.width="):
        resnet18(10, width=width)


def test_a_network_needs_a_class():
    with pytest.raises(InputError, match=r"model\.num_classes=0"):
        resnet18(0)
