"""MobileNetV2 and ShuffleNetV2 from torchvision: `multiplier` is the published one, `width` makes either smaller."""

from __future__ import annotations

from torchvision.models import MobileNetV2, ShuffleNetV2

from tasks.base import InputError
from tasks.checks import check_fractions
from tasks.networks.checks import check_classes, check_factor, scaled_blocks

# Output channels of stem, three stages and last convolution, as in Ma et al., arXiv:1807.11164, Table 5.
SHUFFLENET_CHANNELS = {0.5: (24, 48, 96, 192, 1024), 1.0: (24, 116, 232, 464, 1024)}
# (expansion, channels, blocks, stride) of each stage, as in Sandler et al., Table 2.
MOBILENET_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def mobilenetv2(
    num_classes: int,
    *,
    multiplier: float = 1.0,
    width: float = 1.0,
    depth: float = 1.0,
    dropout: float = 0.2,
) -> MobileNetV2:
    """Return a MobileNetV2 (Sandler et al., arXiv:1801.04381).

    Channel counts are rounded to multiples of 8, and the 1,280 before the classifier never shrink, as published.

    Args:
        num_classes: Outputs of the classifier, K.
        multiplier: The published width multiplier; 1.0 has 3,504,872 parameters for 1,000 classes, 0.5 has 1,968,680.
        width: A further factor.
        depth: Factor on the number of blocks of each stage, rounded up.
        dropout: Before the classifier, in [0, 1).
    """
    check_classes(num_classes)
    check_factor("multiplier", multiplier)
    check_factor("width", width)
    check_fractions({"model.dropout": dropout})
    blocks = scaled_blocks(tuple(count for _, _, count, _ in MOBILENET_STAGES), depth)
    stages = [[t, c, count, s] for (t, c, _, s), count in zip(MOBILENET_STAGES, blocks, strict=True)]
    return MobileNetV2(num_classes, multiplier * width, inverted_residual_setting=stages, dropout=dropout)


def shufflenetv2(num_classes: int, *, multiplier: float = 1.0, width: float = 1.0, depth: float = 1.0) -> ShuffleNetV2:
    """Return a ShuffleNetV2 (Ma et al., arXiv:1807.11164).

    Args:
        num_classes: Outputs of the classifier, K.
        multiplier: The published size: 1.0 has 2,278,604 parameters for 1,000 classes, 0.5 has 1,366,792.
        width: A factor on every channel count, rounded to even numbers: half of them pass a block untouched.
        depth: Factor on the number of blocks of each stage, rounded up.
    """
    check_classes(num_classes)
    check_factor("width", width)
    if multiplier not in SHUFFLENET_CHANNELS:
        raise InputError(f"model.multiplier={multiplier}: must be one of {', '.join(map(str, SHUFFLENET_CHANNELS))}")
    channels = [2 * max(1, round(count * width / 2)) for count in SHUFFLENET_CHANNELS[multiplier]]
    return ShuffleNetV2(list(scaled_blocks((4, 8, 4), depth)), channels, num_classes=num_classes)
