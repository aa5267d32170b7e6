"""Timing of what takes turns, so that the machine's other work falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

SHORTEST = 0.02  # seconds: cheaper acts are repeated, so that the clock's and the call's own cost does not show


def clock(threads: int) -> tuple[str, Callable[[], float]]:
    """Return the name of the time that counts, and what reads it."""
    return ("CPU", time.process_time) if threads == 1 else ("wall", time.perf_counter)


def take_turns(
    acts: Mapping[str, Callable[[], None]], read: Callable[[], float], *, rounds: int
) -> dict[str, list[float]]:
    """Return name -> seconds of each round; short acts are repeated and divided."""
    repeats, seconds = {}, {name: [] for name in acts}  # type: ignore[var-annotated]
    for name, act in acts.items():
        act()  # makes the state
        begun = read()
        act()
        repeats[name] = max(1, round(SHORTEST / max(read() - begun, 1e-6)))
    for number in range(rounds):
        names = list(acts)[number % len(acts) :] + list(acts)[: number % len(acts)]
        for name in names:
            begun = read()
            for _ in range(repeats[name]):
                acts[name]()
            seconds[name].append((read() - begun) / repeats[name])
    return seconds
