"""The paths on which a step is computed, for tests that must hold on each."""

import pytest
import torch

from adamp import kernels

PATHS = {"single": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


@pytest.fixture(params=PATHS)
def path(request):
    """Options that choose a path; skips where this machine cannot build the kernel, with its own reason."""
    return path_options(request.param)


def path_options(name):
    if name == "fused" and (reason := kernels.of(torch.device("cpu")).refusal()):
        pytest.skip(reason)
    return PATHS[name]
