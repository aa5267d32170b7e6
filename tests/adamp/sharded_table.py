"""The table of sharded training, computed in each of the two processes of `test_dtensor.py`.

A row is an optimizer with its hooks, a column a way to distribute weights. Each cell trains the same weights whole and
sharded, with the same gradients, and compares weights, saved states, probes, and runs that go on from a checkpoint of
more or fewer processes.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from adamp import SGDP, AdamP, AdaRem, AdaRemS, NormProbe, project_updates, shrink_weights
from tests.adamp import reference
from tests.adamp.problems import filter_network

WHOLE_STATE = StateDictOptions(full_state_dict=True)
FSDP2_RUNS_HERE = hasattr(torch.cpu.Stream, "record_event")  # not on the CPU with torch 2.6


def shrink(optimizer, **options):
    matrices = [p for group in optimizer.param_groups for p in group["params"] if p.ndim > 1]
    return shrink_weights(optimizer, params=matrices, alpha=0.5, **options)


SGDP_OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}
ADAREM_OPTIONS = {"lr": 0.05, "weight_decay": 1e-2}
ON_SPHERES = {**ADAREM_OPTIONS, "scale_invariant": True}
SGD_OPTIONS = {"lr": 0.05, "momentum": 0.9}
ADAMW_OPTIONS = {"lr": 0.05, "weight_decay": 0.1}
# Class and options of the optimizer, what attaches hooks, and the mark of every weight, if any
ROWS = {
    "SGDP": (SGDP, {**SGDP_OPTIONS, "nesterov": True}, None),
    "SGDP, project_buffer": (SGDP, {**SGDP_OPTIONS, "project_buffer": True}, None),
    "AdamP": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}, None),
    "AdamP by columns": (AdamP, {"lr": 1e-2, "weight_decay": 0.1}, None, "columns"),
    "SGDP by tensors": (SGDP, SGDP_OPTIONS, None, "tensor"),
    "AdaRem": (AdaRem, ADAREM_OPTIONS, None),
    "AdaRem, global": (AdaRem, {**ADAREM_OPTIONS, "scope": "global"}, None),
    "AdaRemS": (AdaRemS, {**ON_SPHERES, "radius": 2.0}, None),
    "AdaRemS, global": (AdaRemS, {**ON_SPHERES, "sphere": "global"}, None),
    "project_updates": (torch.optim.AdamW, ADAMW_OPTIONS, project_updates),
    "project_updates by columns": (torch.optim.AdamW, ADAMW_OPTIONS, project_updates, "columns"),
    "shrink_weights by columns": (torch.optim.SGD, SGD_OPTIONS, partial(shrink, kind="wn"), "columns"),
    "shrink_weights by tensors": (torch.optim.SGD, SGD_OPTIONS, partial(shrink, kind="ws"), "tensor"),
    "shrink_weights, gradient": (torch.optim.SGD, SGD_OPTIONS, partial(shrink, kind="wn")),
    "shrink_weights, weights": (torch.optim.AdamW, ADAMW_OPTIONS, partial(shrink, kind="ws", coupling="weights")),
}


@cache
def mesh(*shape):
    return init_device_mesh("cpu", shape)


class Parameters:
    """A column of DTensors."""

    def __init__(self, placements, *shapes, mesh_shape=(2,)):
        self._placements, self._shapes, self._mesh_shape = placements, shapes, mesh_shape

    def whole(self):
        generator = torch.Generator().manual_seed(99)  # not the seed of a gradient
        weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in self._shapes]
        return nn.ParameterList([nn.Parameter(w) for w in weights])

    def sharded(self, whole):
        return nn.ParameterList([nn.Parameter(self._distribute(p.detach().clone())) for p in whole])

    def optimizer(self, cls, model, options):
        return cls(model.parameters(), **options)

    def set_gradients(self, whole, sharded, seed):
        """One of each kind in turn, so that all three decisions occur."""
        generator = torch.Generator().manual_seed(seed)
        for i, (p, q) in enumerate(zip(whole, sharded, strict=True)):
            kind = ("channel", "layer", "none")[(seed + i) % 3] if p.ndim > 1 else "none"
            p.grad = reference.gradient(p.detach(), kind, generator)
            q.grad = self._distribute(p.grad)

    def state_dict(self, model, optimizer):
        return get_optimizer_state_dict(model, optimizer, options=WHOLE_STATE)

    def load_state_dict(self, model, optimizer, state):
        set_optimizer_state_dict(model, optimizer, state, options=WHOLE_STATE)

    def _distribute(self, x):
        placements = [q if q == Replicate() or q.dim < x.ndim else Replicate() for q in self._placements]
        return distribute_tensor(x, mesh(*self._mesh_shape), placements)


class FSDP2(Parameters):
    """A column of `fully_shard`: float64 weights, whose gradients are computed and reduced in float32."""

    def __init__(self):
        pass

    def whole(self):
        return filter_network()

    def sharded(self, whole):
        model = filter_network()
        policy = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=torch.float32)
        fully_shard(model, mesh=mesh(2), mp_policy=policy)
        set_model_state_dict(model, whole.state_dict(), options=WHOLE_STATE)
        return model

    def set_gradients(self, whole, sharded, seed):
        """The sharded model's, also for the whole one."""
        sharded.zero_grad()
        x = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        sharded(x).square().mean().backward()
        for p, q in zip(whole.parameters(), sharded.parameters(), strict=True):
            p.grad = full(q.grad)


