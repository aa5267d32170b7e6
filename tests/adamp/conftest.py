"""The paths on which a step is computed, for tests that must hold on each."""

import os
from pathlib import Path

import pytest
import torch

from adamp import kernels

PATHS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
# `TRITON_INTERPRET=1 pytest tests/adamp/test_golden.py`: the kernels for a GPU as well, on the CPU and slowly.
INTERPRETED = ["triton"] if os.environ.get("TRITON_INTERPRET") == "1" else []


@pytest.fixture(params=[*PATHS, *INTERPRETED])
def path(request, monkeypatch):
    """Options that choose a path; skips where this machine cannot build the kernel, with its own reason."""
    if request.param == "triton":
        kernel = kernels.kernel_for(torch.device("cuda"))
        if reason := kernel.unavailable_reason():
            pytest.skip(reason)
        monkeypatch.setattr(kernels, "kernel_for", lambda device: kernel)
        return PATHS["fused"]
    return path_options(request.param)


def path_options(name):
    if name == "fused" and (reason := kernels.kernel_for(torch.device("cpu")).unavailable_reason()):
        pytest.skip(reason)
    return PATHS[name]


def pytest_collection_modifyitems(items):
    """Let tests build optimizers of vectors alone, of which the package warns."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.filterwarnings("ignore:.*no parameter of two or more dimensions:UserWarning"))
