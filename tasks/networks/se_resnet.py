"""ResNets with squeeze and excitation, from timm, at any width. Reference: Hu et al., arXiv:1709.01507."""

from __future__ import annotations

from torch import nn

from tasks.networks.checks import check_classes, scaled_blocks, whole_channels


def _se_resnet(layers: tuple[int, ...], num_classes: int, width: float, *, depth: float) -> nn.Module:
    from timm.models.resnet import Bottleneck, ResNet  # seconds to import, and only these runs need it

    stem = whole_channels(width, 64)
    check_classes(num_classes)
    return ResNet(
        Bottleneck,  # type: ignore[arg-type]
        scaled_blocks(layers, depth),
        num_classes=num_classes,
        stem_width=stem,
        channels=(stem, 2 * stem, 4 * stem, 8 * stem),
        zero_init_last=False,  # timm's default starts the last BatchNorm scale of every branch at 0
        block_args={"attn_layer": "se"},
    )


def se_resnet50(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """Return an SE-ResNet50; 28,088,024 parameters for 1,000 classes at width 1. The SE layers have biases, no BN."""
    return _se_resnet((3, 4, 6, 3), num_classes, width, depth=depth)


def se_resnet101(num_classes: int, *, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """Return an SE-ResNet101; 49,326,872 parameters for 1,000 classes at width 1."""
    return _se_resnet((3, 4, 23, 3), num_classes, width, depth=depth)
