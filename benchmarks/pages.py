"""What a measurement leaves: a page, and its numbers with options, machine and commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.checkout import ROOT
from tasks.engine.provenance import git_state, hardware


def write(text: str, found: Mapping[str, Any], options: Mapping[str, Any], *, stem: str) -> None:
    """Print the page and write STEM.md and STEM.json into the folder that `options["out"]` names."""
    print(text)
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{stem}.md").write_text(text)
    facts = {**found, "options": options, "hardware": hardware(1), "git": git_state(ROOT)}
    (out / f"{stem}.json").write_text(json.dumps(facts, indent=2) + "\n")
