"""The networks of ReBias: each returns its logits and the pooled features that HSIC compares.

Shapes: B pictures, H W pixels, D features, K classes. Structures as in the published code of
Bahng et al., arXiv:1910.02806; the BagNet after Brendel and Bethge, arXiv:1904.00760.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from tasks.base import InputError
from tasks.networks import resnet18


class FeatureClassifier(nn.Module):
    """A body that ends in pooled features, and a linear classifier on them.

    Args:
        body: Maps pictures (B, 3, H, W) to features (B, D).
        num_features: D.
        num_classes: K.
    """

    def __init__(self, body: nn.Module, num_features: int, *, num_classes: int) -> None:
        super().__init__()
        if not num_classes >= 1:
            raise InputError(f"model.num_classes={num_classes}: must be at least 1")
        self.body = body
        self.head = nn.Linear(num_features, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised pictures (B, 3, H, W) to logits (B, K) and features (B, D)."""
        features = self.body(x)
        return self.head(features), features


def simple_convnet(num_classes: int, *, kernel_size: int = 7, width: float = 1.0) -> FeatureClassifier:
    """Return Biased-MNIST's network: four times convolution, BatchNorm, ReLU; then the mean over all places.

    16, 32, 64, 128 channels, stride 1, same size by padding; the convolutions have biases. With kernel 7 it is f
    (531,210 parameters for ten classes), with kernel 1 g (12,810), which sees single pixels, hence colour.

    Args:
        num_classes: K.
        kernel_size: Side of every kernel, odd.
        width: Factor on every channel count; 16 * width must be a whole number.
    """
    if not (kernel_size >= 1 and kernel_size % 2 == 1):
        raise InputError(f"model.kernel_size={kernel_size}: must be odd")
    channels = [3, *(scaled(c, width) for c in (16, 32, 64, 128))]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        convolution = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FeatureClassifier(body, channels[-1], num_classes=num_classes)


def feature_resnet18(num_classes: int, *, width: float = 1.0) -> FeatureClassifier:
    """Return 9-Class ImageNet's f: a ResNet18, 11,181,129 parameters for nine classes at width 1."""
    body = resnet18(num_classes, width=width)
    num_features = body.fc.in_features
    body.fc = nn.Identity()  # type: ignore[assignment]
    return FeatureClassifier(body, num_features, num_classes=num_classes)


def bagnet18(num_classes: int, *, width: float = 1.0) -> FeatureClassifier:
    """Return 9-Class ImageNet's g, which sees 5x5 pixels at a time: 1,480,905 parameters for nine classes.

    A linear 1x1 convolution, a 3x3 one with BatchNorm and ReLU, and four stages of two residual blocks. Only the
    first block has a 3x3 kernel, all others 1x1, so that strides leave most of the picture unseen. Nothing is padded.

    Args:
        num_classes: K.
        width: Factor on every channel count; 64 * width must be a whole number.
    """
    stem = scaled(64, width)
    first = nn.Sequential(
        nn.Conv2d(3, stem, 1, bias=False),
        nn.Conv2d(stem, stem, 3, bias=False),
        nn.BatchNorm2d(stem, momentum=0.001),  # the published value, in this layer alone
        nn.ReLU(inplace=True),
    )
    inputs, blocks = stem, []
    for stage, stride in enumerate((2, 2, 2, 1)):
        outputs = stem * 2**stage
        blocks += [
            _BagBlock(inputs, outputs, kernel_size=3 if stage == 0 else 1, stride=stride),
            _BagBlock(outputs, outputs, kernel_size=1, stride=1),
        ]
        inputs = outputs
    body = nn.Sequential(first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    return FeatureClassifier(body, inputs, num_classes=num_classes)


class _BagBlock(nn.Module):
    """Two convolutions, the first with the kernel and without padding, around a shortcut cropped to fit."""

    def __init__(self, inputs: int, outputs: int, *, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        rest = self.shortcut(x)[..., : y.shape[-2], : y.shape[-1]]  # right and bottom are cut off
        return self.relu(y + rest)


def scaled(channels: int, width: float) -> int:
    """Return channels * width, or raise InputError where that is no whole number, at least 1."""
    if not (channels * width >= 1 and channels * width % 1 == 0):
        raise InputError(f"model.width={width}: {channels} * width must be a whole number, at least 1")
    return int(channels * width)
