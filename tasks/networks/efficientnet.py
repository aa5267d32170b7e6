"""EfficientNet-B0 to B3 from timm, at any width. Reference: Tan and Le, arXiv:1905.11946."""

from __future__ import annotations

from torch import nn

from tasks.base import InputError
from tasks.checks import check_fractions
from tasks.networks.checks import check_classes, check_factor

SCALING = {"b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4)}  # (channels, depth)


def efficientnet(
    num_classes: int,
    *,
    variant: str = "b0",
    width: float = 1.0,
    depth: float = 1.0,
    dropout: float = 0.2,
    drop_path: float = 0.2,
) -> nn.Module:
    """Return an EfficientNet.

    Args:
        num_classes: Outputs of the classifier, K.
        variant: "b0" (5,288,548 parameters for 1,000 classes at width 1) to "b3" (12,233,232).
        width: A factor on every channel count, on top of the variant's own; counts are rounded to multiples of 8.
        depth: A factor on the number of blocks, on top of the variant's own; counts are rounded up.
        dropout: Before the classifier, in [0, 1).
        drop_path: Probability of leaving out the deepest residual branch, falling linearly to 0 at the first.
    """
    if variant not in SCALING:
        raise InputError(f"model.variant={variant}: must be one of {', '.join(SCALING)}")
    check_classes(num_classes)
    check_factor("width", width)
    check_factor("depth", depth)
    check_fractions({"model.dropout": dropout, "model.drop_path": drop_path})
    from timm.models.efficientnet import _gen_efficientnet  # seconds to import, and only these runs need it

    channels, blocks = SCALING[variant]
    network: nn.Module = _gen_efficientnet(
        f"efficientnet_{variant}",
        channel_multiplier=channels * width,
        depth_multiplier=blocks * depth,
        num_classes=num_classes,
        drop_rate=dropout,
        drop_path_rate=drop_path,
    )
    return network
