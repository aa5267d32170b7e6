"""Every command of docs/reproduce.md: the target exists, and its words compose to runs or are options of its script."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evidence import sweeps
from launch import compose

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
BLOCKS = [text for kind, text in re.findall(r"^```([a-z]*)\n(.*?)^```", PAGE, re.M | re.S) if not kind]
COMMANDS = [words for block in BLOCKS for line in block.splitlines() if (words := shlex.split(line, comments=True))]
SCRIPTS = {path.stem.replace("_", "-"): path for path in (ROOT / "scripts").glob("*.py")}
OF_MAKE = ("test", "help")  # recipes of the Makefile itself


def compose_first_cell(target: str, words: list[str]) -> None:
    """Compose what a training command runs first."""
    if (ROOT / "configs" / "experiment" / f"{target}.yaml").exists():
        compose.composed([f"experiment={target}", *words])
        return
    typed = dict(word.split("=", 1) for word in words)
    (_, first), *_ = sweeps.cells(target, typed.get("scale", "mini"), typed)
    compose.composed([f"sweep={target}", *(f"{key}={value}" for key, value in first.items())])


def check_words_of_script(target: str, words: list[str]) -> None:
    """Check that a script's text names each key, or that the key is an option of the runs that it plans or starts."""
    usage = SCRIPTS[target].read_text(encoding="utf-8")
    typed = dict(word.split("=", 1) for word in words)
    unknown = [key for key in typed if f"{key}=" not in usage and f'"{key}"' not in usage]
    if unknown:
        name = typed.get("experiment") or typed["sweep"]
        scale = typed.get("scale", "full")
        compose_first_cell(name, [f"scale={scale}", *(f"{key}={typed[key]}" for key in unknown)])


def test_the_page_counts_the_runs_of_the_table() -> None:
    (runs,) = re.findall(r"The (\d+) runs of Table 2", PAGE)
    assert int(runs) == len(sweeps.cells("table-2", "full"))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_of_the_page_composes(command: list[str]) -> None:
    words = [word for word in command if not re.match(r"[A-Z_]+=", word) or word.startswith("GPUS=")]
    program, target, *options = words
    assert program == "make"
    options = [word.replace("GPUS=", "gpus=") for word in options]
    if target in SCRIPTS:
        check_words_of_script(target, options)
    elif target in OF_MAKE:
        assert not options
    else:
        compose_first_cell(target, options)
