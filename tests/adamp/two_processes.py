"""What runs in each of the two processes of `test_dtensor.py`; every function returns what its test compares.

Ordinary tensors stand beside the sharded ones in the same process, so a comparison needs no third run.
"""

from __future__ import annotations

import datetime
import os
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from adamp import SGDP, AdamP, AdaRemS, NormProbe, mark_groups, scale_invariant_parameters
from tests.adamp import reference, sharded_table
from tests.adamp.problems import filter_network

OPTIMIZERS = {
    "sgdp": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "nesterov": True}),
    "sgdp-published": (SGDP, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2, "project_buffer": True}),
    "adamp": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}),
    "adarem-s": (AdaRemS, {"lr": 0.05, "weight_decay": 1e-2, "scale_invariant": True}),
}
ROWS = {"even": (4, 3, 3, 3), "uneven": (5, 7), "one row": (1, 8), "vector": (9,), "one entry": (1,)}
INNER = {"even": (4, 6), "uneven": (3, 5, 2), "one column": (6, 1)}
LAYOUTS = {
    "rows": ((2,), (Shard(0),), ROWS),
    "within rows": ((2,), (Shard(1),), INNER),
    "replicated": ((2,), (Replicate(),), ROWS),
    "rows of two meshes": ((1, 2), (Shard(0), Shard(1)), INNER),
    "rows, then within": ((2, 1), (Shard(0), Shard(1)), INNER),
    "rows and replicas": ((1, 2), (Replicate(), Shard(0)), ROWS),
}


def run(rank: int, folder: str) -> None:
    """Run every scenario; process 0 saves the results."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ["USE_LIBUV"] = "0"
    store = dist.FileStore(str(Path(folder) / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120))
    results: dict[object, object] = {}
    for layout in LAYOUTS:
        for name in OPTIMIZERS:
            results["layout", layout, name] = largest_difference(layout, name)
        results["blocks of columns", layout] = largest_difference(layout, "adamp", mark=("columns", 2))
    results["sync batch norm"] = scale_invariant_parameters(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.SyncBatchNorm(4, process_group=dist.group.WORLD)), torch.randn(3, 2, 5, 5)
    )
    results["sharded model"] = sharded_model()
    results["collectives"] = collectives()
    results["ranks agree"] = ranks_agree()
    if sharded_table.FSDP2_RUNS_HERE:
        results["fsdp2"] = {name: fsdp2(name, Path(folder) / name) for name in ("sgdp", "adamp", "adarem-s")}
    results["zero"] = {name: zero_redundancy(name) for name in ("sgdp", "adamp")}
    results["table"] = {
        (row, column): sharded_table.cell(row, column)
        for row in sharded_table.ROWS
        for column in sharded_table.COLUMNS
        if column != "FSDP2 mixed precision" or sharded_table.FSDP2_RUNS_HERE
    }
    results["terms of a sum"] = sharded_table.errors_of_partial_weights()
    results["ordinary gradients"] = sharded_table.steps_of_ordinary_gradients()
    results["shrink warnings"] = sharded_table.shrink_warnings()
    results["plain state"] = sharded_table.plain_state_dicts()
    results["fsdp1"] = [fsdp1(keep) for keep in (False, True)]
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.destroy_process_group()


def weights(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes.values()]


def gradients(params, seed):
    """One of each kind in turn, so that a batch holds matrices of all three decisions."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [("channel", "layer", "none")[(seed + i) % 3] if p.ndim > 1 else "none" for i, p in enumerate(params)]
    return [reference.gradient(p.detach(), kind, generator) for p, kind in zip(params, kinds, strict=True)]


def pair(layout):
    """Return the same parameters twice: ordinary ones and sharded ones."""
    mesh_shape, placements, shapes = LAYOUTS[layout]
    mesh = init_device_mesh("cpu", mesh_shape)
    plain = [nn.Parameter(w) for w in weights(shapes, 0)]
    kept = [[q if q == Replicate() or q.dim < p.ndim else Replicate() for q in placements] for p in plain]
    sharded = [
        nn.Parameter(distribute_tensor(p.detach().clone(), mesh, own)) for p, own in zip(plain, kept, strict=True)
    ]
    return mesh, plain, sharded


def set_gradients(mesh, plain, sharded, seed):
    for p, q, grad in zip(plain, sharded, gradients(plain, seed), strict=True):
        p.grad = grad
        q.grad = distribute_tensor(grad, mesh, q.placements)


