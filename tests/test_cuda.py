"""The harness of the tests on a device, without one: warnings of torch's CUDA features are emulated."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests import cuda


def test_the_first_use_of_the_debug_mode_may_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(RuntimeError, match="waits"), cuda.without_synchronisation():
        raise RuntimeError("the host waits")
    assert modes == ["error", "default"]
    with pytest.raises(UserWarning, match="another"), cuda.without_synchronisation():
        warnings.warn("another one", stacklevel=1)


def test_a_debug_mode_that_fails_when_it_is_set_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if mode == "error":
            raise UserWarning("set, and then an error")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(UserWarning, match="and then"), cuda.without_synchronisation():
        pass
    assert modes == ["error", "default"]


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_first_profile_does_not_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr("torch.profiler.profiler._WARNINGS_SHOWN", set())
    assert cuda.kernels_of(lambda: torch.ones(2) + 1) == []


@cuda.may_capture_nothing
def test_the_end_of_an_empty_capture_may_warn() -> None:
    warnings.warn("The CUDA Graph is empty. This usually means that the graph was attempted", stacklevel=1)
