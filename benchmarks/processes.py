"""What a command costs as a process of its own."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.checkout import ROOT


def cpu_seconds(words: Sequence[str], *, checkout: Path = ROOT, code: int = 0) -> float:
    """Run Python with these words in a checkout, one thread, and return the CPU seconds of it and its children.

    Raises:
        ReadError: It ended with another exit code.
    """
    begun = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode != code:
        raise ReadError(f"{' '.join(words)} in {checkout} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime - begun.ru_utime - begun.ru_stime
