"""The largest effective step that a run without weight decay can keep up, from its schedule and momentum alone."""

from __future__ import annotations

import math
from collections.abc import Iterable


def predicted_cap(
    schedule: Iterable[float], momentum: float = 0.9, *, nesterov: bool = False, adaptive: bool = False
) -> list[float]:
    """Return the effective step `‖Δŵ‖` of a scale-invariant filter at each step once its norm has grown.

    Without weight decay the norm of such a filter grows with every step and shortens the next ones. With `f` the
    schedule and `β` the momentum, SGD's step t turns the filter by at most

        f_t sqrt((1 - β) / (1 + β)) / sqrt(2 (f_1² + ... + f_t²)),

    whatever the learning rate; it is reached when the norm has outgrown the initial one, while the gradient's length
    times the norm stays as it is. A rate that is too low stays below. Updates that are projected, as those of SGDP
    and AdamP, have the cap of momentum 0. The derivation is in docs/theory.md.

    Args:
        schedule: Learning rate of each step, or any multiple of it; at least 0.
        momentum: β of SGD, or β1 of Adam; in [0, 1).
        nesterov: For Nesterov's update, with gradients that are independent from step to step.
        adaptive: For updates of a length that does not depend on the norm, as Adam's: the 2 in the formula becomes 1.

    Returns:
        One value a step, in the unit of `effective_step` of `NormProbe`; 0 while no rate was above 0.

    Raises:
        ValueError: If a rate is negative or not finite, or the momentum out of range.

    Example:
        >>> [round(cap, 3) for cap in predicted_cap([1.0, 1.0, 1.0, 1.0], momentum=0.0)]
        [0.707, 0.5, 0.408, 0.354]
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r} is not valid: it must be in [0, 1)")
    # Length of an update over that of the same gradients' whole movement, which every gradient adds to the norm
    share = math.sqrt((1 - momentum) / (1 + momentum))
    if nesterov:
        share = (1 - momentum) * math.sqrt((1 + momentum) ** 2 + momentum**4 / (1 - momentum**2))
    caps, squares = [], 0.0
    for rate in schedule:
        if not 0 <= rate < math.inf:
            raise ValueError(f"schedule has {rate!r}: a learning rate must be at least 0 and finite")
        squares += rate**2
        caps.append(share * rate / math.sqrt((1 if adaptive else 2) * squares) if squares else 0.0)
    return caps