class ZeRO(FSDP2):
    """A column of ZeroRedundancyOptimizer, over a model in DistributedDataParallel."""

    def sharded(self, whole):
        model = filter_network()
        model.load_state_dict(whole.state_dict())
        return DistributedDataParallel(model)

    def optimizer(self, cls, model, options):
        if isinstance(model, DistributedDataParallel):
            from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when imported

            return ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, **options)
        return cls(model.parameters(), **options)

    def state_dict(self, model, optimizer):
        if not isinstance(model, DistributedDataParallel):
            return optimizer.state_dict()
        optimizer.consolidate_state_dict(to=0)
        state = [optimizer.state_dict() if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(state, src=0)
        return state[0]

    def load_state_dict(self, model, optimizer, state):
        optimizer.load_state_dict(state)


INNER = [(4, 6), (3, 5, 2), (6, 3), (5,)]
COLUMNS = {
    "replicated": Parameters([Replicate()], (4, 3, 2), (5, 7), (6,)),
    "Shard(0) even": Parameters([Shard(0)], (4, 3, 2), (6, 5), (6,)),
    "Shard(0) uneven": Parameters([Shard(0)], (5, 3, 2), (7, 4), (9,)),
    "Shard(0) empty": Parameters([Shard(0)], (1, 8), (1, 4, 2), (1,)),
    "Shard(1)": Parameters([Shard(1)], *INNER, (6, 1, 2)),
    "2-D mesh (within rows)": Parameters([Shard(0), Shard(1)], *INNER, mesh_shape=(1, 2)),
    "2-D mesh (rows)": Parameters([Shard(0), Shard(1)], *INNER, (1, 6), mesh_shape=(2, 1)),
    "2-D mesh (replicas)": Parameters([Replicate(), Shard(0)], *INNER, (1, 6), mesh_shape=(1, 2)),
    "FSDP2 mixed precision": FSDP2(),
    "ZeRO": ZeRO(),
}


class Run:
    """A model, its optimizer with hooks, and a probe of it."""

    def __init__(self, row, column, model, state=None):
        cls, options, attach, *mark = ROWS[row]
        self.column, self.model = column, model
        self.optimizer = column.optimizer(cls, model, options)
        for group in self.optimizer.param_groups:  # vectors of a marked group are left alone
            if mark:
                group["scale_invariant"] = mark[0]
        named = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
        self.probe = NormProbe(named, every=2, oscillation_window=2)
        if state is not None:
            column.load_state_dict(model, self.optimizer, state["optimizer"])
            self.probe.load_state_dict(state["probe"])
        if attach:
            attach(self.optimizer)
        self.probe.attach(self.optimizer)

    @property
    def weights(self):
        return [full(p) for p in self.model.parameters()]

    def state(self):
        optimizer = self.column.state_dict(self.model, self.optimizer)
        return copy.deepcopy({"optimizer": optimizer, "probe": self.probe.state_dict()})


def cell(row, column_name):
    """Return the largest difference of each stage, and how far the weights moved; or an error and how far they moved.

    Three steps leave an oscillation window open, so that the saved states hold one.
    """
    column = COLUMNS[column_name]
    start = column.whole()
    model = column.sharded(start)
    try:
        sharded = Run(row, column, model)
    except (ValueError, RuntimeError) as error:
        return {"refused": str(error), "moved": apart(list(start.parameters()), list(model.parameters()))}
    whole = Run(row, column, copy.deepcopy(start))
    train(whole, sharded, range(3))
    results = {"step": apart(whole.weights, sharded.weights), "moved": apart(whole.weights, list(start.parameters()))}

    whole_state, sharded_state = whole.state(), sharded.state()
    results["save"] = apart(whole_state, sharded_state)

    one = Run(row, column, copy.deepcopy(whole.model), sharded_state)
    two = Run(row, column, column.sharded(whole.model), whole_state)
    train(whole, two, range(3, 6), also=one)
    results["load 2->1"], results["load 1->2"] = apart(whole.weights, one.weights), apart(whole.weights, two.weights)

    readings = [run.probe.read(layers=True) for run in (whole, one, two)]
    results["probe"] = max(apart(readings[0], readings[1]), apart(readings[0], readings[2]))
    return results


def train(whole, sharded, seeds, also=None):
    for seed in seeds:
        whole.column.set_gradients(whole.model, sharded.model, seed)
        for run in (whole, sharded, *([also] if also else [])):
            if run is also:
                for p, q in zip(whole.model.parameters(), also.model.parameters(), strict=True):
                    q.grad = p.grad.clone()
            run.optimizer.step()


def full(x):
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def apart(a, b):
    """Return the largest difference of nested numbers, relative above 1; infinite where structures differ."""
    if isinstance(a, dict):
        return max([apart(x, b[key]) for key, x in a.items()], default=0.0) if a.keys() == b.keys() else torch.inf
    if isinstance(a, list | tuple):
        return max([apart(x, y) for x, y in zip(a, b, strict=True)], default=0.0)
    if isinstance(a, torch.Tensor):
        a, b = full(a), full(b)
        return float(((a - b).abs() / a.abs().clamp(min=1)).max())
    if isinstance(a, float):
        return abs(a - b) / max(abs(a), 1)
    return 0.0 if a == b else torch.inf


def errors_of_partial_weights():
    """Return the error of each optimizer, hook and probe over weights that are terms of a sum."""
    weight = nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh(2), [Partial()]))
    optimizer = torch.optim.SGD([weight], 0.1)
    builders = {
        "optimizers": lambda: AdamP([weight]),
        "AdaRem": lambda: AdaRemS([weight], 0.1),
        "project_updates": lambda: project_updates(optimizer),
        "shrink_weights": lambda: shrink(optimizer),
        "NormProbe": lambda: NormProbe([("weight", weight)]),
    }
    errors = {}
    for name, build in builders.items():
        try:
            build()
            errors[name] = ""
        except RuntimeError as error:
            errors[name] = str(error)
    return errors


