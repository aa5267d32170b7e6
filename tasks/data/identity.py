"""A digest of a data set: what tells two sets of equal name and size apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Part = Iterable[object] | NDArray[np.generic] | Tensor


def data_digest(*parts: Part) -> str:
    """Return 16 hex digits of the hash of a set: its file list and labels, or its arrays.

    Args:
        parts: Arrays, or sequences of names (text or bytes) and numbers. Paths must be relative to the set's folder,
            so that a set that is moved stays the same.
    """
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, Tensor | np.ndarray):
            content = np.ascontiguousarray(part).tobytes()
        else:
            content = b"\0".join(item if isinstance(item, bytes) else str(item).encode(errors="surrogateescape")
                                 for item in part)  # fmt: skip
        hashed.update(len(content).to_bytes(8, "little") + content)
    return hashed.hexdigest()
