"""The Triton kernels on this process's rows of sharded weights: two processes on the CPU, kernels interpreted."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from adamp import SGDP, AdamP, kernels
from tests.adamp import kernel_cases, reference

OPTIMIZERS = {
    "sgdp": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "adamp": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
}
SHAPES = {
    "channel": (5, 7),
    "layer": (4, 3, 3, 3),
    "none": (6, 5),
    "one row": (1, 8),
    "long": (3, 8200),
    "vector": (9,),
}
# Decisions of the steps for the five matrices; a process without rows decides as it likes
DECISIONS = [[1, 2, 0, 1, 1], [2, 0, 1, 0, 2]]


def run(rank: int, folder: str) -> None:
    """Step sharded weights beside whole ones; process 0 saves how far apart they are."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # the interpreter computes in numpy
    os.environ["USE_LIBUV"] = "0"
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=300))
    kernels._MODULES["cpu"] = "adamp.kernels.triton_launch"
    kernel_cases.patch_the_language_once_a_launch()
    results = {name: stepped(*case) for name, case in CASES.items()}
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.barrier()
    # Gloo's threads still drop the tensors of finished collectives and need the interpreter for it: Python's own end
    # would abort the process now and then
    os._exit(0)


CASES = {
    **{name: (*options, (2,), (Shard(0),), "auto") for name, options in OPTIMIZERS.items()},
    "replicas": (*OPTIMIZERS["sgdp"], (1, 2), (Replicate(), Shard(0)), "auto"),
    "marked": (*OPTIMIZERS["sgdp"], (2,), (Shard(0),), True),
    "within rows": (*OPTIMIZERS["sgdp"], (2,), (Shard(1),), "auto"),
}


def stepped(cls, options, mesh_shape, placements, mode):
    """The largest difference and the decisions of two steps, then the implementations and collectives of the last."""
    mesh = init_device_mesh("cpu", mesh_shape)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES.values()]
    plain, sharded = [nn.Parameter(w.clone()) for w in start], []
    for w in start:
        own = [q if isinstance(q, Replicate) or q.dim < w.ndim else Replicate() for q in placements]
        sharded.append(nn.Parameter(distribute_tensor(w, mesh, own)))

    def groups(params):
        modes = [mode if p.ndim > 1 else False for p in params]
        return [{"params": [p for p, m in zip(params, modes, strict=True) if m is kind], "scale_invariant": kind}
                for kind in dict.fromkeys(modes)]  # fmt: skip

    ours, single = cls(groups(sharded), **options, fused=True), cls(groups(plain), **options, foreach=False)
    apart, decided = [], []
    for step in range(2):
        for i, (p, q) in enumerate(zip(plain, sharded, strict=True)):
            kind = ("none", "channel", "layer")[DECISIONS[step][i]] if p.ndim > 1 else "none"
            p.grad = reference.gradient(p.detach(), kind, generator) if p.ndim > 1 else torch.ones_like(p.detach())
            q.grad = distribute_tensor(p.grad, mesh, q.placements)
        single.step()
        with CommDebugMode() as counted:
            ours.step()
        whole = [q.detach().full_tensor() for q in sharded]
        apart.append(max((a - b).abs().max().item() for a, b in zip(plain, whole, strict=True)))
        with torch.no_grad():  # the tensors that the kernels have seen
            local = [q.to_local() for q in sharded]
        is_stepped = local[0] in kernel_cases._cache
        decided.append(kernel_cases.decisions(local)[: len(DECISIONS[step])] if is_stepped else None)
    parts = [part.implementation for i, group in enumerate(ours.param_groups) for part in ours._parts(i, group)]
    return apart, decided, parts, counted.get_total_counts()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        torch.multiprocessing.spawn(run, args=(str(folder),), nprocs=2)
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_steps_shards_as_whole_weights_are_stepped(results, name):
    apart, _, parts, collectives = results[name]
    assert max(apart) < 1e-10
    # Two all-reduces where gradients decide, none where marks do; what has no whole rows is left to foreach
    expected = {"marked": ({"fused"}, 0), "within rows": ({"foreach", "fused"}, 1)}.get(name, ({"fused"}, 2))
    assert (set(parts), collectives) == expected


@pytest.mark.parametrize("name", ["sgdp", "adamp", "replicas"])
def test_sharded_weights_are_decided_on_as_whole_ones(results, name):
    assert results[name][1] == DECISIONS
