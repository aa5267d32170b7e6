"""`make findings`: the table is that of the scripts' headers, and a run says which hold. No finding runs here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from evidence.runs.run import ReadError
from scripts import findings
from tests.commands import ROOT

HEADER = """#!/usr/bin/env bash
# Water boils at 90 degrees
#
# Guess: At 100,
#   as everywhere.
# Happens: At 90.
# Matters: Tea.
# Instead: Go down.
# Versions: water 1
# Date: 2026-11-30
# Guard: none needed | here
"""


def write(folder: Path, name: str, body: str) -> Path:
    path = folder / f"{name}.sh"
    path.write_text(HEADER + body)
    return path


def test_the_table_is_that_of_the_headers() -> None:
    page = (ROOT / "findings" / "README.md").read_text()
    scripts = [findings.read(path) for path in sorted((ROOT / "findings").glob("*.sh"))]
    assert len(scripts) >= 15
    assert page == findings.with_table(page, scripts)


def test_every_finding_pins_what_it_installs_and_can_be_started() -> None:
    for path in (ROOT / "findings").glob("*.sh"):
        packages = next(line for line in path.read_text().splitlines() if line.startswith("packages="))
        assert all("==" in word for word in packages.removeprefix("packages=(").rstrip(")").split()), path.name
        assert path.stat().st_mode & 0o100, path.name


def test_every_guard_names_a_file_that_exists() -> None:
    for path in (ROOT / "findings").glob("*.sh"):
        guard = findings.read(path).fields["Guard"]
        named = re.findall(r"\b(?:adamp|docs|launch|tasks|tests)/[\w/.]*\w", guard)
        assert named or guard.startswith("none needed: "), path.name
        assert all((ROOT / name).exists() for name in named), guard


def test_table_writes_the_page_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    write(tmp_path, "boiling", "touch ran\n")
    assert findings.main([f"folder={tmp_path}", "--table"]) == 0
    page = (tmp_path / "README.md").read_text()
    row = "| [boiling](boiling.sh) | Water boils at 90 degrees | water 1 | 2026-11-30 | none needed / here |"
    assert row in page.splitlines()
    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page


def test_a_run_says_which_hold_and_which_have_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "a", "echo seen\n")
    write(tmp_path, "b", "echo 'changed: expected 90, saw 100' >&2\nexit 1\n")
    write(tmp_path, "c", "echo no index >&2\nexit 3\n")
    assert findings.main([f"folder={tmp_path}", "name=a"]) == 0
    assert findings.main([f"folder={tmp_path}"]) == 1
    lines = [line.split(" (")[0] + line.partition(")")[2] for line in capsys.readouterr().out.splitlines()[2:]]
    assert lines[0] == "holds    a: Water boils at 90 degrees"
    assert lines[1] == "changed  b: changed: expected 90, saw 100"
    assert lines[2] == "not run  c: no index"


def test_a_header_without_a_field_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", "")
    with pytest.raises(ReadError, match="name=b is no finding; choose one of a"):
        findings.main([f"folder={tmp_path}", "name=b"])
    (tmp_path / "a.sh").write_text(HEADER.replace("# Matters: Tea.\n", ""))
    with pytest.raises(ReadError, match="it must have Guess, Happens, Matters"):
        findings.main([f"folder={tmp_path}"])
