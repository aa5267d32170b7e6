"""The examples that a launcher starts: FSDP2 in two processes, and DeepSpeed where it is installed."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integrations import examples


def launch(name: str, *words: str, processes: int, **environment: str) -> list[str]:
    """Start the processes of a script as torchrun does, and return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
              "GLOO_SOCKET_IFNAME": "lo", "USE_LIBUV": "0", "PYTHONPATH": str(examples.FOLDER.parent)}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(examples.FOLDER / f"{name}.py"), *words],
            env={**os.environ, **shared, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(said)
    return said


def test_a_resumed_run_under_fsdp2_is_the_undisturbed_one(tmp_path: Path) -> None:
    for said in launch("fsdp2_checkpoint", str(tmp_path), processes=2):
        assert said.splitlines()[-1] == "largest difference 0.0"


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero_leaves_rows_at_stage_0_and_flat_buffers_beyond_are_warned_of() -> None:
    (said,) = launch("deepspeed_zero", processes=1, DS_ACCELERATOR="cpu")
    assert "stage 0: [(16, 8), (16,), (16,), (3, 16), (3,)]" in said
    assert "stage 1: [(212,)]" in said  # 211 and padding
    assert "stage 2: [(212,)]" in said
    assert "AdamP has no parameter of two or more dimensions" in said
