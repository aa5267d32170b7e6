"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

# Before anything loads torch: the tests' tensors are tiny, and two threads on a busy core are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from tests.run_folders import write_run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Variables for commands of the suite: one thread, and nothing that the caller's shell says about runs."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ADAMP_", "WANDB_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        env.pop(name, None)
    env |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return env


@pytest.fixture(name="make_run", scope="session")
def _make_run() -> Callable[..., Path]:
    return write_run


@pytest.fixture(name="write_run")
def _write_run() -> Callable[..., Path]:
    return write_run
