"""CenterNet on a ResNet18: three doublings of the last map, deformable or plain, and three small heads.

Shapes: B pictures, S their side, K classes, H W the output map, S / 4.
Reference: Zhou et al., "Objects as Points", arXiv:1904.07850; `resdcn_18` and `res_18` of its published code.
"""

from __future__ import annotations

import math
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from tasks.base import InputError
from tasks.detection.detector import Detector, Mean, Objects, Outputs
from tasks.detection.targets import centernet_counts, centernet_losses, decode, encode
from tasks.detection.views import CenterNetView
from tasks.detection.weights import initialise
from tasks.networks.checks import whole_channels
from tasks.networks.resnet import resnet18
from tasks.precision import widen

STRIDE = 4
STARTS = ("published", "plain")


class ModulatedConv(nn.Module):
    """A 3x3 convolution that reads at learned places with learned strengths (deformable convolution v2).

    It starts at the regular places with strength one half. Zhu et al., arXiv:1811.11168.

    Args:
        channels: In.
        out: Channels out.
    """

    TAPS = 9

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.places = nn.Conv2d(channels, 3 * self.TAPS, kernel_size=3, padding=1)
        nn.init.zeros_(self.places.weight)
        nn.init.zeros_(cast(Tensor, self.places.bias))
        self.conv = DeformConv2d(channels, out, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, out, h, w)."""
        # In float32 at least: the operator has no bfloat16 on the CPU, and offsets need the mantissa.
        with torch.autocast(x.device.type, enabled=False):
            x = widen(x)
            places = self.places(x)
            return self.conv(x, places[:, : 2 * self.TAPS], torch.sigmoid(places[:, 2 * self.TAPS :]))


def _normalised(layer: nn.Module, channels: int) -> list[nn.Module]:
    return [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def _double(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, kernel_size=4, stride=2, padding=1, bias=False)


class CenterNet(Detector):
    """CenterNet-ResNet18; 14,437,349 parameters for 80 classes, 15,820,372 with plain up-sampling.

    The lengths at which invariant weights start decide their effective steps, so `start` names them:

    - "published", as the code of either network. `resdcn_18` writes a bilinear kernel into the pairs of channels (c, 0)
      of each transposed convolution, over PyTorch's own values (norms of the whole tensors 22.0, 15.6, 11.0), and draws
      both layers of the size and offset heads from N(0, 0.001²). `res_18` draws its transposed convolutions from
      N(0, 0.001²) (1.45, 1.02, 1.02) and of those heads the last layer alone; the hidden one keeps PyTorch's (4.6).
    - "plain": transposed convolutions keep PyTorch's own values, 9.2, 6.5, 4.6 and 13.1, 9.2, 9.2, and both layers of
      those heads are drawn from N(0, 0.001²) (0.38 with plain up-sampling).

    Args:
        num_classes: K.
        image_size: S of a view, a multiple of 32.
        deformable: Deformable convolutions to 256, 128, 64 channels before each doubling (`resdcn_18`, the published
            28.1 AP); else transposed convolutions alone, 256 channels each (`res_18`).
        width: Factor on every channel count but the heads'.
        stages: Of the ResNet, 4 or 3: of small pictures the fourth sees a few pixels. The output stays a quarter of the
            view, so with 3 there are two doublings.
        head_channels: Of each head's hidden layer.
        size_weight: Of the loss of sizes.
        crop: Zoom and shift in training; else the whole picture, mirrored or not.
        colours: Jitter colours in training, as the published code does.
        start: "published" or "plain".
        keep_size: Evaluate pictures at their stored size, one at a time, as the published numbers were; else in a
            square of side S.
        init: "random", or "imagenet" for the backbone.
        weights: File of ImageNet weights; None looks in the usual places.

    Raises:
        InputError: An option is out of its range, or the weights are missing or do not fit.
    """

    MERGES: ClassVar[bool] = True

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: int = 512,
        deformable: bool = True,
        width: float = 1.0,
        stages: int = 4,
        head_channels: int = 64,
        size_weight: float = 0.1,
        crop: bool = True,
        colours: bool = True,
        start: str = "published",
        keep_size: bool = False,
        init: str = "imagenet",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if not (image_size >= 64 and image_size % 32 == 0):
            raise InputError(f"model.image_size={image_size}: must be a multiple of 32, at least 64")
        if stages not in (3, 4):
            raise InputError(f"model.stages={stages}: must be 3 or 4")
        if not head_channels >= 1:
            raise InputError(f"model.head_channels={head_channels}: must be at least 1")
        if not (size_weight >= 0 and math.isfinite(size_weight)):
            raise InputError(f"model.size_weight={size_weight}: must be finite and at least 0")
        if start not in STARTS:
            raise InputError(f"model.start={start}: choose one of {', '.join(STARTS)}")
        self.num_classes, self.size_weight = num_classes, size_weight
        self.num_examples, self.example_side = 2, min(image_size, 128)
        self.view = CenterNetView(image_size, crop=crop, colours=colours, keep_size=keep_size)
        self.backbone = resnet18(1, width=width)
        self.backbone.avgpool = self.backbone.fc = nn.Identity()  # type: ignore[assignment]
        self.origin = initialise(self.backbone, "resnet18", init=init, path=weights)
        if stages == 3:
            self.backbone.layer4 = nn.Identity()
        channels, layers = whole_channels(width, 2 ** (5 + stages)), list[nn.Module]()
        for planes in ((256, 128, 64) if deformable else (256, 256, 256))[4 - stages :]:
            out = whole_channels(width, planes)
            if deformable:
                layers += _normalised(ModulatedConv(channels, out), out)
                channels = out
            layers += _normalised(_double(channels, out), out)
            channels = out
        self.up = nn.Sequential(*layers)
        self.heads = nn.ModuleDict({name: _head(channels, head_channels, out, name) for name, out in
                                    (("heat", num_classes), ("size", 2), ("offset", 2))})  # fmt: skip
        if start == "published" and deformable:
            for layer in self._transposed():
                _write_bilinear(layer)
        elif start == "published":
            for layer in self._transposed():
                nn.init.normal_(layer.weight, std=0.001)
            for name in ("size", "offset"):
                cast(nn.Conv2d, cast(nn.Sequential, self.heads[name])[0]).reset_parameters()

    def _transposed(self) -> list[nn.ConvTranspose2d]:
        return [layer for layer in self.up if isinstance(layer, nn.ConvTranspose2d)]

    def forward(self, images: Tensor) -> Outputs:
        """Map normalised pictures (B, 3, S, S) to heat-map logits (B, K, H, W), sizes and offsets (B, 2, H, W)."""
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        x = self.up(x)
        return tuple(head(x) for head in self.heads.values())

    def losses(
        self, outputs: Outputs, objects: Objects, *, mean: Mean, share: float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `tasks.detection.targets.centernet_losses`."""
        batch, num_classes, height, width = outputs[0].shape
        targets = encode(objects, batch=batch, num_classes=num_classes, size=(height, width), stride=STRIDE)
        return centernet_losses(cast("tuple[Tensor, Tensor, Tensor]", outputs), targets, mean=mean,
                                size_weight=self.size_weight, share=share)  # fmt: skip

    def counts(self, objects: Objects, *, batch: int, side: int) -> tuple[Tensor, ...]:
        size = (side // STRIDE, side // STRIDE)
        targets = encode(objects, batch=batch, num_classes=self.num_classes, size=size, stride=STRIDE)
        return centernet_counts(targets)

    def detections(self, outputs: Outputs) -> list[Tensor]:
        """See `tasks.detection.targets.decode`."""
        return decode(cast("tuple[Tensor, Tensor, Tensor]", outputs), stride=STRIDE)

    def merged(self, outputs: Outputs, mirrored: Outputs) -> Outputs:
        """Average probabilities and sizes with those of the mirror images; offsets are those of the picture itself."""
        heat = (torch.sigmoid(outputs[0].float()) + torch.sigmoid(mirrored[0].float()).flip(3)) / 2
        return torch.logit(heat, eps=1e-6), (outputs[1] + mirrored[1].flip(3)) / 2, outputs[2]


@torch.no_grad()
def _write_bilinear(layer: nn.ConvTranspose2d) -> None:
    """Write the 4x4 kernel of bilinear doubling into the pairs of channels (c, 0) of a weight (in, out, 4, 4)."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    layer.weight[:, 0] = torch.outer(line, line)


def _head(channels: int, hidden: int, out: int, name: str) -> nn.Sequential:
    last = nn.Conv2d(hidden, out, kernel_size=1)
    head = nn.Sequential(nn.Conv2d(channels, hidden, kernel_size=3, padding=1), nn.ReLU(inplace=True), last)
    if name == "heat":
        nn.init.constant_(cast(Tensor, last.bias), -2.19)  # a probability of 0.1 at first (Lin et al., focal loss)
        return head
    for layer in (head[0], last):
        nn.init.normal_(cast(nn.Conv2d, layer).weight, std=0.001)
        nn.init.zeros_(cast(Tensor, cast(nn.Conv2d, layer).bias))
    return head
