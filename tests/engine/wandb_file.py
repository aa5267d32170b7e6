"""Reading a W&B run file back, as `wandb sync` does: blocks of checked chunks that hold protocol buffers."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # bytes: of a block; of a chunk's head: checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the records of a run file as bytes; a checksum that is wrong raises."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, record = HEAD, b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # a block ends with zeros where no head fits
            place += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[place : place + HEAD])
        body = data[place + HEAD : place + HEAD + length]
        assert len(body) == length and zlib.crc32(bytes([kind]) + body) & 0xFFFFFFFF == checksum
        place += HEAD + length
        record = body if kind in (WHOLE, FIRST) else record + body
        if kind in (WHOLE, LAST):
            yield record


def records(path: Path) -> list[Any]:
    """Return the records of a run file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for chunk in chunks(path):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.ParseFromString(chunk)
        found.append(record)
    return found
