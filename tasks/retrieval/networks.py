"""The embedding network of the retrieval benchmarks: backbone, pooling, one linear layer, and the proxies of its loss.

Shapes: B pictures, S side in pixels, C channels of the backbone's last map, D features of the embedding, P proxies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from tasks.base import InputError
from tasks.networks import resnet18, resnet50
from tasks.retrieval.weights import load_imagenet

# Channel means and deviations of pixels in 0..255. The ResNets' are torchvision's for ImageNet; EfficientNet-Lite was
# trained on (pixel - 127) / 128.
RESNET_PIXELS = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
LITE_PIXELS = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
BACKBONES = ("resnet18", "resnet50", "efficientnet_lite0")


class ResNetMap(nn.Module):
    """A ResNet up to its last map of features; parameter names are torchvision's, without the classifier."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.channels = net.fc.in_features
        for name, module in net.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pictures (B, 3, S, S) to (B, C, S / 32, S / 32)."""
        for module in self.children():
            x = module(x)
        return x


class LiteMap(nn.Module):
    """EfficientNet-Lite0 up to its last map of features, 1,280 channels; timm's module."""

    channels = 1280

    def __init__(self) -> None:
        super().__init__()
        import timm  # takes a second to import, and only this backbone needs it

        self.net: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pictures (B, 3, S, S) to (B, 1280, S / 32, S / 32)."""
        maps: Tensor = self.net.forward_features(x)
        return maps


class EmbeddingNet(nn.Module):
    """Pictures to embeddings of length 1, together with the proxies that a proxy loss compares them with.

    The last map is pooled by the sum of its average and its maximum, mapped linearly (with bias) and l2-normalised.
    BatchNorm's statistics stay as they are, in training too, when `freeze_statistics` is on.

    Args:
        backbone: "resnet18", "resnet50" or "efficientnet_lite0".
        num_proxies: Proxies P, one a training class; 0 for a loss without proxies.
        width: Factor on a ResNet's channel counts.
        features: D.
        freeze_statistics: Keep BatchNorm in evaluation mode.
        train_bn_affine: Train BatchNorm's scales and biases along with the backbone; else they are constants.
        init: "random", or "imagenet": weights trained on ImageNet from `weights`.
        weights: File with them; None looks where torchvision or `scripts/prepare/efficientnet_lite0.py` put them.

    Raises:
        InputError: An option is out of its range, or the weights are not there.

    Reference:
        AdamP paper, section 4.5 and appendix E.6; initial values after Kim et al., CVPR 2020.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        num_proxies: int,
        *,
        width: float = 1.0,
        features: int = 512,
        freeze_statistics: bool = True,
        train_bn_affine: bool = True,
        init: str = "random",
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise InputError(f"model.backbone={backbone}: choose one of {', '.join(BACKBONES)}")
        if not features >= 1:
            raise InputError(f"model.features={features}: must be at least 1")
        if init not in ("random", "imagenet"):
            raise InputError(f"model.init={init}: choose random or imagenet")
        lite = backbone == "efficientnet_lite0"
        make = {"resnet18": resnet18, "resnet50": resnet50}
        self.backbone: Any = LiteMap() if lite else ResNetMap(make[backbone](1, width=width))
        self.embedding = nn.Linear(self.backbone.channels, features)
        nn.init.kaiming_normal_(self.embedding.weight, mode="fan_out")
        nn.init.zeros_(self.embedding.bias)
        self.proxies = nn.Parameter(torch.empty(num_proxies, features)) if num_proxies else None
        if self.proxies is not None:
            nn.init.kaiming_normal_(self.proxies, mode="fan_out")
        for name, values in zip(("mean", "std"), LITE_PIXELS if lite else RESNET_PIXELS, strict=True):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.freeze_statistics = freeze_statistics
        self.origin = "random initial values"
        if init == "imagenet":
            if not lite and width != 1:
                raise InputError(f"model.init=imagenet: there are no weights of width {width}; set model.width=1")
            self.origin = load_imagenet(self.backbone, backbone, weights)
        if not train_bn_affine:
            _make_constant(self.batch_norms())
        self.train()

    def batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """Return the BatchNorm layers, in order."""
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def train(self, mode: bool = True) -> EmbeddingNet:
        """Switch as any module does, but leave frozen BatchNorm in evaluation mode."""
        super().train(mode)
        if self.freeze_statistics:
            for norm in self.batch_norms():
                norm.eval()
        return self

    def pooled(self, images: Tensor) -> Tensor:
        """Map pictures (B, 3, S, S), pixels 0..255, to pooled features (B, C)."""
        maps = self.backbone((images.to(self.mean.dtype) - self.mean) / self.std)  # (B, C, h, w)
        return pool(maps)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings (B, D) and proxies (P, D), rows of both of length 1; without proxies P is 0."""
        rows = F.normalize(self.embedding(self.pooled(images)).to(self.mean.dtype), dim=1)
        if self.proxies is None:
            return rows, rows.new_empty(0, rows.shape[1])
        return rows, F.normalize(self.proxies, dim=1)

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[Tensor]) -> None:
        """Set BatchNorm's statistics to those of the given pictures, all batches weighing the same.

        Without them the frozen layers of a random network would pass on whatever scale they get.
        """
        norms = self.batch_norms()
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the batches
            norm.train()
        for images in batches:
            self.pooled(images)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.train(self.training)


def pool(maps: Tensor) -> Tensor:
    """Return the average plus the maximum of each channel: (B, C, h, w) -> (B, C)."""
    return maps.mean((2, 3)) + maps.amax((2, 3))


def _make_constant(norms: Iterable[nn.Module]) -> None:
    """Turn scales and biases into buffers under the same names: no phase can then train them."""
    for norm in norms:
        for name in ("weight", "bias"):
            value = getattr(norm, name).detach()
            delattr(norm, name)
            norm.register_buffer(name, value)
