"""What a measurement leaves: a page, and its numbers with options, machine and commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.checkout import ROOT
from tasks.engine.provenance import git_state, hardware


def shown(words: Sequence[str]) -> str:
    """Return the words of a command as a page shows them: not where it was written on one machine."""
    return " ".join(word for word in words if not word.startswith("out="))


def write(text: str, found: Mapping[str, Any], options: Mapping[str, Any], *, stem: str) -> None:
    """Print the page and write STEM.md and STEM.json into the folder that `options["out"]` names."""
    print(text)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.md").write_text(text)
    typed = {key: value for key, value in options.items() if key != "out"}
    facts = {**found, "options": typed, "hardware": hardware(1), "git": git_state(ROOT)}
    (out / f"{stem}.json").write_text(json.dumps(facts, indent=2) + "\n")
