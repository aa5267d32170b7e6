"""The command line of the reading scripts: `key=value`, as `make` and Hydra have it, and a few `--flags`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evidence.runs.run import ReadError
from launch import checkout
from launch.output import until_closed
from launch.words import did_you_mean


def results(*parts: str) -> str:
    """Return a path in the folder of results, which the environment variable ADAMP_RESULTS moves, as for training."""
    return "/".join([os.environ.get("ADAMP_RESULTS", "results"), *parts])


def parse(argv: Sequence[str], *, options: Mapping[str, str], flags: Sequence[str] = ()) -> dict[str, str]:
    """Return every option's value; a given flag is "true", one not given "".

    Args:
        argv: Words after the command's name.
        options: Name -> default.
        flags: Names of `--flags`.

    Raises:
        ReadError: A word is not `key=value` with a known key, or not a known flag.
    """
    values = {**options, **dict.fromkeys(flags, "")}
    for word in argv:
        key, equals, value = word.partition("=")
        if word.startswith("--") and word[2:] in flags:
            values[word[2:]] = "true"
        elif equals and key in options:
            values[key] = value
        else:
            known = [f"{name}=..." for name in options] + [f"--{name}" for name in flags]
            raise ReadError(
                f"unknown argument {word!r}{did_you_mean(key.lstrip('-'), values)}; known: {', '.join(known)}"
            )
    return values


def split(argv: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return this script's own options and the words that are for the experiment."""
    own = [word for word in argv if word.partition("=")[0] in known]
    others = [word for word in argv if word not in own]
    for word in others:
        if "=" not in word:
            raise ReadError(f"unknown argument {word!r}; known: {', '.join(f'{k}=...' for k in known)}, and options "
                            "of the experiment, such as train.batch_size=64")  # fmt: skip
    return parse(own, options=known), others


def separated(words: Sequence[str], known: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return a command's own options, and what was typed for the runs: overrides, and options of launchers.

    Raises:
        ReadError: A word is not key=value.
    """
    options, typed = dict(known), dict[str, str]()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ReadError(f"unknown argument {word!r}; it must be key=value")
        (options if key in known else typed)[key] = value
    return options, typed


def whole(options: Mapping[str, str], *keys: str) -> list[int]:
    """Return options that must be whole numbers, at least 1."""
    for key in keys:
        if not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(f"{key} is {options[key]!r}; it must be a whole number, at least 1")
    return [int(options[key]) for key in keys]


def parse_as(words: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option's value, each of its default's type.

    Raises:
        ReadError: A word is no option, or not of its type.
    """
    options = dict(defaults)
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults or not value:
            known = ", ".join(defaults)
            raise ReadError(f"{word} is no option{did_you_mean(key, defaults)}; the options are {known}, as key=value")
        try:
            options[key] = type(defaults[key])(value)
        except ValueError:
            raise ReadError(f"{key}={value} is not a {type(defaults[key]).__name__}") from None
    return options


def say(text: str) -> int:
    """Print a text and return the exit code 0."""
    print(text)
    return 0


def command(main: Callable[[Sequence[str]], int], usage: str) -> int:
    """Run a script's `main` on the command line's words; print help or a ReadError as plain text."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    words = sys.argv[1:]
    if any(word in ("-h", "--help", "help") for word in words):
        return until_closed(lambda: say(usage.strip()))
    try:
        checkout.enter()
        return until_closed(lambda: main(words))
    except ReadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
