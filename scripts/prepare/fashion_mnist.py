"""Prepare Fashion-MNIST: the full set in the cache folder, or the part of it that lies in the repository.

Usage:
    python -m scripts.prepare.fashion_mnist              full set into $ADAMP_DATA or ~/.cache/adamp/data
    python -m scripts.prepare.fashion_mnist mode=subset  writes data/fashion_mnist_20k again, byte for byte
    options: cache=DIR  out=DIR  train_per_class=1000  val_per_class=1000
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.base import InputError
from tasks.data.cache import cache_folder
from tasks.data.fashion_mnist import (
    CLASSES,
    EMBEDDED,
    FILES,
    check_split,
    first_of_each_class,
    read_manifest,
    read_split,
)
from tasks.data.idx import decompress, format_idx, parse_idx
from tasks.data.images import Split

# Of the uncompressed files: mirrors compress them differently.
PUBLISHED_SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
NAMES = [file_name for pair in FILES.values() for file_name in pair]
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"
LICENCE = "MIT (Zalando SE)"


class FetchError(Exception):
    """One source did not deliver; the next one is tried."""


@dataclass(frozen=True)
class Fetched:
    """Where a source put the four files, and what it calls itself and its version."""

    folder: Path
    source: str
    version: str


def fetch_installed(_: Path) -> Fetched:
    """Use the files of the Debian package where it is installed."""
    if not DEBIAN_FOLDER.is_dir():
        raise FetchError(f"{DEBIAN_FOLDER} does not exist")
    query = ["dpkg-query", "--show", "--showformat=${Version}", DEBIAN_PACKAGE]
    try:
        version = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout or "unknown"
    except OSError:
        version = "unknown"
    return Fetched(DEBIAN_FOLDER, f"Debian package {DEBIAN_PACKAGE}, installed", version)


def fetch_debian(work: Path) -> Fetched:
    """Download the Debian package and unpack it without installing: needs no root, only package lists."""
    _run(["apt-get", "download", DEBIAN_PACKAGE], work, timeout=600)
    packages = sorted(work.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages:
        raise FetchError("apt-get download left no package")
    _run(["dpkg-deb", "-x", packages[0].name, "unpacked"], work, timeout=120)
    folder = work / "unpacked" / DEBIAN_FOLDER.relative_to("/")
    return Fetched(folder, f"Debian package {DEBIAN_PACKAGE}", packages[0].name.split("_")[1])


def fetch_torchvision(work: Path) -> Fetched:
    """Let torchvision download the files from the host their authors name."""
    import torchvision

    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(60)  # torchvision sets none: a silent host would be waited for without end
    try:
        torchvision.datasets.FashionMNIST(str(work), download=True)
    except (OSError, RuntimeError) as error:
        raise FetchError(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    return Fetched(work / "FashionMNIST" / "raw", "torchvision.datasets.FashionMNIST", torchvision.__version__)


SOURCES: dict[str, Callable[[Path], Fetched]] = {
    "installed Debian package": fetch_installed,
    "apt-get download": fetch_debian,
    "torchvision download": fetch_torchvision,
}


def _run(command: list[str], folder: Path, *, timeout: float) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(f"{' '.join(command)}: exit code {done.returncode}: {last}")


def verify(folder: Path, expected: dict[str, str]) -> None:
    """Raise FetchError unless the folder holds the four files with the uncompressed sha256 given."""
    for file_name in NAMES:
        try:
            digest = hashlib.sha256(decompress(folder / file_name)).hexdigest()
        except InputError as error:
            raise FetchError(str(error)) from error
        if digest != expected[file_name]:
            raise FetchError(f"{file_name}: uncompressed sha256 is {digest[:12]}..., not {expected[file_name][:12]}...")


def fetch(work: Path, sources: dict[str, Callable[[Path], Fetched]], expected: dict[str, str]) -> Fetched:
    """Return the first source that delivers the published files.

    Raises:
        InputError: naming everything that was tried and how it failed.
    """
    failures = []
    for number, (title, source) in enumerate(sources.items()):
        progress(f"trying {title}")
        folder = work / str(number)
        folder.mkdir()
        try:
            fetched = source(folder)
            verify(fetched.folder, expected)
        except FetchError as error:
            progress(f"  no: {error}")
            failures.append(f"{title} ({error})")
        else:
            return fetched
    raise InputError("Fashion-MNIST could not be obtained; tried " + "; ".join(failures))


def describe_files(folder: Path) -> dict[str, Any]:
    """Return the manifest's entry of each file: digests, size as it lies there, number of examples."""
    entries = {}
    for file_name in NAMES:
        path = folder / file_name
        content = decompress(path)
        entries[file_name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "uncompressed_sha256": hashlib.sha256(content).hexdigest(),
            "bytes": path.stat().st_size,
            "count": len(parse_idx(content, str(path))),
        }
    return entries


def write_manifest(folder: Path, *, name: str, source: str, version: str) -> None:
    """Write `manifest.json` for the four files of a folder; it holds no date, so that it is reproducible."""
    manifest = {
        "name": name,
        "source": source,
        "package_version": version,
        "licence": LICENCE,
        "classes": list(CLASSES),
        "files": describe_files(folder),
    }
    text = json.dumps(manifest, indent=2) + "\n"
    (folder / "manifest.json").write_text(text, encoding="utf-8")


