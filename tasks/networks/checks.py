"""Range checks of a network's width, depth and number of classes."""

from __future__ import annotations

import math

from tasks.base import InputError


def check_classes(num_classes: int) -> None:
    """Refuse a network without a class."""
    if not num_classes >= 1:
        raise InputError(f"model.num_classes={num_classes}: must be at least 1")


def whole_channels(width: float, base: int) -> int:
    """Return width x base channels, or raise InputError if that is no whole number."""
    channels = base * width
    if not (channels >= 1 and channels % 1 == 0):  # inf % 1 is NaN
        raise InputError(f"model.width={width}: {base} * width must be a whole number, at least 1")
    return int(channels)


def check_factor(option: str, value: float) -> None:
    """Refuse a factor that is not a positive finite number."""
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"model.{option}={value}: must be positive and finite")


def scaled_blocks(blocks: tuple[int, ...], depth: float) -> tuple[int, ...]:
    """Return each stage's number of blocks times depth, rounded up; depth lies in (0, 1]."""
    if not 0 < depth <= 1:
        raise InputError(f"model.depth={depth}: must be above 0 and at most 1")
    return tuple(math.ceil(count * depth) for count in blocks)
