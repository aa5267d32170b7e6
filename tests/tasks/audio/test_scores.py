import numpy as np
import pytest

from tasks.audio.scores import per_tag_table, per_word_table, tag_scores, tagging_scores

TARGETS = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 1]])
OUTPUTS = np.array([[0.9, 0.05, 0.6], [0.2, 0.4, 0.1], [0.15, 0.8, 0.7], [0.3, 0.5, 0.2]])


def by_pairs(truth, output):
    """ROC-AUC as the share of (positive, negative) pairs in the right order, a tie being half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in output[truth == 1] for n in output[truth == 0]]
    return 100 * np.mean(pairs)


def average_precision(truth, output):
    order = np.argsort(-output, kind="stable")
    hits = truth[order].cumsum()
    return 100 * np.mean([hits[i] / (i + 1) for i in range(len(order)) if truth[order][i]])


def test_areas_are_those_counted_by_hand():
    found = tag_scores(TARGETS, OUTPUTS)
    assert found[2] is None  # every clip has it
    for k in (0, 1):
        assert found[k] == pytest.approx(
            (by_pairs(TARGETS[:, k], OUTPUTS[:, k]), average_precision(TARGETS[:, k], OUTPUTS[:, k]))
        )
    ties = tag_scores(np.array([[1], [0], [0]]), np.array([[0.5], [0.5], [0.1]]))
    assert ties[0][0] == pytest.approx(75.0)


def test_a_tag_of_one_kind_is_skipped_and_counted():
    scores = tagging_scores(TARGETS, OUTPUTS)
    defined = [each for each in tag_scores(TARGETS, OUTPUTS) if each]
    assert scores["roc_auc"] == pytest.approx(np.mean([roc for roc, _ in defined]))
    assert scores["pr_auc"] == pytest.approx(np.mean([area for _, area in defined]))
    assert scores["skipped_tags"] == 1
    assert "skipped_tags" not in tagging_scores(TARGETS[:, :2], OUTPUTS[:, :2])
    assert "roc_auc" not in tagging_scores(TARGETS[:, 2:], OUTPUTS[:, 2:])


def test_f1_is_per_clip_and_micro_and_macro_stand_beside_it():
    scores = tagging_scores(TARGETS, OUTPUTS, threshold=0.1)
    decided = OUTPUTS > 0.1  # strictly: clip 1 is not given tag 2

    def f1(truth, found):
        return 2 * (truth * found).sum() / max((truth.sum() + found.sum()), 1)

    assert scores["f1"] == pytest.approx(100 * np.mean([f1(*pair) for pair in zip(TARGETS, decided, strict=True)]))
    assert scores["f1_micro"] == pytest.approx(100 * f1(TARGETS, decided))
    assert scores["f1_macro"] == pytest.approx(
        100 * np.mean([f1(*pair) for pair in zip(TARGETS.T, decided.T, strict=True)])
    )
    assert len({scores["f1"], scores["f1_micro"], scores["f1_macro"]}) == 3


def test_a_clip_with_nothing_true_or_found_counts_as_zero_without_a_warning():
    assert tagging_scores(np.zeros((2, 2), int), np.zeros((2, 2)), threshold=0.1)["f1"] == 0


def test_tables_name_every_tag_and_word():
    rows = per_tag_table(("a", "b", "c"), TARGETS, OUTPUTS, threshold=0.1)
    assert rows[0] == ["tag", "clips", "ROC-AUC", "PR-AUC", "F1"]
    assert [row[0] for row in rows[1:]] == ["c", "a", "b"]
    assert rows[1][1:4] == ["4", "–", "–"]
    words = per_word_table(("yes", "no", "up"), np.array([0, 0, 1]), np.eye(3)[[0, 2, 1]])
    assert words[1:] == [["yes", "2", "50.00", "up"], ["no", "1", "100.00", "–"], ["up", "0", "–", "–"]]
