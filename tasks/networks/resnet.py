"""ResNets and ResNeXts of any width: width 1 is torchvision's network, other widths scale all of its channel counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tasks.base import InputError
from tasks.networks.checks import check_classes, check_factor, scaled_blocks, whole_channels


class ScaledResNet(ResNet):
    """torchvision's ResNet with 64 * width channels after the 7x7 stem, doubled at each stage.

    At width 1 parameters, names and initial values are those of torchvision: stride in the 3x3 convolution,
    every BatchNorm scale starts at 1. Reference: He et al., arXiv:1512.03385; ResNeXt: Xie et al., arXiv:1611.05431.

    Args:
        block: Residual block.
        layers: Blocks in each of the four stages.
        num_classes: Outputs of the classifier, K.
        width: Factor on every channel count; 64 * width must be a whole number.
        groups: Groups of each 3x3 convolution at width 1. Other widths change their number, not the channels of one.
        group_width: Channels of one group in the first stage.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, ...],
        *,
        num_classes: int,
        width: float,
        groups: int = 1,
        group_width: int = 64,
    ) -> None:
        stem = whole_channels(width, 64)
        check_classes(num_classes)
        nn.Module.__init__(self)  # ResNet's own constructor fixes the stem at 64 channels
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = stem, 1, 1, 64
        if groups > 1:
            if not (groups * width >= 1 and groups * width % 1 == 0):
                raise InputError(f"model.width={width}: {groups} * width groups must be a whole number, at least 1")
            # torchvision makes int(planes * base_width / 64) channels a group; planes already carry the width.
            self.groups, self.base_width = int(groups * width), group_width / width  # type: ignore[assignment]
        self.conv1 = nn.Conv2d(3, stem, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, stem, layers[0])
        self.layer2 = self._make_layer(block, 2 * stem, layers[1], stride=2)
        self.layer3 = self._make_layer(block, 4 * stem, layers[2], stride=2)
        self.layer4 = self._make_layer(block, 8 * stem, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * stem * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pictures (B, 3, H, W) to logits (B, K)."""
        return super().forward(x)


CARDINALITY = {"groups": 32, "group_width": 4}


def resnet18(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> ScaledResNet:
    """Return a ResNet18; 11,689,512 parameters for 1,000 classes at width and depth 1."""
    layers = scaled_blocks((2, 2, 2, 2), depth)
    return ScaledResNet(BasicBlock, layers, num_classes=num_classes, width=width)


def resnet50(num_classes: int, *, width: float = 1.0, depth: float = 1.0, start_scale: float = 1.0) -> ScaledResNet:
    """Return a ResNet50; 25,557,032 parameters for 1,000 classes at width and depth 1.

    Args:
        num_classes: Outputs of the classifier, K.
        width: Factor on every channel count.
        depth: Factor on the number of blocks of each stage, rounded up.
        start_scale: Factor on the initial weights of the convolutions. BatchNorm follows each, so it does not change
            the function; 20 and 100 in the AWS paper's Figures 5 and 6.
    """
    check_factor("start_scale", start_scale)
    layers = scaled_blocks((3, 4, 6, 3), depth)
    network = ScaledResNet(Bottleneck, layers, num_classes=num_classes, width=width)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(start_scale)
    return network


def resnet101(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> ScaledResNet:
    """Return a ResNet101; 44,549,160 parameters for 1,000 classes at width and depth 1."""
    layers = scaled_blocks((3, 4, 23, 3), depth)
    return ScaledResNet(Bottleneck, layers, num_classes=num_classes, width=width)


def resnext50(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> ScaledResNet:
    """Return a ResNeXt50 32x4d; 25,028,904 parameters for 1,000 classes at width and depth 1."""
    layers = scaled_blocks((3, 4, 6, 3), depth)
    return ScaledResNet(Bottleneck, layers, num_classes=num_classes, width=width, **CARDINALITY)


def resnext101(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> ScaledResNet:
    """Return a ResNeXt101 32x4d (AWS paper; torchvision's own is 32x8d); 44,177,704 parameters."""
    layers = scaled_blocks((3, 4, 23, 3), depth)
    return ScaledResNet(Bottleneck, layers, num_classes=num_classes, width=width, **CARDINALITY)
