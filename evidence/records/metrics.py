"""Measures over the full curves of a run, which the records keep as numbers since they keep curves thinned."""

from __future__ import annotations

import math
from collections.abc import Callable

from evidence.runs.run import Run


def _detected_share(name: str, key: str, *, as_variant: bool) -> Callable[[Run], float | None]:
    """Percent of tensors and sampled steps that the test classified correctly, over the whole run."""

    def measure(run: Run) -> float | None:
        if name in run.section("measures"):  # a recorded run, whose curve is thinned
            return float(run.section("measures")[name])
        values = [value for value in run.series(key)[2] if math.isfinite(value)]
        mean = sum(values) / len(values) if values else None
        return None if mean is None else 100 * (1 - mean if as_variant else mean)

    return measure


INVARIANT, VARIANT = "scale_invariant_detection", "scale_variant_detection"
MEASURES: dict[str, Callable[[Run], float | None]] = {
    INVARIANT: _detected_share(INVARIANT, "projected/share", as_variant=False),
    VARIANT: _detected_share(VARIANT, "variant/projected/share", as_variant=True),
}
