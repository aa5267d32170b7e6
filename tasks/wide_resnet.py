"""Wide residual networks for 32x32 pictures, pre-activation. Shapes: B images, C channels, H W pixels, K classes."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.base import InputError

Shortcut = Literal["pad", "conv"]


class WideResNet(nn.Module):
    """A WideResNet with three groups of (depth - 4) / 6 blocks and 16, 32, 64 times `width` channels.

    A block is BN-ReLU-conv-BN-ReLU-conv, 3x3 each, added to its shortcut. Where the number of channels changes, the
    shortcut starts from BN-ReLU(x), too. Convolutions start from N(0, 2 / (9 * out)), BN from 1 and 0, the classifier's
    bias from 0. Pictures in [0, 1] go in as they are.

    Only the stem and the first convolution of each block feed a BN alone. The second convolutions add to the residual
    stream, so none of them is scale-invariant by itself: 47 % of the weights of WRN-34-10 are.

    Args:
        num_classes: Outputs, K.
        depth: Convolutions along the longest path, 6n + 4; 34 in the paper.
        width: Factor on the channels of the groups; 10 in the paper. The stem keeps 16.
        shortcut: Where the number of channels changes: "pad" averages and adds zero channels on both sides, as the
            code behind the AdamP paper does (45,901,914 parameters at 34-10); "conv" is the usual 1x1 convolution
            (46,160,474).
        negative_slope: Of the activations below 0: 0 is ReLU, 0.1 the LeakyReLU of that code's later recipe.

    Raises:
        InputError: if an option is out of its range.

    Reference:
        Zagoruyko, Komodakis, "Wide Residual Networks", arXiv:1605.07146; the "pad" variant as in Madry et al.,
        arXiv:1706.06083.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int = 34,
        width: int = 10,
        shortcut: Shortcut = "pad",
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= negative_slope < 1:
            raise InputError(f"model.negative_slope={negative_slope}: must be at least 0 and below 1")
        if not (depth >= 10 and depth % 6 == 4):
            raise InputError(f"model.depth={depth}: must be 6n + 4 and at least 10")
        if not (width >= 1 and width % 1 == 0):
            raise InputError(f"model.width={width}: must be a whole number, at least 1")
        if shortcut not in ("pad", "conv"):
            raise InputError(f"model.shortcut={shortcut}: must be pad or conv")
        if not num_classes >= 1:
            raise InputError(f"model.num_classes={num_classes}: must be at least 1")
        width, channels = int(width), 16
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        groups = []
        for group, stride in enumerate((1, 2, 2)):
            out = 16 * width * 2**group
            count = (depth - 4) // 6
            blocks = [
                Block(
                    channels if k == 0 else out, out, stride=stride if k == 0 else 1, shortcut=shortcut,
                    negative_slope=negative_slope,
                ) for k in range(count)
            ]  # fmt: skip
            groups.append(nn.Sequential(*blocks))
            channels = out
        self.groups = nn.Sequential(*groups)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        self.negative_slope = negative_slope
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures (B, 3, H, W) in [0, 1] to logits (B, K); the average is over all positions, 8x8 at 32x32."""
        x = self.groups(self.stem(x))
        x = _activate(self.bn(x), self.negative_slope)
        return self.fc(x.mean(dim=(2, 3)))


def _activate(x: Tensor, negative_slope: float) -> Tensor:
    return F.leaky_relu(x, negative_slope, inplace=True) if negative_slope else F.relu(x, inplace=True)


class Block(nn.Module):
    """Two 3x3 convolutions, each after BN and an activation, and a shortcut."""

    def __init__(
        self, channels: int, out: int, *, stride: int, shortcut: Shortcut, negative_slope: float = 0.0
    ) -> None:
        super().__init__()
        self.negative_slope = negative_slope
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.stride, self.pad, self.widens = stride, (out - channels) // 2, out != channels
        if self.widens and shortcut == "conv":
            self.projection: nn.Module | None = nn.Conv2d(channels, out, 1, stride=stride, bias=False)
        else:
            self.projection = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to (B, out, H / stride, W / stride)."""
        active = _activate(self.bn1(x), self.negative_slope)
        branch = self.conv2(_activate(self.bn2(self.conv1(active)), self.negative_slope))
        return branch + self._shortcut(active if self.widens else x)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            return self.projection(x)
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.pad(x, (0, 0, 0, 0, self.pad, self.pad)) if self.widens else x
