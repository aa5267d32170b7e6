"""The Triton kernels without a GPU: their results under Triton's interpreter, and that they compile for one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from adamp.kernels import triton_launch as fused
from adamp.kernels.options import Shards
from benchmarks.gpu_resources import KERNELS, compile_step, usage
from tests.adamp.kernel_cases import CASES, LARGE_CASES, SGD

ROOT = Path(__file__).resolve().parents[2]


def interpreted(*words):
    """Every case's error or None. In a process of its own: the interpreter must be chosen before triton is imported."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.adamp.kernel_cases", *words], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes():
    return interpreted()


@pytest.mark.slow  # two minutes
def test_large_cases_under_the_interpreter():
    assert interpreted("large") == dict.fromkeys(LARGE_CASES)


@pytest.mark.parametrize("case", CASES)
def test_under_the_interpreter(case, outcomes):
    assert outcomes[case] is None, outcomes[case]


def test_without_a_device_or_triton_the_kernels_say_why_they_cannot_be_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fused.unavailable_reason() == "there is no CUDA device"
    assert not fused.is_compiled()
    weight = torch.zeros(2, 3)
    assert not fused.supports(weight, weight)
    monkeypatch.setattr("triton.__version__", "3.2.0")
    assert fused.unavailable_reason() == "triton 3.2.0 is installed, the kernels need 3.6 or newer"
    monkeypatch.setattr(fused, "_kernels", lambda: None)
    assert fused.unavailable_reason() == "triton is not installed"


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


# Four neighbouring entries a load, by their bytes; two of float64
VECTOR_LOAD = {2: r"v2\.b32", 4: r"v4\.b32", 8: r"v2\.b64"}


def check(kernels, capability, *, dtype=torch.float32, more=()):
    assert set(kernels) == {*KERNELS, *more}
    for name, kernel in kernels.items():
        ptx = kernel.asm["ptx"]
        assert f".target sm_{capability}" in ptx, name
        assert len(kernel.asm["cubin"]) > 0
        taken = usage(kernel, capability)
        assert (taken.stack, taken.spills) == (0, 0), f"{name} spills registers"
        assert taken.occupancy >= (0.25 if dtype == torch.float64 else 0.43), f"{name}: {taken}"
        assert not re.search(r"\batom\.|\bred\.global", ptx), f"{name} adds in no fixed order"
        arguments = dict(zip(kernel.src.fn.arg_names, kernel.src.signature.values(), strict=True))
        for number in ("lr", "eps", "keep1", "gain1", "log_beta2", "weight_decay"):
            assert arguments.get(number, "fp64") == "fp64", "a Python float must arrive whole"
    for name in ("row_sums", "radial_sums", "apply_update"):
        assert re.search(rf"ld\.global\S*\.{VECTOR_LOAD[dtype.itemsize]}", kernels[name].asm["ptx"]), name


def test_the_kernels_compile_for_a_gpu():
    scaling = {"grad_scale": torch.ones(1), "found_inf": torch.zeros(1)}
    check(compile_step(90, torch.float32, "sgdp", lr=torch.tensor(0.1), **scaling), 90)


@pytest.mark.slow  # 2 to 6 s each on one core
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize(
    ("dtype", "family", "options"),
    [
        (torch.float32, "adamp", {"nesterov": True, "maximize": True}),
        (torch.bfloat16, "adamp", {}),
        (torch.float16, "adamp", {"weight_decay": 0.0}),
        (torch.float64, "adamp", {}),
        (torch.float32, "sgdp", {"project_buffer": True}),
        (torch.bfloat16, "sgdp", {"nesterov": True, "maximize": True}),
        (torch.float16, "sgdp", {"momentum": 0.0}),
        (torch.float64, "sgdp", {}),
    ],
)
def test_the_kernels_compile_with_every_option_and_dtype(capability, dtype, family, options):
    check(compile_step(capability, dtype, family, **options), capability, dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["adamp", "sgdp"])
def test_the_kernels_compile_for_rows_that_processes_share(family):
    shards = Shards([8], lambda totals: None)
    check(compile_step(90, torch.float32, family, shards=shards), 90, more=["add_up_rows"])


@pytest.mark.parametrize(
    ("mark", "columns", "launched"),
    [
        ("auto", 20, ["row_sums", "decide", "radial_sums", "coefficients", "apply_update"]),
        (True, 9000, ["decide", "radial_sums", "coefficients", "apply_update"]),  # several programs share a row
        (True, 20, ["decide", "apply_update"]),
        (False, 20, ["decide", "apply_update"]),
    ],
)
def test_nothing_is_launched_that_a_mark_makes_needless(mark, columns, launched, monkeypatch):
    names = []
    monkeypatch.setattr(fused, "_launch", lambda kernel, grid, *args, **launch: names.append(kernel.__name__))
    w, g, b = (torch.zeros(4, columns) for _ in range(3))
    fused.sgdp([w], [g], [b], **{**SGD, "scale_invariant": mark})
    assert names == launched
