"""One fault of every kind that needs no process of its own; `make faults` injects them all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reliability import faults
from tests.reliability.fault_cases import CASES, Case

# Kinds with children that import torch, or whose faults have tests of their own
SLOW = ("comes back", "one of two", "shell", "sweep of 200", "output cannot", "secrets", "data loading process", "git")
BEGUN = {case.kind: case for case in reversed(CASES) if not any(words in case.kind for words in SLOW)}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded", "ignore:This DataLoader will create")
@pytest.mark.parametrize("case", BEGUN.values(), ids=BEGUN)
def test_a_fault_of_each_kind_is_survived(case: Case) -> None:
    outcome = faults.inject(case)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert not outcome.trouble


def test_a_part_keeps_the_figures_of_other_kinds_and_the_page_shows_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case("a kind", "survived", lambda folder: None), Case("another", "lost", lambda folder: 1 / 0)]  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(faults, "all_cases", lambda: cases)
    page, out = tmp_path / "page.md", tmp_path / "faults.json"
    page.write_text("<!-- faults: written by make faults -->\n<!-- end of faults -->\n")
    assert faults.main([f"out={out}", f"page={page}"]) == 1
    assert faults.main(["kinds=a kind", f"out={out}", f"page={page}"]) == 0
    assert "| a kind | 1 | 1 |" in page.read_text() and "| another | 1 | 0 |" in page.read_text()
    facts = json.loads(out.read_text())
    assert (facts["injected"], facts["survived"]) == (2, 1)
    assert facts["not survived"][0][:2] == ["another", "lost"]