def is_prepared(folder: Path) -> bool:
    """Return whether a folder's manifest lists the four files and each is there in its full size."""
    try:
        files = read_manifest(folder)["files"]
        return all((folder / name).stat().st_size == files[name]["bytes"] for name in NAMES)
    except (InputError, OSError, KeyError, TypeError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache folder's lock, so that two preparations at once do the work once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another process prepares data here; waiting")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file frees the lock


def prepare_full(
    cache: Path, *, sources: dict[str, Callable[[Path], Fetched]] = SOURCES, expected: dict[str, str] = PUBLISHED_SHA256
) -> Path:
    """Put the full set into `cache`/fashion_mnist unless it is there, and return that folder.

    It appears there by one rename: a reader never meets a half-written set.

    Args:
        cache: Folder of all prepared sets.
        sources: What to try, in order.
        expected: sha256 of each uncompressed file.

    Raises:
        InputError: if no source delivers the published files.
    """
    target = cache / "fashion_mnist"
    if is_prepared(target):
        progress(f"fashion_mnist is ready in {target}")
        return target
    with locked(cache), tempfile.TemporaryDirectory(prefix=".fashion_mnist-", dir=cache) as temporary:
        if is_prepared(target):  # by the process that held the lock
            return target
        work = Path(temporary)
        fetched = fetch(work, sources, expected)
        built = work / "built"
        built.mkdir()
        for file_name in NAMES:
            shutil.copyfile(fetched.folder / file_name, built / file_name)
        write_manifest(built, name="fashion_mnist", source=fetched.source, version=fetched.version)
        if target.exists():  # damaged: moved out of the way, and deleted with the temporary folder
            target.rename(work / "damaged")
        built.rename(target)
    progress(f"fashion_mnist from {fetched.source} {fetched.version}: sha256 verified, ready in {target}")
    return target


def select_first(labels: NDArray[np.uint8], per_class: int) -> NDArray[np.intp]:
    """Return the positions of the first `per_class` examples of each class, in file order.

    Raises:
        InputError: if a class has fewer.
    """
    fewest = min(int(np.count_nonzero(labels == label)) for label in range(len(CLASSES)))
    if fewest < per_class:
        raise InputError(f"{per_class} examples a class are asked for, but one class has {fewest}")
    return first_of_each_class(labels, per_class)


def prepare_subset(full: Path, out: Path, *, per_class: dict[Split, int]) -> None:
    """Write the first examples of each class of a prepared set to `out`, with a manifest.

    The same pictures give the same bytes (with zlib 1.2.13; another compressor may pack them otherwise).

    Args:
        full: Prepared folder to take from.
        out: Folder to write to.
        per_class: Examples of each class, for each split.

    Raises:
        InputError: if a count is below 1 or above what a class has.
    """
    manifest = read_manifest(full)
    out.mkdir(parents=True, exist_ok=True)
    for split, count in per_class.items():
        if not count >= 1:
            raise InputError(f"{split}_per_class={count}: must be at least 1")
        images, labels = read_split(full, split, manifest)
        chosen = select_first(labels, count)
        check_split(images[chosen], labels[chosen], name=str(full))
        for file_name, array in zip(FILES[split], (images[chosen], labels[chosen]), strict=True):
            (out / file_name).write_bytes(compress(format_idx(array)))
    source = (
        f"first {per_class['train']} training and {per_class['val']} test pictures of each class, "
        f"in file order, from {manifest.get('source')}"
    )
    write_manifest(out, name=out.name, source=source, version=str(manifest.get("package_version")))


def compress(content: bytes) -> bytes:
    """Return a gzip file that depends on its content alone: its header names no time, file or system."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def progress(message: str) -> None:
    """Print one line of progress."""
    print(f"data: {message}", flush=True)


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """Return key=value arguments as a dictionary, or raise InputError naming the one that is not known."""
    options = {"mode": "full", "cache": "", "out": str(EMBEDDED), "train_per_class": "1000", "val_per_class": "1000"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in options:
            raise InputError(f"{argument}: not an option; known are {', '.join(f'{name}=...' for name in options)}")
        options[key] = value
    if options["mode"] not in ("full", "subset"):
        raise InputError(f"mode={options['mode']}: must be full or subset")
    for key in ("train_per_class", "val_per_class"):
        if not re.fullmatch(r"\d+", options[key]):
            raise InputError(f"{key}={options[key]}: must be a whole number")
    return options


def main(arguments: list[str]) -> int:
    """Run the preparation and return the exit code: 0 done, 2 a wrong option or no source."""
    try:
        options = parse_arguments(arguments)
        cache = Path(options["cache"]).expanduser() if options["cache"] else cache_folder()
        full = prepare_full(cache)
        if options["mode"] == "subset":
            per_class: dict[Split, int] = {s: int(options[f"{s}_per_class"]) for s in ("train", "val")}
            prepare_subset(full, Path(options["out"]), per_class=per_class)
            progress(f"subset written to {options['out']}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'cache folder'}: {os.strerror(error.errno or 0)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
