"""The command line of the reading scripts: `key=value`, as `make` and Hydra have it, and a few `--flags`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from evidence.runs.run import ReadError


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
            raise ReadError(f"unknown argument {word!r}; known: {', '.join(known)}")
    return values


def command(main: Callable[[Sequence[str]], int], usage: str) -> int:
    """Run a script's `main` on the command line's words; print help or a ReadError as plain text."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    words = sys.argv[1:]
    if any(word in ("-h", "--help", "help") for word in words):
        print(usage.strip())
        return 0
    try:
        return main(words)
    except ReadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
