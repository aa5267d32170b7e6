"""Provenance of a measurement: time, commit, versions, hardware, peak memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

import adamp
from tasks.engine.record_schema import GitState, Hardware, Platform

# Instruction sets by which the kernels of torch, oneDNN and MKL are chosen
FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "amx_bf16", "amx_int8", "asimd", "sve",
)  # fmt: skip
# Variables that change kernels or threads; no other variable is recorded, since some hold secrets
VARIABLES = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_SCHEDULE", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE",
    "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip
PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "pillow")


def now() -> str:
    """Return the time in UTC, ISO 8601, seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command_line() -> str:
    """Return the words that started this process, a script of the repository by its path there."""
    script, root = Path(sys.argv[0]).resolve(), Path(__file__).resolve().parents[2]
    name = script.relative_to(root).as_posix() if script.is_relative_to(root) else sys.argv[0]
    return " ".join([name, *sys.argv[1:]])


def git_state(root: Path) -> GitState:
    """Return {"commit", "dirty"} of the checkout whose top folder is `root`, results/ aside; nulls if it is none.

    A repository around it, or one that the environment names, says nothing about this code.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, env=environment
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    # Runs write into results/; that changes no code
    status = git("status", "--porcelain", "--", ":/", ":(top,exclude)results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> dict[str, str]:
    """Return the entries of the first processor in /proc/cpuinfo; nothing where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def numerics_platform() -> Platform:
    """Return what decides the rounding of this process on CPUs: processor, dispatch, threads, variables by name."""
    facts = _processor()
    model = [facts.get("model name") or platform.processor() or platform.machine()]
    model += [f"{key} {facts[key]}" for key in ("cpu family", "model", "stepping") if key in facts]
    flags = {*facts.get("flags", "").split(), *facts.get("Features", "").split()}
    built = (line.strip(" -") for line in torch.__config__.show().splitlines())
    named = ("Intel(R) oneAPI Math", "Intel(R) Math", "Intel(R) MKL", "OpenMP", "LAPACK", "CPU capability")
    return {
        "processor": ", ".join(model), "flags": [flag for flag in FLAGS if flag in flags],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "libraries": [line for line in built if line.startswith(named)],
        "threads": torch.get_num_threads(), "interop_threads": torch.get_num_interop_threads(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }  # fmt: skip


def hardware(processes: int) -> Hardware:
    """Return CPU, usable cores, memory, GPUs and processes of a run, and one short line of it all."""
    cpu = _processor().get("model name") or platform.processor() or platform.machine()
    cores = usable_cores()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{cores} cores {cpu}, " + (f"{len(gpus)} x {gpus[0]}" if gpus else "no GPU")
    return {
        "machine": machine, "cpu": cpu, "cores": cores, "gpus": gpus, "memory_gib": round(memory, 1),
        "processes": processes, "platform": numerics_platform(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect numbers."""
    installed = {"python": platform.python_version(), "adamp": adamp.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    if torch.version.cuda and torch.cuda.is_available():
        installed["cuda"] = torch.version.cuda
    return installed


def provenance(folder: Path) -> str:
    """Return time, commit and machine of a measurement, in one line.

    Args:
        folder: The top folder of the checkout; a + after the commit marks uncommitted changes.
    """
    git = git_state(folder)
    commit = f"{git['commit']}{'+' if git['dirty'] else ''}"
    return f"{now()}, commit {commit}, {hardware(1)['machine']}, torch {versions()['torch']}"


def peak_memory_mib() -> float:
    """Return the peak memory of this process in MiB: the GPU's if it uses one, else the resident set."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    unit = 2**10 if sys.platform != "darwin" else 2**20  # Linux counts KiB, macOS bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
