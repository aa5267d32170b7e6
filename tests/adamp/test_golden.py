"""Stored trajectories, so that no change of the code changes the numbers unnoticed.

`golden.json` was written by the plain loops of `reference.py`: `python -m tests.adamp.test_golden` writes it anew.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP
from tests.adamp import reference
from tests.adamp.conftest import INTERPRETED

PATH = Path(__file__).with_name("golden.json")
SHAPES = {"channel": (2, 3), "layer": (2, 2, 2), "none": (3, 2), "vector": (3,)}
SGDP_OPTIONS = {
    "lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-3, "eps": 1e-8, "delta": 0.1, "wd_ratio": 0.1,
    "nesterov": False,
}  # fmt: skip
ADAMP_OPTIONS = {
    "lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "delta": 0.1, "wd_ratio": 0.1,
    "nesterov": False,
}  # fmt: skip
CASES = {
    "sgdp": (SGDP, reference.sgdp_step, SGDP_OPTIONS),
    "sgdp-nesterov": (SGDP, reference.sgdp_step, {**SGDP_OPTIONS, "nesterov": True}),
    "sgdp-project-buffer": (SGDP, reference.sgdp_step, {**SGDP_OPTIONS, "project_buffer": True}),
    "adamp": (AdamP, reference.adamp_step, ADAMP_OPTIONS),
    "adamp-nesterov": (AdamP, reference.adamp_step, {**ADAMP_OPTIONS, "nesterov": True}),
}


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
@pytest.mark.parametrize("case", CASES)
def test_the_stored_trajectory_is_replayed(case, dtype, share, path):
    """Every weight is where it was, to a share of the way that it has moved since the start."""
    cls, _, options = CASES[case]
    stored = json.loads(PATH.read_text())[case]
    params = [nn.Parameter(torch.tensor(x["start"], dtype=dtype)) for x in stored.values()]
    optimizer = cls(params, **options, **path)
    for step in range(4):
        for p, x in zip(params, stored.values(), strict=True):
            p.grad = torch.tensor(x["grads"][step], dtype=dtype)
        optimizer.step()
        for p, x in zip(params, stored.values(), strict=True):
            start, expected = (torch.tensor(y, dtype=torch.float64) for y in (x["start"], x["weights"][step]))
            bound = share * float((expected - start).abs().max())
            torch.testing.assert_close(p.detach().double(), expected, rtol=0, atol=bound)


@pytest.mark.slow
@pytest.mark.skipif(bool(INTERPRETED), reason="this is the interpreter's run")
def test_the_kernels_for_a_gpu_replay_them_under_tritons_interpreter():
    """In a process of its own: the interpreter must be chosen before triton is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "triton"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PATH.parents[2], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{2 * len(CASES)} passed" in done.stdout


def _write():
    golden = {}
    for case, (_, step_by_hand, options) in CASES.items():
        generator = torch.Generator().manual_seed(0)
        golden[case] = {}
        for kind, shape in SHAPES.items():
            w = torch.randn(shape, generator=generator, dtype=torch.float64)
            record, state = {"start": w.tolist(), "grads": [], "weights": []}, {}
            for _ in range(4):
                g = reference.gradient(w, kind if w.ndim > 1 else "none", generator)
                w = step_by_hand(w, g, state, **options)
                record["grads"].append(g.tolist())
                record["weights"].append(w.tolist())
            golden[case][kind] = record
    PATH.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    _write()
