"""The metric registry and the look-up of published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from evidence.metrics import METRICS, lower_is_better, metric
from evidence.paper import look_up, read_paper

PAPER = read_paper(Path(__file__).resolve().parents[2] / "results" / "paper.csv")


def test_the_registry_agrees_with_units_and_directions_of_the_published_numbers() -> None:
    for number in PAPER:
        entry = METRICS[number.metric]
        assert entry.unit == number.unit, number
        assert number.better in ("", "lower" if entry.lower_is_better else "higher"), number


@pytest.mark.parametrize(
    ("key", "monitor", "expected"),
    [
        ("val/top1", "", False),
        ("val/attacked_loss", "", True),
        ("test/ppl", "", True),
        ("val/selection", "-val/selection", True),
        ("val/loss", "val/loss", False),
        ("val/loss", "-val/top1", True),
        ("", "", False),
    ],
)
def test_the_task_tells_the_direction_of_what_it_monitors_and_the_registry_of_other_scores(
    key: str, monitor: str, expected: bool
) -> None:
    assert lower_is_better(key, monitor=monitor) is expected


def test_an_unknown_score_has_its_name_and_no_unit() -> None:
    assert (metric("val/colour").name, metric("val/colour").unit) == ("colour", "")


def test_published_numbers_are_found_by_their_fields() -> None:
    found = look_up(PAPER, paper="adamp", table="E.2", optimizer="adamp", setting="linf_eps=4/255")
    assert {number.metric: number.value for number in found} == {
        "clean_accuracy": "89.85", "attacked_accuracy": "66.28",
    }  # fmt: skip
    assert found[0].source == "AdamP Table E.2"
