"""The audit of the lock: advisories are lines, and a package that the service does not know is no clean one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evidence.runs.run import ReadError
from scripts import audit

CLEAN = {"name": "a", "version": "1.0", "vulns": []}
FOUND = {"name": "b", "version": "2.0", "vulns": [
    {"id": "CVE-1", "fix_versions": ["2.1"], "aliases": []}, {"id": "CVE-2", "fix_versions": [], "aliases": []},
]}  # fmt: skip
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (3.0)"}


@pytest.mark.parametrize(("packages", "code", "said"), [
    ([CLEAN], 0, ["1 packages, 0 advisories"]),
    ([CLEAN, FOUND], 1, ["b 2.0: CVE-1, mended in 2.1", "b 2.0: CVE-2, not mended yet", "2 packages, 2 advisories"]),
])  # fmt: skip
def test_advisories_are_printed_and_kept_with_their_date(
    packages: list[Any], code: int, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(audit, "ask", lambda lock, service: {"dependencies": packages})
    assert audit.main([f"out={tmp_path}/audit.json"]) == code
    assert capsys.readouterr().out.splitlines() == said
    kept = json.loads((tmp_path / "audit.json").read_text())
    assert kept["date"] and kept["advisories"] == said[:-1] and kept["packages"]["a"] == "1.0"


def test_a_package_that_the_service_does_not_know_is_not_called_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ask", lambda lock, service: {"dependencies": [CLEAN, UNKNOWN]})
    with pytest.raises(ReadError, match="pypi answers for 1 of 2 packages, not for c: nothing is known"):
        audit.main([f"out={tmp_path}/audit.json"])
    assert not (tmp_path / "audit.json").exists()
