"""Words of a command line: flags that do not exist, values with `=` in them, and the nearest right word.

Run as `python -m launch.words WORD KNOWN ...` it says a make target's nearest. It needs Python alone.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

COMMON = ("opt", "train", "task", "data", "model")  # roots of the options that are changed most


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" with the nearest known word, or nothing where none is near.

    Examples:
        >>> did_you_mean("imagenet-resnet81", ["imagenet-resnet18", "imagenet-resnet50"])
        ' (did you mean imagenet-resnet18?)'
    """
    by_lower_case = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[near[0]]}?)" if near else ""


def did_you_mean_option(key: str, known: Iterable[str]) -> str:
    """Return the same for dotted keys: one with the same last part, else with a near last part, else any near key.

    Examples:
        >>> did_you_mean_option("lr", ["train.epochs", "recipe.sgd.lr", "schedule.lr", "opt.lr"])
        ' (did you mean opt.lr?)'
    """
    ordered = sorted(known, key=lambda each: (each.partition(".")[0] not in COMMON, len(each)))
    parent, _, leaf = key.rpartition(".")
    siblings = [each for each in ordered if parent and each.rpartition(".")[0] == parent]
    for candidates in (siblings, ordered):
        leaves = {each.rpartition(".")[2]: each for each in reversed(candidates)}
        if near := difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.65):
            return f" (did you mean {leaves[near[0]]}?)"
    return did_you_mean(key, ordered)


def unknown_flag(words: Sequence[str], known: Collection[str]) -> str:
    """Return what to say of the first word that begins with `-` and is no flag, or nothing.

    Examples:
        >>> unknown_flag(["--opt=adamp"], ["--multirun"])
        '--opt=adamp is no flag; options have no dashes: opt=adamp'
    """
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not name.startswith("-") or name in known:
            continue
        key = name.lstrip("-").replace("-", "_")
        if not equals:
            value = next((after for after in words[place + 1 : place + 2] if "=" not in after), "VALUE")
            word = word if value == "VALUE" else f"{word} {value}"
        return f"{word} is no flag; options have no dashes: {key}={value}"
    return ""


def quoted(words: Iterable[str], readable: Callable[[str], bool]) -> list[str]:
    """Quote the values that cannot be read because they hold `=`, such as a run's name or its folder.

    Args:
        words: Of a command line.
        readable: Whether Hydra can read a word.

    Examples:
        >>> quoted(["tag=sgd,wd=0"], lambda word: '"' in word)
        ['tag="sgd,wd=0"']
    """
    told = []
    for word in words:
        key, _, value = word.partition("=")
        if "=" in value and not re.search("[\"'\\\\]", value) and not readable(word):
            word = f'{key}="{value}"'
        told.append(word)
    return told


if __name__ == "__main__":
    print(f"{sys.argv[1]} is no target of make{did_you_mean(sys.argv[1], sys.argv[2:])}")
