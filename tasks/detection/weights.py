"""ImageNet weights for backbones, read from a file in torchvision's layout; nothing is ever downloaded."""

from __future__ import annotations

from torch import nn

from tasks.base import InputError
from tasks.weights import read_weights, weights_file

# "Official PyTorch models" (appendix E.3): torchvision's first weights, IMAGENET1K_V1.
FILES = {"resnet18": "resnet18-f37072fd.pth", "vgg16_bn": "vgg16_bn-6c64b313.pth"}
WEIGHTS = {"resnet18": "ResNet18_Weights.IMAGENET1K_V1", "vgg16_bn": "VGG16_BN_Weights.IMAGENET1K_V1"}
INITS = ("random", "imagenet")


def initialise(backbone: nn.Module, name: str, *, init: str, path: str | None, prefix: str = "") -> str:
    """Fill a backbone as asked, and return where its weights come from, in words.

    Args:
        backbone: Has torchvision's names.
        name: A key of FILES.
        init: "random" leaves it as it is, "imagenet" reads a file.
        path: The file; None looks in $ADAMP_DATA, ~/.cache/adamp/data and torch's own cache.
        prefix: What the file's names begin with, before those of the backbone; its other tensors are the classifier's.

    Raises:
        InputError: No file, one that cannot be read, or one of another network.
    """
    if init not in INITS:
        raise InputError(f"model.init={init}: choose one of {', '.join(INITS)}")
    if init == "random":
        return "random weights"
    file = weights_file(FILES[name], path, how=f"download torchvision's {WEIGHTS[name]}")
    state = read_weights(file)
    expected = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in expected if prefix + key not in state]
    if missing:
        raise InputError(f"{file}: holds no {name}; it has no tensor {prefix}{missing[0]}")
    for key, value in expected.items():
        if state[prefix + key].shape != value.shape:
            raise InputError(
                f"{file}: {prefix}{key} has the shape {tuple(state[prefix + key].shape)}, and this network needs "
                f"{tuple(value.shape)}; ImageNet weights fit model.width=1 only"
            )
    backbone.load_state_dict({key: state[prefix + key] for key in expected}, strict=False)
    return f"ImageNet weights {file.name}"
