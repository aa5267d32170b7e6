"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Pictures take a process longer than its training does here; they have tests of their own.
WITHOUT_PICTURES = """
import sys, types
report = types.ModuleType("scripts.report")
report.write_run_report = lambda folder: folder / "report.html"
report.write_experiment_report = lambda *folders: None
sys.modules["scripts.report"] = report
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, str]:
    """Variables for commands of the suite: one thread, and nothing that the caller's shell says about runs."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ADAMP_", "WANDB_"))}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        env.pop(name, None)
    env |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    if sys.dont_write_bytecode:  # then each process would compile torch anew, fifteen seconds
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        assert pytestconfig.cache is not None
        env["PYTHONPYCACHEPREFIX"] = str(pytestconfig.cache.mkdir("bytecode"))
    return env


@pytest.fixture(scope="session")
def quick_environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same, for commands whose pictures no test looks at."""
    folder: Path = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_PICTURES)
    return environment | {"PYTHONPATH": str(folder)}
