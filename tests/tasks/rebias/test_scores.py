"""Accuracy over cells of class and cluster."""

import numpy as np
import pytest

from tasks.rebias import cell_accuracy

# A digit a picture.
LABELS = [int(c) for c in "1221110121002022112110120021202012012101"]
PREDICTIONS = [int(c) for c in "1021120222012022120110120121202020110211"]
CLUSTERS = (
    [int(c) for c in "1221010221211222201200122210212220211221"],
    [int(c) for c in "0200002100110221210002010201212222112122"],
)


@pytest.mark.parametrize(
    ("min_count", "both", "each"),
    [
        (1, 0.64411376, (0.59007937, 0.69814815)),
        (4, 0.61894841, (0.63511905, 0.60277778)),
        (6, 0.67956349, (0.72023810, 0.63888889)),
    ],
)
def test_cells_of_enough_pictures_count_alike(min_count, both, each):
    assert cell_accuracy(LABELS, PREDICTIONS, CLUSTERS, min_count) == pytest.approx(both, rel=1e-7)
    for clusters, value in zip(CLUSTERS, each, strict=True):
        assert cell_accuracy(LABELS, PREDICTIONS, [clusters], min_count) == pytest.approx(value, rel=1e-7)
    arrays = np.array(LABELS), np.array(PREDICTIONS), np.array(CLUSTERS)
    assert cell_accuracy(*arrays, min_count) == cell_accuracy(LABELS, PREDICTIONS, CLUSTERS, min_count)


def test_cell_accuracy_equals_a_loop_over_all_cells_and_no_order_matters():
    draw = np.random.RandomState(0)
    labels, predictions = draw.randint(0, 9, 500), draw.randint(0, 9, 500)
    clusterings = draw.randint(0, 9, (3, 500))
    means = []
    for clusters in clusterings:
        accuracies = []
        for label in range(9):
            for cluster in range(9):
                inside = (labels == label) & (clusters == cluster)
                if inside.sum() >= 5:
                    accuracies.append((predictions[inside] == label).mean())
        means.append(np.mean(accuracies))
    found = cell_accuracy(labels, predictions, clusterings, 5)
    assert found == pytest.approx(np.mean(means), rel=1e-12)
    order = draw.permutation(500)
    assert cell_accuracy(labels[order], predictions[order], clusterings[:, order], 5) == found


def test_one_cluster_of_one_class_is_plain_accuracy():
    assert cell_accuracy([3, 3, 3, 3], [3, 3, 1, 3], [[0, 0, 0, 0]], 4) == 0.75


def test_what_cannot_be_scored_is_an_error_in_words():
    with pytest.raises(ValueError, match="min_count=41: no cell"):
        cell_accuracy(LABELS, PREDICTIONS, CLUSTERS, 41)
    with pytest.raises(ValueError, match="there must be at least one"):
        cell_accuracy(LABELS, PREDICTIONS, [], 1)
    with pytest.raises(ValueError, match="must be"):
        cell_accuracy(LABELS, PREDICTIONS, [[0, 1]], 1)
    with pytest.raises(ValueError, match="no cell"):
        cell_accuracy([], [], [[]], 1)
