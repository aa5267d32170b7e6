"""ResNets of any width: width 1 is torchvision's network, other widths scale all of its channel counts."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from tasks.base import InputError


class ScaledResNet(ResNet):
    """torchvision's ResNet with 64 * width channels after the 7x7 stem, doubled at each stage.

    At width 1 parameters, names and initial values are those of torchvision: stride in the 3x3 convolution,
    every BatchNorm scale starts at 1. Reference: He et al., arXiv:1512.03385.

    Args:
        block: Residual block.
        layers: Blocks in each of the four stages.
        num_classes: Outputs of the classifier, K.
        width: Factor on every channel count; 64 * width must be a whole number.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: tuple[int, int, int, int],
        *,
        num_classes: int,
        width: float,
    ) -> None:
        channels = 64 * width
        if not (channels >= 1 and channels % 1 == 0):  # inf % 1 is NaN
            raise InputError(f"model.width={width}: 64 * width must be a whole number, at least 1")
        if not num_classes >= 1:
            raise InputError(f"model.num_classes={num_classes}: must be at least 1")
        nn.Module.__init__(self)  # ResNet's own constructor fixes the stem at 64 channels
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = int(channels), 1, 1, 64
        stem = self.inplanes
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


def resnet18(num_classes: int, *, width: float = 1.0) -> ScaledResNet:
    """Return a ResNet18; 11,689,512 parameters for 1,000 classes at width 1."""
    return ScaledResNet(BasicBlock, (2, 2, 2, 2), num_classes=num_classes, width=width)


def resnet50(num_classes: int, *, width: float = 1.0) -> ScaledResNet:
    """Return a ResNet50; 25,557,032 parameters for 1,000 classes at width 1."""
    return ScaledResNet(Bottleneck, (3, 4, 6, 3), num_classes=num_classes, width=width)
