"""No spoiled file of any reader ends in a traceback or in another result without a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import bad_inputs, sets


@pytest.mark.parametrize("name", sets.LAYOUTS)
def test_every_spoiled_file_is_refused_by_name_or_counted_or_changes_nothing(name: str, tmp_path: Path) -> None:
    found = list(bad_inputs.outcomes(name, tmp_path))
    assert len(found) >= 10
    assert any(outcome.kind in (bad_inputs.REFUSED, bad_inputs.COUNTED) for outcome in found)
    assert not [f"{outcome.kind} {outcome.case}: {outcome.said}" for outcome in found if outcome.bad]
