"""Contrasts of two optimizers over rates and decays: pairing, correction, the best of each, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from evidence.contrasts import MEAN, NOTE, TUNED, Contrast, contrasts, corrected, holm, tabulate, with_scores
from evidence.figures import contrast
from evidence.records.row import ResultRow

PAIRS = [("sgdp", "sgd")]
SCORES = {  # optimizer, decay, rate -> top-1 of seeds 0, 1, 2
    ("sgd", 0.0, 0.1): (80.0, 81.0, 82.0), ("sgdp", 0.0, 0.1): (81.0, 82.2, 83.1),
    ("sgd", 0.0, 0.2): (80.0, 80.0, 81.0), ("sgdp", 0.0, 0.2): (80.5, 80.4, 80.9),
    ("sgd", 0.1, 0.1): (84.0, 84.0, 84.3), ("sgdp", 0.1, 0.1): (82.0, 82.0, 82.1),
}  # fmt: skip


def row(opt: str, decay: float, rate: float, seed: int, top1: float | None, **more: Any) -> ResultRow:
    steps = [0, 200, 400]
    curves = {
        "val/top1": ([200, 400], [1, 2], [(top1 or 0) - (5 if opt == "sgdp" else 0), top1 or 0]),
        "norm/mean": (steps, [0, 1, 2], [1.0, 2.0, 3.0]), "effective_step/mean": (steps[1:], [1, 2], [0.1, 0.01]),
    }  # fmt: skip
    scores = {} if top1 is None else {"val/top1": top1, "val/loss": 1 - top1 / 100}
    values: dict[str, Any] = {
        "experiment": "e", "name": f"{opt}{decay}{rate}{seed}", "opt_name": opt, "lr": rate, "weight_decay": decay,
        "seed": seed, "data": "pictures", "scores": scores, "curves": curves, "steps": 400, "overrides": {},
        "status": "diverged" if top1 is None else "finished", "commit_hash": "abc", "machine": "here",
    }  # fmt: skip
    return ResultRow(**{**values, **more})


@pytest.fixture
def rows() -> list[ResultRow]:
    return [row(*cell, seed, top1) for cell, tops in SCORES.items() for seed, top1 in enumerate(tops)]


def find(found: list[Contrast], decay: str, rate: str) -> Contrast:
    return next(contrast for contrast in found if (contrast.decay, contrast.rate.partition(":")[0]) == (decay, rate))


def test_a_single_contrast_is_the_paired_t_test(rows: list[ResultRow]) -> None:
    single = find(contrasts(rows, PAIRS), "0", "0.1")
    ours, theirs = SCORES["sgdp", 0.0, 0.1], SCORES["sgd", 0.0, 0.1]
    expected = stats.ttest_rel(ours, theirs)
    assert single.p_value("val/top1") == pytest.approx(expected.pvalue)
    diff = single.difference("val/top1")
    assert diff is not None
    assert (diff.low, diff.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (single.ahead("val/top1"), single.ahead("val/loss")) == (3, 3)


def test_the_mean_over_rates_pairs_the_means_of_each_seed(rows: list[ResultRow]) -> None:
    diff = find(contrasts(rows, PAIRS), "0", MEAN).difference("val/top1")
    assert diff is not None
    assert diff.mean == pytest.approx((1.0 + 1.2 + 1.1 + 0.5 + 0.4 - 0.1) / 6)


def test_each_side_has_its_own_best_cell(rows: list[ResultRow]) -> None:
    best = find(contrasts(rows, PAIRS), "0.1 / 0", TUNED)
    assert best.rate.endswith(": 0.1 / 0.1")
    diff = best.difference("val/top1")
    assert diff is not None
    assert diff.mean == pytest.approx((81 - 84 + 82.2 - 84 + 83.1 - 84.3) / 3)


def test_holm_agrees_with_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([]) == []


def test_rates_and_decays_alone_are_corrected(rows: list[ResultRow]) -> None:
    found = contrasts(rows, PAIRS)
    p_values = corrected(found, "val/top1")
    assert len(p_values) == 3
    assert {found[k].is_single for k in p_values} == {True}
    raw = {k: found[k].p_value("val/top1") for k in p_values}
    assert all(p_values[k] >= raw[k] for k in p_values)  # type: ignore[operator]


def test_a_failed_run_and_runs_of_other_settings_are_left_out(rows: list[ResultRow]) -> None:
    others = [row("sgd", 0.0, 0.1, 3, None), row("sgd", 0.0, 0.1, 4, 99.0, overrides={"model.width": "4"})]
    found = contrasts([*rows, *others], PAIRS)
    single = find(found, "0", "0.1")
    assert single.seeds("val/top1") == [0, 1, 2]
    assert single.failed == 1
    text = tabulate(found)
    assert "1 runs failed" in " ".join(text[1])
    assert "Holm" in NOTE


def test_another_score_stands_for_top1(rows: list[ResultRow]) -> None:
    renamed = [replace(row, scores={"val/attacked_accuracy": row.scores["val/top1"]}) for row in rows]
    again = with_scores(renamed, {"val/top1": "val/attacked_accuracy", "val/loss": "val/attacked_loss"})
    assert [row.scores for row in again] == [{"val/top1": row.scores["val/top1"]} for row in rows]


def test_the_figure_marks_where_the_projection_gets_ahead(rows: list[ResultRow], tmp_path: Path) -> None:
    spec = {"pairs": PAIRS, "rate": {"sgdp": 0.1}, "cap": 0.9}
    (drawn,) = contrast.draw(rows, spec, tmp_path, stem="effect", title="The effect")
    text = drawn.svg.with_suffix(".csv").read_text()
    assert "ahead from step" in text
    assert "effective_step/cap" in text
