"""Reading a W&B run file back, as `wandb sync` does: blocks of checked chunks that hold protocol buffers."""

from __future__ import annotations

import contextlib
import struct
import time
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


def records(path: Path, *, seconds: float = 60.0) -> list[Any]:
    """Return the records of a run file, once its last one is there: W&B's own process writes it, in its own time."""
    from wandb.proto import wandb_internal_pb2

    until = time.monotonic() + seconds
    while True:
        found = []
        with contextlib.suppress(AssertionError, struct.error):  # half a chunk, as yet
            for chunk in chunks(path):
                record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
                record.ParseFromString(chunk)
                found.append(record)
            if any(record.WhichOneof("record_type") == "exit" for record in found):
                return found
        if time.monotonic() > until:
            raise AssertionError(f"{path}: no whole file after {seconds:g} s, {len(found)} records")
        time.sleep(0.2)
