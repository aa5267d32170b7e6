"""Ways to spoil a file, by its kind: each is a name and a function of its path, the same at every call."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.reliability import sets

Spoil = Callable[[Path], None]
DEEP = "[" * 100_000 + "]" * 100_000  # deeper than the interpreter's stack


def replaced(content: Callable[[bytes], bytes]) -> Spoil:
    """Return a function that writes `content(old)` into a file."""
    return lambda path: _write(path, content(path.read_bytes()))


def _write(path: Path, content: bytes) -> None:
    path.unlink()  # it may be linked from elsewhere
    path.write_bytes(content)


def missing(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    """A terabyte that takes no place."""
    path.unlink()
    with path.open("wb") as file:
        os.truncate(file.fileno(), 2**40)


def noise(content: bytes) -> bytes:
    return random.Random(0).randbytes(max(len(content), 64))


GONE: dict[str, Spoil] = {"missing": missing, "a folder": folder}
BYTES: dict[str, Spoil] = {
    "empty": replaced(lambda old: b""),
    "cut in half": replaced(lambda old: old[: len(old) // 2]),
    "cut by a byte": replaced(lambda old: old[:-1]),
    "zeros": replaced(lambda old: bytes(len(old))),
    "noise": replaced(noise),
    "a link to itself": loop,
    "a page of HTML": replaced(lambda old: b"<html><body>404 Not Found</body></html>"),
}
ENCODINGS: dict[str, Spoil] = {
    "UTF-16": replaced(lambda old: old.decode().encode("utf-16")),
    "with a byte order mark": replaced(lambda old: b"\xef\xbb\xbf" + old),
    "Latin-1": replaced(lambda old: old.rstrip(b"\n") + b" \xe9\n"),
    "with zero bytes": replaced(lambda old: old.rstrip(b"\n") + b"\0\0\0\n"),
    "with Windows line ends": replaced(lambda old: old.replace(b"\n", b"\r\n")),
    "with a line of a megabyte": replaced(lambda old: old + b"a" * 2**20 + b"\n"),
}


def columns(line: str) -> tuple[list[str], str]:
    """Return a line's columns and what separates them."""
    separator = "\t" if "\t" in line else "," if "," in line else None
    return line.split(separator), separator or " "


def rows(path: Path) -> Iterator[tuple[str, Spoil]]:
    """Yield ways to spoil the last line of a table, a column at a time."""
    lines = path.read_text(encoding="utf-8").splitlines()
    last, separator = columns(lines[-1])

    def with_last(cells: list[str]) -> Spoil:
        text = "\n".join([*lines[:-1], separator.join(cells)]) + "\n"
        return replaced(lambda old: text.encode())

    if len(last) > 1:
        yield "a column short", with_last(last[:-1])
        yield "a column more", with_last([*last, "more"])
    yield "the last line twice", replaced(lambda old: old + (lines[-1] + "\n").encode())
    changed = [*last]
    numbers = [i for i, cell in enumerate(last) if cell.strip('"').replace(".", "").isdecimal()][:3]
    for i in numbers:
        for value in ("word", "nan", "-5", "1.5", "9" * 30, "", "²"):
            changed = [*last]
            changed[i] = value
            yield f"column {i} is {value!r}", with_last(changed)
    for i, cell in enumerate(last):
        plain = cell.strip('"')
        if "/" in plain or plain.endswith((".jpg", ".wav", ".mp3")):
            ending = "wav" if plain.endswith((".wav", ".mp3")) else "jpg"
            for what, value in (
                ("a path upwards", "../" * 8 + f"outside.{ending}"),
                ("an absolute path", f"/outside.{ending}"),
                ("a path with a newline in it", plain.replace("/", "/a\nb/")),
                ("a path that is not there", plain + ".none"),
            ):
                changed = [*last]
                changed[i] = value
                yield f"column {i} is {what}", with_last(changed)


VALUES: dict[str, Any] = {
    "null": None, "a text": "x", "-1": -1, "NaN": math.nan, "infinite": math.inf, "a list": [], "an object": {},
    "a boolean": True, "1.5": 1.5, "too large": 10**400,
}  # fmt: skip


def entries(path: Path) -> Iterator[tuple[str, Spoil]]:
    """Yield ways to spoil a JSON file: each key at the top, and each key of the first object in each list there."""
    content = sets.as_json(path)

    def with_change(place: list[Any], value: Any, *, drop: bool = False) -> Spoil:
        changed = json.loads(json.dumps(content))
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        if drop:
            del holder[place[-1]]
        else:
            holder[place[-1]] = value
        text = json.dumps(changed)
        return replaced(lambda old: text.encode())

    places = [[key] for key in content]
    for key, value in content.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            places += [[key, 0, inner] for inner in value[0]]
            yield f"{key} has one twice", with_change([key], [*value, value[-1]])
        if isinstance(value, dict):
            places += [[key, inner] for inner in list(value)[:2]]
    for place in places:
        name = ".".join(map(str, place))
        yield f"without {name}", with_change(place, None, drop=True)
        for what, value in VALUES.items():
            yield f"{name} is {what}", with_change(place, value)
        if place[-1] == "file_name":
            yield f"{name} leads upwards", with_change(place, "../" * 8 + "outside.jpg")
            yield f"{name} is absolute", with_change(place, "/outside.jpg")
    for what, text in (("a number", "3"), ("nested too deeply", DEEP), ("null", "null"), ("NaN", "NaN"), ("text", "x")):
        yield what, replaced(lambda old, text=text: text.encode())


def ways(path: Path, kind: str, *, found: bool) -> Iterator[tuple[str, Spoil]]:
    """Yield every way to spoil a file of a kind.

    Args:
        path: The file, as it should be.
        kind: Of `tests.reliability.sets`.
        found: Whether it is found by looking into its folder, so that its absence is no fault.
    """
    yield from BYTES.items()
    if not found:
        yield from GONE.items()
    if kind == sets.TEXT:
        yield from ENCODINGS.items()
        yield from rows(path)
    if kind == sets.JSON:
        yield from entries(path)
        yield "UTF-16", ENCODINGS["UTF-16"]
    if kind in (sets.JSON, sets.BINARY):
        yield "of a terabyte", huge
