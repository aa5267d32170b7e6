"""Registers, spills, shared memory and occupancy of the Triton kernels, read from their machine code; needs no GPU.

`python -m benchmarks.gpu_resources [targets=80,90,100] [out=results/gpu]`. Every kernel of a step is compiled ahead of
time for each target, with the arguments of a real step, and `cuobjdump` of the triton package reads the cubin. Spills
are counted there and not in PTX, which does not know registers.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from adamp.kernels import triton_launch
from benchmarks import pages
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.engine.provenance import provenance

OPTIONS = {"targets": "80,90,100", "out": results("gpu")}
KERNELS = ("row_sums", "decide", "radial_sums", "coefficients", "apply_update")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ADAMP = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
SGDP = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-2, "project_buffer": False}
COMMON = {
    "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.2, "nesterov": False, "maximize": False, "scale_invariant": "auto",
    "capturable": False,
}  # fmt: skip
# Of a multiprocessor of compute capability 8.0, 9.0 and 10.0
WARPS, BLOCKS, QUARTER_REGISTERS = 64, 32, 16_384
SHARED_BYTES = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}
RESERVED_BYTES = 1024  # of shared memory, for each block


class Target:
    """Triton's driver as far as a compilation asks it: which GPU to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        """Return the GPU."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Return a number of its own for each GPU: Triton keeps compiled kernels by it."""
        return self.capability

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0


def compile_step(capability: int, dtype: torch.dtype, family: str, **options: Any) -> dict[str, Any]:
    """Compile what a step launches on a GPU.

    Args:
        capability: 10 times the compute capability.
        dtype: Of the weights.
        family: "adamp" or "sgdp".
        **options: Arguments of the step that differ from the defaults here.

    Returns:
        Name -> compiled kernel.
    """
    from triton.runtime.driver import driver

    kernels: dict[str, Any] = {}

    def compile_only(kernel: Any, grid: int, *args: Any, **launch: int) -> None:
        kernels[kernel.__name__] = kernel.warmup(*args, grid=(grid,), **launch)

    w, g, m, v = ([torch.zeros(4, 9000, dtype=dtype)] for _ in range(4))
    before = driver._active
    driver.set_active(Target(capability))
    try:
        with mock.patch.object(triton_launch, "_launch", compile_only):
            if family == "adamp":
                triton_launch.adamp(w, g, m, v, [torch.zeros(())], **{**COMMON, **ADAMP, **options})
            else:
                triton_launch.sgdp(w, g, m, **{**COMMON, **SGDP, **options})
    finally:
        driver._active = before
    return kernels


class Usage(NamedTuple):
    """What a program of a kernel takes.

    Attributes:
        registers: Of a thread.
        stack: Bytes of a thread's local memory.
        spills: Instructions that read or write local memory.
        shared: Bytes of a program's shared memory.
        occupancy: Warps that run on a multiprocessor at once, as a share of those that it has room for.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    occupancy: float


def usage(kernel: Any, capability: int) -> Usage:
    """Read a kernel's usage from its cubin."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None and spec.origin is not None
    dump = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used, sass = (
            subprocess.run([dump, word, file.name], capture_output=True, text=True, check=True).stdout
            for word in ("-res-usage", "-sass")
        )
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", used)}
    registers, shared = numbers["REG"], max(numbers["SHARED"], kernel.metadata.shared)
    warps = kernel.metadata.num_warps
    return Usage(
        registers, numbers["STACK"] + numbers["LOCAL"], len(re.findall(r"\b(?:STL|LDL)\b", sass)), shared,
        occupancy(registers, shared, warps=warps, capability=capability),
    )  # fmt: skip


def occupancy(registers: int, shared: int, *, warps: int, capability: int) -> float:
    """Return the share of a multiprocessor's warps that run at once, for programs of `warps` warps."""
    # Registers are handed out by 256 a warp, in each of the four quarters of a multiprocessor
    warp_registers = -(-max(registers, 1) // 8) * 8 * 32
    by_registers = 4 * (QUARTER_REGISTERS // warp_registers) // warps
    by_shared = SHARED_BYTES[capability] // (shared + RESERVED_BYTES)
    return min(by_registers, by_shared, WARPS // warps, BLOCKS) * warps / WARPS


def all_options(dtype: torch.dtype) -> dict[str, Any]:
    """Return the options of a step that take registers, all at once."""
    options = {
        "nesterov": True, "maximize": True, "lr": torch.tensor(0.1), "grad_scale": torch.ones(1),
        "found_inf": torch.zeros(1),
    }  # fmt: skip
    # What rounding takes is kept in half precision
    return {**options, "compensations": [torch.zeros(4, 9000, dtype=dtype)]} if dtype.itemsize == 2 else options


def measure(targets: Sequence[int], say: Callable[[str], object] = lambda line: None) -> list[dict[str, Any]]:
    """Compile AdamP and SGDP for every target and return their kernels' usage, a record each."""
    records = []
    for capability in targets:
        for dtype in DTYPES:
            for family in ("adamp", "sgdp"):
                kind = str(dtype).removeprefix("torch.")
                say(f"sm_{capability}, {kind}, {family}")
                kernels = compile_step(capability, dtype, family, **all_options(dtype))
                for name in KERNELS:
                    record = {"target": capability, "dtype": kind, "family": family, "kernel": name}
                    records.append({**record, **usage(kernels[name], capability)._asdict()})
    return records


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one row per kernel, target and dtype, each number the worse of both optimizers."""
    lines = [
        "| kernel | target | dtype | registers | spills | local bytes | shared bytes | occupancy |",
        "|---" * 8 + "|",
    ]
    rows = dict.fromkeys((r["kernel"], r["target"], r["dtype"]) for r in records)
    for key in sorted(rows, key=lambda key: KERNELS.index(key[0])):
        chosen = [r for r in records if (r["kernel"], r["target"], r["dtype"]) == key]
        most = [max(r[name] for r in chosen) for name in ("registers", "spills", "stack", "shared")]
        cells = [key[0], f"sm_{key[1]}", key[2], *most, f"{100 * min(r['occupancy'] for r in chosen):.0f} %"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    """Compile, print the table and write it with its provenance; exit code 1 if a kernel spills."""
    options = parse(words, options=OPTIONS)
    targets = options["targets"].split(",")
    if wrong := [word for word in targets if not (word.isdecimal() and int(word) in SHARED_BYTES)]:
        raise ReadError(f"targets={wrong[0]} is not known; choose among {', '.join(map(str, SHARED_BYTES))}")
    import triton

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", {"TRITON_CACHE_DIR": folder}):
        records = measure([int(word) for word in targets], lambda line: print(line, file=sys.stderr, flush=True))
    spilling = [r for r in records if r["stack"] or r["spills"]]
    text = (
        "# What the Triton kernels take of a GPU\n\n"
        f"Compiled ahead of time by triton {triton.__version__} and its ptxas, without a device: "
        f"{len(records)} kernels, of which {len(spilling)} spill. Registers, spills (instructions that touch local "
        "memory) and memory are read from the cubin, and the occupancy follows from them. Each number is the worse of "
        "AdamP and SGDP, with Nesterov, maximize, a rate on the device, GradScaler and in half precision kahan_sum.\n\n"
        f"{table(records)}\n"
        f"{provenance(ROOT)}. Command: `python -m benchmarks.gpu_resources {pages.shown(words)}`\n"
    )
    pages.write(text, {"kernels": records}, options, stem="resources")
    return int(bool(spilling))


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
