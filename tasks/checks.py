"""Range checks of options that several tasks share."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.base import InputError


def check_at_least(minimum: float, options: Mapping[str, float]) -> None:
    """Refuse options below a minimum, or NaN.

    Args:
        minimum: The least value allowed.
        options: Name -> value, as the user types them, e.g. `{"train.batch_size": 64}`.

    Raises:
        InputError: A value is below the minimum; the first one is named.
    """
    for option, value in options.items():
        if not value >= minimum:
            raise InputError(f"{option}={value}: must be at least {minimum}")


def check_fractions(options: Mapping[str, float]) -> None:
    """Refuse options outside [0, 1), or NaN.

    Args:
        options: Name -> value.

    Raises:
        InputError: A value is out of the range; the first one is named.
    """
    for option, value in options.items():
        if not 0 <= value < 1:
            raise InputError(f"{option}={value}: must be at least 0 and below 1")
