"""Harness of tests on a CUDA device: their first use of a feature warns, and the suite turns warnings into errors."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

# torch warns of both by design, once a process.
PROTOTYPE = "Synchronization debug mode is a prototype"
EMPTY_GRAPH = "The CUDA Graph is empty"
may_capture_nothing = pytest.mark.filterwarnings(f"ignore:{EMPTY_GRAPH}")


@contextlib.contextmanager
def without_synchronisation() -> Iterator[None]:
    """Raise an error where the host waits for the device; the mode is restored however the block ends."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PROTOTYPE)
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def kernels_of(act: Callable[[], object]) -> list[str]:
    """Return the names of the kernels and copies that an action starts on the device."""
    # With accumulated events the profiler does not warn that it clears them.
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        act()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
