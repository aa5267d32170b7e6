"""Bounded reading of the user's files and folders, with `InputError` for whatever is wrong with them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from tasks.base import InputError

LARGEST = 2**34  # bytes of a file that is read whole; the largest of a published set, COCO's boxes, has 2**29


def existing_folder(option: str, value: str | None, what: str, *, example: str = "/path") -> Path:
    """Return the folder that an option names.

    Args:
        option: The option, for messages.
        value: What the user gave; "~" is expanded.
        what: What the folder holds, for the message of an option that is not set.
        example: A value for that message.

    Raises:
        InputError: The option is not set, or names no folder.
    """
    if not value:
        raise InputError(f"{option} is not set: give {what}, {option}={example}")
    path = Path(value).expanduser()
    if not path.is_dir():
        raise InputError(f"{option}={value}: {'not a folder' if path.exists() else 'does not exist'}")
    return path


def read_whole(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        OSError: It cannot be read, or is so large that it must be something else.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EFBIG, f"larger than {LARGEST // 2**30} GiB", str(path))
        return file.read()


def read_text(path: Path, *, option: str = "data_root") -> str:
    """Return the content of a UTF-8 text, a byte order mark left out.

    Raises:
        InputError: It cannot be read, is not UTF-8, or holds a zero byte, which no text does.
    """
    try:
        text = read_whole(path).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{option}: {path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{option}: {path}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    if "\0" in text:
        raise InputError(f"{option}: {path}: is no text, it holds a zero byte")
    return text


def parse_json(content: bytes | str, *, constants: bool = False) -> Any:
    """Return what a JSON document says.

    Args:
        content: The document.
        constants: Take NaN and infinities, for a reader that refuses them where it can name the entry.

    Raises:
        ValueError: It is not JSON, holds NaN or an infinity, which JSON has not, or is nested too deeply to be meant.
    """
    try:
        return json.loads(content, parse_constant=None if constants else _refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def is_whole(value: Any, *, low: int = 0, high: int = 2**53) -> bool:
    """Return whether a value from a file is a whole number in a range; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def stays_inside(name: str) -> bool:
    """Return whether a relative path that a list gives stays in the folder it is meant for."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def is_macos_junk(path: str) -> bool:
    """Return whether a file is one of the `._NAME` that macOS adds to archives: its name ends as a picture's does."""
    return PurePosixPath(path).name.startswith("._")


def quoted(text: object) -> str:
    """Return a value from a file for a message: quoted, on one line, and cut where it is long."""
    text_repr = repr(text)
    return text_repr if len(text_repr) <= 80 else f"{text_repr[:77]}..."
