"""W&B's offline files: the parts that a stopped and resumed run leaves, appended to one.

Each part counts W&B's own step from 0 and has the same id, so that a part uploaded later would overwrite the earlier.
A file is a header and blocks of checked chunks (LevelDB's log format) that hold W&B's protocol buffers.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7  # bytes: of a block; of the file's header and of a chunk's, which is checksum, length, kind
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4  # kinds of chunk
BEGINS = ("header", "run", "environment", "metric")  # records that the first part alone keeps
ENDS = ("exit", "final", "footer", "files")  # and those that the last one does


def find_parts(folder: Path) -> dict[tuple[Path, str], list[Path]]:
    """Return the offline files below a folder: (wandb folder of a run, id) -> its parts, in order of their starts."""
    parts: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(folder.glob("**/wandb/offline-run-*/run-*.wandb")):
        parts.setdefault((path.parent.parent, path.stem), []).append(path)
    return parts


def read_records(path: Path) -> list[Any]:
    """Return the records of an offline file; what a killed process left half written at its end is left out."""
    from wandb.proto import wandb_internal_pb2

    records = []
    for content in _contents(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        records.append(record)
    return records


def _contents(data: bytes) -> Iterator[bytes]:
    place, content = HEAD, b""
    while place + HEAD <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # a block ends with zeros where no chunk fits
            place += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, place)
        body = data[place + HEAD : place + HEAD + length]
        if len(body) < length or kind == 0 or zlib.crc32(bytes([kind]) + body) != checksum:
            return
        place += HEAD + length
        content = body if kind in (WHOLE, FIRST) else content + body
        if kind in (WHOLE, LAST):
            yield content


def write_records(path: Path, records: Sequence[Any], *, header: bytes) -> None:
    """Write an offline file: its header, of 7 bytes, and the records."""
    data = bytearray(header)
    for record in records:
        content, is_first = record.SerializeToString(), True
        while is_first or content:
            left = BLOCK - len(data) % BLOCK
            if left < HEAD:
                data += bytes(left)
                left = BLOCK
            body, content = content[: left - HEAD], content[left - HEAD :]
            kind = (WHOLE if is_first else LAST) if not content else (FIRST if is_first else MIDDLE)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + body), len(body), kind) + body
            is_first = False
    path.write_bytes(data)


def merge(parts: Sequence[Path]) -> Path:
    """Append the parts of one run, and return the folder of the whole: that of a single part, else one in wandb/merged.

    A line that a resumed run has repeated is taken from the later part. Figures are those of the last part.

    Args:
        parts: As `find_parts` returns them.
    """
    if len(parts) == 1:
        return parts[0].parent
    last = parts[-1].parent
    folder = last.parent / "merged" / last.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(last, folder, ignore=shutil.ignore_patterns("*.wandb", "*.synced"))
    header = parts[0].read_bytes()[:HEAD]
    write_records(folder / parts[0].name, _appended([read_records(part) for part in parts]), header=header)
    return folder


def _appended(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the records of all parts, with W&B's step counted through."""
    records: list[Any] = []
    num_lines = 0
    for number, part in enumerate(parts):
        resumption = _resumption(parts[number + 1 :])
        for record in part:
            kind = record.WhichOneof("record_type")
            if (number > 0 and kind in BEGINS) or (number < len(parts) - 1 and kind in ENDS):
                continue
            if kind == "history":
                if _is_repeated(_line(record.history), resumption):
                    continue
                _renumber(record.history, num_lines)
                num_lines += 1
            record.num = len(records) + 1
            records.append(record)
    return records


def _line(history: Any) -> dict[str, Any]:
    """Return a line's values that the run logged, without W&B's own."""
    named = {item.key or "/".join(item.nested_key): item for item in history.item}
    return {key: item.value_json for key, item in named.items() if not key.startswith("_")}


def _resumption(parts: Sequence[Sequence[Any]]) -> tuple[float, list[Set[str]]]:
    """Return the first step of parts and the names of each of its lines; infinity and none if they have no step."""
    lines = [_line(record.history) for part in parts for record in part if record.HasField("history")]
    steps = [(json.loads(line["step"]), line.keys()) for line in lines if "step" in line]
    first = min((step for step, _ in steps), default=math.inf)
    return first, [names for step, names in steps if step == first]


def _is_repeated(line: dict[str, Any], resumption: tuple[float, list[Set[str]]]) -> bool:
    """Whether later parts repeat a line: they begin before its step, or log the same names at it."""
    first, names = resumption
    if "step" not in line:  # figures, which the end of the run draws anew
        return bool(names)
    step = json.loads(line["step"])
    return bool(step > first or (step == first and line.keys() in names))


def _renumber(history: Any, number: int) -> None:
    history.step.num = number
    for item in history.item:
        if "_step" in (item.key, *item.nested_key):
            item.value_json = str(number)