def steps_of_ordinary_gradients():
    """Return the error of a step whose gradient is no DTensor, and whether its weights and the others stayed."""
    results = {}
    for row in ("SGDP", "AdamP", "AdaRemS", "project_updates", "shrink_weights, gradient"):
        cls, options, attach = ROWS[row]
        params = [nn.Parameter(distribute_tensor(torch.ones(4, n), mesh(2), [Shard(0)])) for n in (2, 3)]
        params[0].grad, params[1].grad = torch.ones_like(params[0]), torch.ones(4, 3)
        optimizer = cls(params, **options)
        if attach:
            attach(optimizer)
        try:
            optimizer.step()
        except RuntimeError as error:
            results[row] = str(error), all(bool((full(p) == 1).all()) for p in params)
    return results


def shrink_warnings():
    """Return what `shrink_weights` says of a filter that only one process has, or has a part of."""
    w = torch.tensor([[1.0, 2.0, 1.0], [0.5, 0.25, 1.0], [300.0, 0.0, 100.0]])
    messages = []
    for x in (w, *(distribute_tensor(w, mesh(2), [placement]) for placement in (Shard(0), Shard(1), Replicate()))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            shrink(torch.optim.SGD([nn.Parameter(x)], 0.1), kind="ws", clamp=None)
        messages.append([str(warning.message) for warning in caught])
    return messages


def plain_state_dicts():
    """Return the difference after steps from the optimizer's own state dict: of whole tensors, of DTensors, by row."""
    column, differences = COLUMNS["Shard(0) uneven"], {}
    for row in ("SGDP", "AdamP", "AdaRemS"):
        start = column.whole()
        whole, sharded = Run(row, column, start), Run(row, column, column.sharded(start))
        train(whole, sharded, range(2))
        one, two = Run(row, column, copy.deepcopy(whole.model)), Run(row, column, column.sharded(whole.model))
        one.optimizer.load_state_dict(sharded.optimizer.state_dict())
        two.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
        train(whole, two, range(2, 4), also=one)
        differences[row] = apart(whole.weights, one.weights), apart(whole.weights, two.weights)
    return differences