def largest_difference(layout, name, *, mark=None):
    """Return how far sharded weights are from ordinary ones after six steps, and how far those have moved.

    With a mark, of the weights that it fits, and of their norms that probes read; or the error.
    """
    cls, options = OPTIMIZERS[name]
    mesh, plain, sharded = pair(layout)
    if mark is not None:
        fits = [i for i, p in enumerate(plain) if p.ndim > 1 and p.shape[0] % mark[1] == 0]
        plain, sharded = [plain[i] for i in fits], [sharded[i] for i in fits]
        options = {**options, "scale_invariant": mark}
    start = [p.detach().clone() for p in plain]
    single = {} if cls is AdaRemS else {"foreach": False}
    a = cls(plain, **options, **single)
    try:
        b = cls(sharded, **options)
    except ValueError as error:
        return str(error)
    probes = [NormProbe([(str(i), p) for i, p in enumerate(ps) if p.ndim > 1], every=1) for ps in (plain, sharded)]
    for probe, optimizer in zip(probes, (a, b), strict=True):
        probe.attach(optimizer)
    for seed in range(6):
        set_gradients(mesh, plain, sharded, seed)
        a.step()
        b.step()
    apart = max(float((p - q.full_tensor()).detach().abs().max()) for p, q in zip(plain, sharded, strict=True))
    readings = [probe.read(layers=True) for probe in probes]
    norms = [key for key in readings[0] if key.startswith("norm/")]
    apart = max(apart, *(abs(readings[0][key] - readings[1][key]) for key in norms))
    return apart, min(float((p - s).detach().abs().max()) for p, s in zip(plain, start, strict=True))


def collectives():
    """Return the collectives of a step: two groups with rows sharded; the same with weights sharded within rows."""
    mesh, plain, sharded = pair("rows")
    _, more_plain, more = pair("within rows")
    set_gradients(mesh, plain + more_plain, sharded + more, 0)
    counts = []
    for groups in (
        [{"params": sharded[:2]}, {"params": sharded[2:], "weight_decay": 0.0}],
        [{"params": sharded[:2]}, {"params": more, "weight_decay": 0.0}],
        [{"params": sharded, "scale_invariant": False}],
    ):
        optimizer = AdamP(groups, lr=0.1, weight_decay=0.1)
        with CommDebugMode() as mode:
            optimizer.step()
        counts.append(mode.get_total_counts())
    return counts


def ranks_agree():
    """Return whether replicas have the same bits on both processes after steps of float32 weights."""
    mesh = init_device_mesh("cpu", (2,))
    w = torch.randn(64, 33, generator=torch.Generator().manual_seed(0))
    rows = nn.Parameter(distribute_tensor(w, mesh, [Shard(0)]))
    copies = nn.Parameter(distribute_tensor(w.clone(), mesh, [Replicate()]))
    optimizer = SGDP([rows, copies], 0.1, momentum=0.9, weight_decay=1e-2)
    for seed in range(3):
        grad = torch.randn(64, 33, generator=torch.Generator().manual_seed(seed))
        rows.grad = distribute_tensor(grad, mesh, [Shard(0)])
        copies.grad = distribute_tensor(grad, mesh, [Replicate()])
        optimizer.step()
    both = [torch.empty_like(w) for _ in range(2)]
    dist.all_gather(both, copies.detach().to_local())
    return torch.equal(*both)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer.zero_grad()
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()


def fsdp2(name, folder):
    """Return the largest difference to the model in one process; save a checkpoint after three steps."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.fsdp import fully_shard

    cls, options = OPTIMIZERS[name]
    plain, sharded = filter_network(), filter_network()
    fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
    a, b = cls(plain.parameters(), **options), cls(sharded.parameters(), **options)
    train(plain, a, 3)
    train(sharded, b, 3)
    model_state, optimizer_state = get_state_dict(sharded, b)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=str(folder))
    train(plain, a, 3, start=3)
    train(sharded, b, 3, start=3)
    pairs = zip(plain.parameters(), sharded.parameters(), strict=True)
    return max(float((p - q.full_tensor()).detach().abs().max()) for p, q in pairs)


def zero_redundancy(name):
    """Return the largest difference between steps of ZeroRedundancyOptimizer and of the optimizer itself."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    cls, options = OPTIMIZERS[name]
    plain, model = filter_network(), filter_network()
    parallel = DistributedDataParallel(model)
    a = cls(plain.parameters(), **options)
    b = ZeroRedundancyOptimizer(parallel.parameters(), optimizer_class=cls, **options)
    train(plain, a, 4)
    train(parallel, b, 4)
    return max(float((p - q).detach().abs().max()) for p, q in zip(plain.parameters(), model.parameters(), strict=True))


def fsdp1(keep_originals):
    """Return the error of an optimizer over the older wrapper's parameters."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(filter_network(), use_orig_params=keep_originals, device_id=torch.device("cpu"))
    try:
        SGDP(model.parameters(), 0.1)
    except ValueError as error:
        return str(error)
    return ""


def sharded_model():
    """Return the error of the search in a sharded model, and the marks of its groups if found before."""
    from torch.distributed.fsdp import fully_shard

    model, x = filter_network(), torch.randn(6, 2, 4, 4)
    marks = scale_invariant_parameters(model, x)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    groups = mark_groups(model, marks)
    AdamP(groups)
    try:
        scale_invariant_parameters(model, x)
    except ValueError as error:
        return str(error), {group["scale_invariant"]: len(group["params"]) for group in groups}
