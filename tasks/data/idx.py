"""The idx format of the MNIST family: a big-endian header, then bytes; stored gzip-compressed."""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tasks.base import InputError
from tasks.data.files import read_whole


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array of an uncompressed idx file of unsigned bytes.

    Args:
        content: The whole file: two zero bytes, type 8, number of dimensions, each size as 4 bytes, the data.
        name: The file, for messages.

    Raises:
        InputError: if the file does not start so, or holds fewer or more bytes than its header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 3:
        raise InputError(f"{name}: not an idx file of bytes, it starts with {content[:4].hex() or 'nothing'}")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise InputError(f"{name}: truncated, {len(content)} bytes are less than its header of {header}")
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        kind = "truncated" if len(content) - header < expected else "too long"
        raise InputError(f"{name}: {kind}, {len(content) - header} bytes of data where its header says {expected}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def format_idx(array: NDArray[np.uint8]) -> bytes:
    """Return the uncompressed idx file that holds an array of bytes; `parse_idx` reads it back."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()


def decompress(path: Path, *, sha256: str | None = None) -> bytes:
    """Return the content of a gzip file, its compressed bytes checked first.

    Args:
        path: The file.
        sha256: Expected digest of the file as it lies on disk; None does not check.

    Raises:
        InputError: if the file is missing, has another digest, or is not a complete gzip file.
    """
    try:
        compressed = read_whole(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if sha256 is not None and hashlib.sha256(compressed).hexdigest() != sha256:
        raise InputError(f"{path}: sha256 differs from manifest.json; the file is damaged ({len(compressed)} bytes)")
    if not compressed:  # gzip takes nothing for an archive of nothing
        raise InputError(f"{path}: not a complete gzip file (0 bytes)")
    try:
        return gzip.decompress(compressed)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a complete gzip file ({error})") from error
