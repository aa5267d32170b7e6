"""Scores of clips by scikit-learn. B clips, K tags; every score in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

Rows = NDArray[Any]


def tag_scores(targets: Rows, outputs: Rows) -> list[tuple[float, float] | None]:
    """Return (ROC-AUC, PR-AUC) of each tag, None for a tag that all clips or none of them carry.

    PR-AUC is average precision, not the area under the joined points.

    Args:
        targets: (B, K), 1 where a clip carries a tag.
        outputs: (B, K), higher for more likely.
    """
    areas: list[tuple[float, float] | None] = []
    for truth, output in zip(targets.T, outputs.T, strict=True):
        if truth.min() == truth.max():
            areas.append(None)
        else:
            areas.append((100 * roc_auc_score(truth, output), 100 * average_precision_score(truth, output)))
    return areas


def tagging_scores(targets: Rows, outputs: Rows, *, threshold: float | None = None) -> dict[str, float]:
    """Return mean ROC-AUC and PR-AUC over the tags that have clips of both kinds, and F1 scores.

    `skipped_tags` counts the other tags, and is left out where there is none. Without two kinds in any tag the areas
    are left out.

    Args:
        targets: (B, K), 1 where a clip carries a tag.
        outputs: (B, K), probabilities.
        threshold: A clip is given the tags whose probability is greater. `f1` is the mean over clips of each clip's own
            F1, `f1_micro` that of all decisions, `f1_macro` the mean over tags: three different numbers. None: no F1.
    """
    areas = tag_scores(targets, outputs)
    defined = [each for each in areas if each is not None]
    scores: dict[str, float] = {}
    if threshold is not None:
        decided = (outputs > threshold).astype(np.int64)
        for name, average in (("f1", "samples"), ("f1_micro", "micro"), ("f1_macro", "macro")):
            # A clip or tag without any mark, found or true, counts as 0: scikit-learn's rule, without its warning.
            scores[name] = 100 * float(f1_score(targets, decided, average=average, zero_division=0))
    if defined:
        scores["roc_auc"] = float(np.mean([roc for roc, _ in defined]))
        scores["pr_auc"] = float(np.mean([area for _, area in defined]))
    if len(defined) < len(areas):
        scores["skipped_tags"] = float(len(areas) - len(defined))
    return scores


def per_tag_table(classes: Sequence[str], targets: Rows, outputs: Rows, *, threshold: float | None) -> list[list[str]]:
    """Return a table of the tags, most frequent first: name, clips, ROC-AUC, PR-AUC and, with a threshold, F1."""
    rows = [["tag", "clips", "ROC-AUC", "PR-AUC", *(["F1"] if threshold is not None else [])]]
    areas = tag_scores(targets, outputs)
    for k in sorted(range(len(classes)), key=lambda k: (-targets[:, k].sum(), k)):
        area = areas[k]
        row = [classes[k], str(int(targets[:, k].sum())), *(f"{value:.2f}" for value in area or ())]
        row += ["–"] * (4 - len(row))
        if threshold is not None:
            value = f1_score(targets[:, k], outputs[:, k] > threshold, zero_division=0)
            row.append(f"{100 * float(value):.2f}")
        rows.append(row)
    return rows


def per_word_table(classes: Sequence[str], labels: Rows, outputs: Rows) -> list[list[str]]:
    """Return a table of the classes of a single-label set: name, clips, accuracy, and what it is most taken for.

    Args:
        classes: K names.
        labels: (B,), the true classes.
        outputs: (B, K), highest for the class decided on.
    """
    decided = outputs.argmax(1)
    rows = [["class", "clips", "accuracy", "most taken for"]]
    for k, name in enumerate(classes):
        predicted = decided[labels == k]
        wrong = np.bincount(predicted[predicted != k], minlength=len(classes))
        confused_with = classes[int(wrong.argmax())] if wrong.any() else "–"
        share = f"{100 * float((predicted == k).mean()):.2f}" if len(predicted) else "–"
        rows.append([name, str(len(predicted)), share, confused_with])
    return rows
