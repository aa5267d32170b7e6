"""Bias-aware accuracies: over cells of class and texture, of label and colour. Fractions, in [0, 1].

Shapes: N pictures, C clusterings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def cell_accuracy(labels: ArrayLike, predictions: ArrayLike, clusterings: Sequence[ArrayLike], min_count: int) -> float:
    """Return ReBias's unbiased accuracy: cells of class and cluster count alike, whatever their size.

    For each clustering the accuracy of every cell (class, cluster) that holds at least `min_count` pictures, and
    their plain mean; then the mean over the clusterings.

    Args:
        labels: (N,) classes.
        predictions: (N,) predicted classes.
        clusterings: C times (N,) cluster numbers.
        min_count: Smallest cell that counts; ReBias takes 10.

    Returns:
        A fraction from 0 to 1.

    Raises:
        ValueError: if lengths differ, there is no clustering, or one has no cell of that size.
    """
    if len(clusterings) == 0:
        raise ValueError("clusterings: there must be at least one")
    means = [np.mean(cells(labels, predictions, clustering, min_count)) for clustering in clusterings]
    return math.fsum(means) / len(means)


def cells(labels: ArrayLike, predictions: ArrayLike, clusters: ArrayLike, min_count: int) -> NDArray[np.float64]:
    """Return the accuracy of each cell (class, cluster) of at least `min_count` pictures, by class, then cluster.

    Raises:
        ValueError: if lengths differ, or there is no such cell.
    """
    label, prediction, cluster = (np.asarray(array) for array in (labels, predictions, clusters))
    if not label.shape == prediction.shape == cluster.shape or label.ndim != 1:
        raise ValueError(
            f"labels {label.shape}, predictions {prediction.shape} and clusters {cluster.shape}: must be (N,), alike"
        )
    _, cell, counts = np.unique(np.stack([label, cluster]), axis=1, return_inverse=True, return_counts=True)
    hits = np.bincount(cell.reshape(-1), weights=label == prediction, minlength=len(counts))
    large = counts >= min_count
    if not large.any():
        raise ValueError(f"min_count={min_count}: no cell of class and cluster holds so many pictures")
    return hits[large] / counts[large]
