"""What kernels take of a GPU and of the host, measured without a GPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks import gpu_host, gpu_resources
from evidence.runs.run import ReadError


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "capability", "share"),
    [
        (72, 0, 4, 90, 28 / 64),  # 7 warps in each quarter
        (73, 0, 4, 90, 24 / 64),  # registers are handed out by 8
        (80, 0, 8, 90, 24 / 64),
        (128, 0, 4, 80, 16 / 64),
        (16, 0, 1, 80, 32 / 64),  # 32 programs at most
        (32, 40 * 1024, 4, 80, 16 / 64),  # 4 programs of 41 KiB in 164
        (32, 40 * 1024, 4, 100, 20 / 64),
    ],
)
def test_occupancy_is_what_registers_and_shared_memory_leave(
    registers: int, shared: int, warps: int, capability: int, share: float
) -> None:
    assert gpu_resources.occupancy(registers, shared, warps=warps, capability=capability) == share


def test_a_row_of_the_table_is_the_worst_of_all_options() -> None:
    some = {"target": 90, "dtype": "float32", "kernel": "decide", "spills": 0, "stack": 0, "shared": 16}
    records = [{**some, "registers": 40, "occupancy": 0.75}, {**some, "registers": 72, "occupancy": 0.4375}]
    assert "| decide | sm_90 | float32 | 72 | 0 | 0 | 16 | 44 % |\n" in gpu_resources.table(records)


def test_an_unknown_target_is_named() -> None:
    with pytest.raises(ReadError, match="targets=75 is not known; choose among 80, 90, 100"):
        gpu_resources.main(["targets=80,75"])


def test_host_time_is_measured_without_kernels_and_leaves_them_in_place() -> None:
    kernel = torch._fused_adamw_
    found = gpu_host.measure(["tiny"], rounds=1)
    assert [(r["gradients"], r["optimizer"]) for r in found] == [
        (place, name) for place in ("stay", "move") for name in gpu_host.MAKES
    ]
    assert all(r["ms"] > 0 for r in found) and torch._fused_adamw_ is kernel
