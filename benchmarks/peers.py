"""Other implementations of AdamP and SGDP: the published package, timm's, pytorch_optimizer's.

The published package is also called `adamp`, so it cannot be installed beside this one. Its source distribution is
fetched once with pip into a cache (the folder ADAMP_PEERS, or ~/.cache/adamp/peers), verified, and loaded by path.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch.optim import Optimizer

PUBLISHED = "0.3.0"
SHA256 = "f9cf4b1b641624f4e74a9afb2bb71e698c0b821000a74e0eb1c3a8a5a9793f5d"  # of adamp-0.3.0.tar.gz on PyPI
Make = Callable[..., Optimizer]


class PeerError(Exception):
    """A peer is not there: says which and why."""


def cache() -> Path:
    """Return the folder of fetched packages."""
    return Path(os.environ.get("ADAMP_PEERS", "~/.cache/adamp/peers")).expanduser()


def published(*, fetch: bool) -> ModuleType:
    """Return the authors' package as the module `published_adamp`.

    Args:
        fetch: Download it if the cache does not hold it.

    Raises:
        PeerError: It is not in the cache and may not or cannot be fetched, or the file is not the one known.
    """
    name = f"adamp-{PUBLISHED}"
    archive = cache() / f"{name}.tar.gz"
    if not archive.exists() and fetch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            str(cache()),
            f"adamp=={PUBLISHED}",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise PeerError(f"{name} cannot be fetched: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    if not archive.exists():
        raise PeerError(f"{name} is not in {cache()}")
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise PeerError(f"{archive} is not the {name} known here: its sha256 differs; remove it and try again")
    if "published_adamp" not in sys.modules:
        with tarfile.open(archive) as opened:
            opened.extractall(cache(), filter="data")
        folder = cache() / name / "adamp"
        spec = importlib.util.spec_from_file_location(
            "published_adamp", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["published_adamp"] = module
        spec.loader.exec_module(module)
    return sys.modules["published_adamp"]


def installed(package: str, module: str) -> tuple[ModuleType, str]:
    """Return a module of an installed package, and the package's version.

    Raises:
        PeerError: The package is not installed.
    """
    try:
        return importlib.import_module(module), importlib.metadata.version(package)
    except ImportError:
        raise PeerError(f"{package} is not installed") from None


def peers(kind: str, *, fetch: bool) -> tuple[dict[str, Make], list[str]]:
    """Return name and version -> constructor of each peer's "AdamP" or "SGDP", and notes on those not there."""
    found: dict[str, Make] = {}
    notes: list[str] = []
    try:
        found[f"adamp {PUBLISHED}"] = getattr(published(fetch=fetch), kind)
    except PeerError as error:
        notes.append(str(error))
    for package, module in (("timm", "timm.optim"), ("pytorch_optimizer", "pytorch_optimizer")):
        try:
            loaded, version = installed(package, module)
        except PeerError as error:
            notes.append(str(error))
            continue
        make: Make = getattr(loaded, kind)
        found[f"{package} {version}"] = make
    return found, notes
