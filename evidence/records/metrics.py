"""What the tables print beside last scores: norms after the first and last epoch, shares that the test detected."""

from __future__ import annotations

import math
from collections.abc import Callable

from evidence.runs.run import Run


def first_epoch(run: Run) -> float | None:
    """Return the mean filter norm after the first epoch."""
    _, epochs, values = run.series("norm/mean")
    return next((value for epoch, value in zip(epochs, values, strict=True) if epoch >= 1), None)


def score(*keys: str) -> Callable[[Run], float | None]:
    """Return a reader of the first of these scores that a run has."""
    return lambda run: next((run.scores[key] for key in keys if key in run.scores), None)


def _share(name: str, key: str, *, others: bool) -> Callable[[Run], float | None]:
    """Percent of tensors and sampled steps that the test found as they are, over the whole run."""

    def measure(run: Run) -> float | None:
        if name in run.section("measures"):  # a recorded run, whose curve is thinned
            return float(run.section("measures")[name])
        values = [value for value in run.series(key)[2] if math.isfinite(value)]
        mean = sum(values) / len(values) if values else None
        return None if mean is None else 100 * (1 - mean if others else mean)

    return measure


INVARIANT, VARIANT = "scale_invariant_detection", "scale_variant_detection"
# Over whole curves: what records must keep as numbers, since they keep curves thinned.
MEASURES: dict[str, Callable[[Run], float | None]] = {
    INVARIANT: _share(INVARIANT, "projected/share", others=False),
    VARIANT: _share(VARIANT, "variant/projected/share", others=True),
}
# The published numbers' names in paper.csv -> the same of a run. A moving average of the weights comes first.
PUBLISHED: dict[str, Callable[[Run], float | None]] = {
    "top1": score("val_ema/top1", "val/top1"),
    "top5": score("val_ema/top5", "val/top5"),
    "ap": score("val/ap"),
    "ap50": score("val/ap50"),
    "roc_auc": score("test/roc_auc"),
    "weight_norm_first_epoch": first_epoch,
    "weight_norm_last_epoch": lambda run: run.ends("norm/mean")[1],
    **MEASURES,
}
