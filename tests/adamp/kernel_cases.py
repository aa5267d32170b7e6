"""Cases for the Triton kernels, each against the tensor-by-tensor path: one list for the interpreter and for a GPU.

`TRITON_INTERPRET=1 python -m tests.adamp.kernel_cases [large]` runs them all on the CPU and prints what went wrong, as
JSON.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from adamp import SGDP, AdamP, kernels
from adamp.kernels import triton_launch
from adamp.kernels.triton_tables import Tables, _cache
from tests.adamp import reference

SHAPES = {"channel": (4, 3, 3, 3), "layer": (6, 8), "none": (5, 7), "vector": (9,), "scalar": ()}
ADAMP = {
    "lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.1, "delta": 0.1, "wd_ratio": 0.2,
    "nesterov": False, "maximize": False, "scale_invariant": "auto", "capturable": False,
}  # fmt: skip
SGD = {
    "lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-2, "nesterov": False, "eps": 1e-8, "delta": 0.1,
    "wd_ratio": 0.2, "maximize": False, "scale_invariant": "auto", "project_buffer": False,
    "capturable": False,
}  # fmt: skip
STATES = {AdamP: ("exp_avg", "exp_avg_sq"), SGDP: ("momentum_buffer",)}
# Half precision: both compute in float32, so that a weight may end on the other side of one rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


class Fused:
    """Weights and states that a kernel steps."""

    def __init__(self, weights: list[Tensor], cls: type, options: dict) -> None:
        self.weights, self.cls, self.options = [w.clone() for w in weights], cls, options
        self.buffered = cls is AdamP or options["momentum"] != 0
        names = STATES[cls] if self.buffered else ()
        self.states = {name: [torch.zeros_like(w) for w in weights] for name in names}
        self.steps = [torch.zeros((), device=w.device) for w in weights]

    def step(self, grads: list[Tensor], **scaling: Tensor) -> None:
        copies = [g.clone() for g in grads]
        for i, (w, g) in enumerate(zip(self.weights, grads, strict=True)):
            assert triton_launch.supports(w, g, *(xs[i] for xs in self.states.values()))
        if self.cls is AdamP:
            triton_launch.adamp(self.weights, grads, *self.states.values(), self.steps, **self.options, **scaling)
        else:
            buffers = self.states.get("momentum_buffer")
            triton_launch.sgdp(self.weights, grads, buffers, **self.options, **scaling)
        for g, before in zip(grads, copies, strict=True):
            torch.testing.assert_close(g, before, rtol=0, atol=0, equal_nan=True)

    def tensors(self) -> list[Tensor]:
        return [*self.weights, *(x for xs in self.states.values() for x in xs)]


class Single(Fused):
    """The same with the tensor-by-tensor path."""

    def __init__(self, weights: list[Tensor], cls: type, options: dict) -> None:
        self.params = [nn.Parameter(w.clone()) for w in weights]
        mode = options["scale_invariant"]
        groups = [{"params": [p], "scale_invariant": mode if p.ndim > 1 else False} for p in self.params]
        self.optimizer = cls(groups, foreach=False, fused=False, **{**options, "scale_invariant": "auto"})
        self.cls, self.buffered = cls, cls is AdamP or options["momentum"] != 0

    def step(self, grads: list[Tensor], **scaling: Tensor) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g.clone()
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        names = STATES[self.cls] if self.buffered else ()
        states = [self.optimizer.state[p][name] for name in names for p in self.params]
        return [*(p.detach() for p in self.params), *states]


def gradient(w: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """A gradient of a kind of `reference.gradient`; in half precision the products with `w` stay near zero."""
    x = w.detach().cpu().double().contiguous()
    g = (
        reference.gradient(x, kind, generator)
        if w.ndim > 1 and w.numel()
        else torch.randn(x.shape, generator=generator)
    )
    like = torch.empty_like(w)
    return like.copy_(g)


def same(first: list[Tensor], second: list[Tensor]) -> None:
    for a, b in zip(first, second, strict=True):
        tolerance = TOLERANCE[a.dtype]
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def tables_of(weights: list[Tensor]) -> Tables:
    """The tables of the last step."""
    return next(reversed(_cache[weights[0]].values()))


def decisions(weights: list[Tensor]) -> list[int]:
    """What the kernels decided in the last step."""
    return [int(x) for x in tables_of(weights).scalars[:, 0].tolist()]


def agree(
    device: str,
    cls: type = AdamP,
    *,
    shapes: dict | None = None,
    dtype: torch.dtype = torch.float32,
    num_steps: int = 2,
    layout: torch.memory_format = torch.contiguous_format,
    spoil: Callable[[list[Tensor], list[Tensor]], None] | None = None,
    scale: float | None = None,
    expected: list[int] | None = None,
    **options: object,
) -> Fused:
    """Step both ways from the same start, with gradients of the kinds that `shapes` names, and compare."""
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES if shapes is None else shapes
    weights = [torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes.values()]
    weights = [w.to(memory_format=layout) if w.ndim == 4 else w for w in weights]
    options = {**(ADAMP if cls is AdamP else SGD), **options}
    fused, single = Fused(weights, cls, options), Single(weights, cls, options)
    for _ in range(num_steps):
        kinds = (kind.split("-")[0] for kind in shapes)
        grads = [gradient(w, kind, generator) for w, kind in zip(fused.weights, kinds, strict=True)]
        if spoil is not None:
            spoil([*fused.weights, *(p.data for p in single.params)], grads)
        if scale is None:
            fused.step(grads)
        else:
            fused.step([g * scale for g in grads], grad_scale=torch.tensor([scale], device=device))
        single.step(grads)
        if expected is not None:
            assert decisions(fused.weights) == expected
        same(fused.tensors(), single.tensors())
    return fused


def _nan_row(weights: list[Tensor], grads: list[Tensor]) -> None:
    grads[0][1, 0] = float("nan")
    grads[1][2] = float("inf")


def _zero_rows(weights: list[Tensor], grads: list[Tensor]) -> None:
    for w in (weights[0], weights[len(grads)]):
        w[1] = 0
    grads[1].zero_()


def found_inf_leaves_everything(device: str, cls: type) -> None:
    fused = agree(device, cls, num_steps=1)
    before = [x.clone() for x in [*fused.tensors(), *fused.steps]]
    grads = [torch.full_like(w, float("inf")) for w in fused.weights]
    fused.step(grads, found_inf=torch.ones(1, device=device), grad_scale=torch.full((1,), 4.0, device=device))
    for a, b in zip([*fused.tensors(), *fused.steps], before, strict=True):
        assert torch.equal(a, b)
    assert cls is SGDP or all(step.item() == 1 for step in fused.steps)


def found_inf_zero_steps(device: str) -> None:
    first, second = agree(device, num_steps=1), agree(device, num_steps=1)
    grads = [torch.ones_like(w) for w in first.weights]
    first.step(grads, found_inf=torch.zeros(1, device=device))
    second.step(grads)
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))


def same_bits_each_time(device: str) -> None:
    shapes = {"channel": (3, 9000), "layer": (70, 9), "none": (9, 130)}
    first, second = (agree(device, shapes=shapes, num_steps=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))


def a_small_decay_is_rounded_with_the_step(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = 1 + torch.rand(4096, generator=generator)
    grad = torch.randn(4096, generator=generator).to(device)
    ends = []
    for weight_decay in (0.0, 1e-4):  # x lr 1e-4 = 1e-8 of a weight, of which 1 - x in float32 would know nothing
        fused = Fused([start.to(device)], SGDP, {**SGD, "lr": 1e-4, "momentum": 0.0, "weight_decay": weight_decay})
        fused.step([grad])
        ends.append(fused.weights[0].double().cpu())
    realised = (ends[0] - ends[1]).sum() / (1e-8 * start.double()).sum()
    assert 0.7 < realised < 1.3, realised


def small_steps_arrive(device: str) -> None:
    weight, lost = torch.ones(5, 7, dtype=torch.bfloat16, device=device), torch.zeros(5, 7, device=device).bfloat16()
    for _ in range(30):
        options = {**SGD, "lr": 1e-4, "momentum": 0.0, "weight_decay": 0.0, "scale_invariant": False}
        triton_launch.sgdp([weight], [torch.ones_like(weight)], None, compensations=[lost], **options)
    moved = 1 - (weight.float() + lost.float())
    # The interpreter rounds to bfloat16 towards zero, and so takes up to 1.5e-5 a step
    assert moved.min() > 30e-4 - 1e-4 and moved.max() < 30e-4 + 10e-4


def tables_are_kept_until_something_moves(device: str) -> None:
    fused = agree(device, shapes={"channel": (4, 5), "vector": (3,)}, num_steps=1)
    grads = [torch.ones_like(w) for w in fused.weights]
    tables = tables_of(fused.weights)
    seen = []
    for _ in range(2):
        fused.step(grads)
        seen.append(tables.pointers)
    moved = [g.clone() for g in grads]
    fused.step(moved)
    assert seen[0] is seen[1] is not tables.pointers
    assert tables_of(fused.weights) is tables
    last = [xs[1] for xs in (fused.weights, *fused.states.values(), fused.steps)]
    del fused.weights[1], fused.states["exp_avg"][1], fused.states["exp_avg_sq"][1], fused.steps[1]
    fused.step(grads[:1])
    assert tables_of(fused.weights) is not tables
    for xs, x in zip((fused.weights, *fused.states.values(), fused.steps), last, strict=True):
        xs.append(x)  # the first list again
    fused.step(moved)
    assert tables_of(fused.weights) is tables


def five_launches(device: str) -> None:
    shapes = {**SHAPES, **{f"layer-{i}": (3, 5) for i in range(6)}}
    names, original = [], triton_launch._launch

    def counted(kernel: object, grid: int, *args: object, **launch: int) -> None:
        names.append(kernel.__name__)
        original(kernel, grid, *args, **launch)

    triton_launch._launch = counted
    try:
        agree(device, shapes=shapes, num_steps=1)
    finally:
        triton_launch._launch = original
    assert names == ["row_sums", "decide", "radial_sums", "coefficients", "apply_update"]


def dtypes_may_be_mixed(device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(4, 6, generator=generator).to(device, d) for d in (torch.float32, torch.bfloat16)]
    fused, single = Fused(weights, AdamP, dict(ADAMP)), Single(weights, AdamP, dict(ADAMP))
    grads = [gradient(w, "none", generator) for w in weights]
    for _ in range(2):
        fused.step(grads)
        single.step(grads)
    same(fused.tensors(), single.tensors())


def what_it_takes(device: str) -> None:
    def on(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, device=device, dtype=dtype)

    w = on(4, 6, 3, 3)
    last = w.to(memory_format=torch.channels_last)
    assert (
        triton_launch.supports(w, w, w)
        and triton_launch.supports(last, last)
        and triton_launch.supports(on(), on())
        and triton_launch.supports(on(0, 3), on(0, 3))
    )
    assert triton_launch.supports(on(3, 1).t(), on(1, 3)), "strides of dimensions of one entry say nothing"
    refused = [
        (w, last), (on(4, 6).t(), on(4, 6).t()), (on(4, 6)[:, :3], on(4, 6)[:, :3]), (on(6)[::2], on(6)[::2]),
        (on(4, 6), on(4, 6, dtype=torch.bfloat16)), (on(2, dtype=torch.complex64), on(2, dtype=torch.complex64)),
        (on(2, 1).expand(2, 3), on(2, 1).expand(2, 3)), (on(2, 3), on(3, 2)), (w.to("meta"), w.to("meta")),
    ]  # fmt: skip
    for pair in refused:
        assert not triton_launch.supports(*pair), [x.stride() for x in pair]


def no_state_is_shared_by_copies(device: str) -> None:
    fused = agree(device, num_steps=1)
    other = copy.deepcopy(fused)
    grads = [torch.ones_like(w) for w in fused.weights]
    before = [x.clone() for x in other.tensors()]
    fused.step(grads)
    assert all(torch.equal(a, b) for a, b in zip(other.tensors(), before, strict=True))


def the_optimizers_call_it(device: str) -> None:
    """AdamP and SGDP with fused=True, whose kernel for a CPU is another one unless this case says otherwise."""
    before = dict(kernels._MODULES)
    kernels._MODULES["cpu"] = "adamp.kernels.triton_launch"
    kernels._load.cache_clear()
    try:
        for cls, options in ((AdamP, {"lr": 0.01}), (SGDP, {"lr": 0.1, "momentum": 0.9}), (SGDP, {"lr": 0.1})):
            generator = torch.Generator().manual_seed(0)
            starts = [torch.randn(s, generator=generator).to(device) for s in ((4, 5), (3,), ())]
            grads = [torch.randn(w.shape, generator=generator).to(device) for w in starts]
            ends = []
            for path in ({"fused": True}, {"foreach": False, "fused": False}):
                params = [nn.Parameter(w.clone()) for w in starts]
                optimizer = cls(params, weight_decay=0.1, **options, **path)
                for shift in range(3):  # gradients that move from step to step
                    kept = [p.grad for p in params]
                    for p, g in zip(params, grads, strict=True):
                        p.grad = g + shift
                    optimizer.step()
                    del kept
                ends.append([p.detach() for p in params])
                assert (params[0] in _cache) == ("foreach" not in path)
            same(*ends)
    finally:
        kernels._MODULES.update(before)
        kernels._load.cache_clear()


ROWS = {
    "channel-tiny": (70, 9), "none-one": (130, 1), "channel-medium": (9, 130), "none-aligned": (9, 144),
    "layer-wide": (2, 600),
}  # fmt: skip
LONG = {"channel": (2, 8200), "layer": (2, 8208), "none": (1, 8200), "vector": (9001,)}
UNEVEN = {"channel": (65, 17), "layer": (2, 513), "channel-one": (1, 1), "none": (2, 16_385), "vector": (1,)}

CASES: dict[str, Callable[[str], object]] = {
    "adamp decides channel, layer, none": lambda d: agree(d, expected=[1, 2, 0, 0, 0]),
    "adamp in float64": lambda d: agree(d, dtype=torch.float64, expected=[1, 2, 0, 0, 0]),
    "adamp in bfloat16": lambda d: agree(d, dtype=torch.bfloat16, num_steps=1),
    "adamp in float16": lambda d: agree(d, dtype=torch.float16, num_steps=1),
    "adamp with nesterov": lambda d: agree(d, nesterov=True, num_steps=3),
    "adamp maximizes": lambda d: agree(d, maximize=True),
    "adamp without decay": lambda d: agree(d, weight_decay=0.0),
    "adamp without first moment": lambda d: agree(d, betas=(0.0, 0.9), num_steps=1),
    "adamp marked True": lambda d: agree(d, scale_invariant=True, expected=[1, 1, 1, 0, 0]),
    "adamp marked as tensors": lambda d: agree(d, scale_invariant="tensor", expected=[1, 1, 1, 0, 0]),
    "adamp marked False": lambda d: agree(d, scale_invariant=False, num_steps=1, expected=[0] * 5),
    "adamp with a tensor as lr": lambda d: agree(d, lr=torch.tensor(0.02, device=d), num_steps=1),
    "adamp with scaled gradients": lambda d: agree(d, scale=1024.0, num_steps=1),
    "adamp in bfloat16 with scaled gradients": lambda d: agree(d, scale=8.0, dtype=torch.bfloat16, num_steps=1),
    "sgdp": lambda d: agree(d, SGDP, expected=[1, 2, 0, 0, 0]),
    "sgdp in float64": lambda d: agree(d, SGDP, dtype=torch.float64, num_steps=3),
    "sgdp in bfloat16": lambda d: agree(d, SGDP, dtype=torch.bfloat16, num_steps=1),
    "sgdp with nesterov": lambda d: agree(d, SGDP, nesterov=True),
    "sgdp with dampening": lambda d: agree(d, SGDP, dampening=0.3),
    "sgdp without momentum": lambda d: agree(d, SGDP, momentum=0.0, dampening=0.3),
    "sgdp without momentum with nesterov": lambda d: agree(d, SGDP, momentum=0.0, nesterov=True, dampening=0.3),
    "sgdp keeps the projected buffer": lambda d: agree(d, SGDP, project_buffer=True),
    "sgdp maximizes": lambda d: agree(d, SGDP, maximize=True, num_steps=1),
    "sgdp marked True": lambda d: agree(d, SGDP, scale_invariant=True, expected=[1, 1, 1, 0, 0]),
    "sgdp with scaled gradients": lambda d: agree(d, SGDP, scale=1024.0, num_steps=1),
    "rows of all lengths": lambda d: agree(d, shapes=ROWS, num_steps=1, expected=[1, 0, 1, 0, 2]),
    "rows that several programs share": lambda d: agree(d, shapes=LONG, num_steps=1, expected=[1, 2, 0, 0]),
    "rows and columns one past a tile": lambda d: agree(d, shapes=UNEVEN, num_steps=1),
    "many short rows": lambda d: agree(
        d, shapes={"layer": (1_100, 3), "channel": (1_100, 3)}, num_steps=1, expected=[2, 1]
    ),
    "shared rows marked True": lambda d: agree(
        d, SGDP, shapes={"none": (2, 8200), "channel": (3, 4)}, scale_invariant=True, num_steps=1
    ),
    "long tensors": lambda d: agree(d, SGDP, shapes={"none": (3, 8200)}, scale_invariant="tensor", num_steps=1),
    "channels last": lambda d: agree(d, layout=torch.channels_last, expected=[1, 2, 0, 0, 0]),
    "a NaN stays in its row": lambda d: agree(
        d, shapes={"channel": (4, 5), "channel-2": (3, 6)}, spoil=_nan_row, num_steps=1, expected=[0, 0]
    ),
    "zero weights and zero gradients": lambda d: agree(
        d, shapes={"channel": (4, 5), "none": (3, 6)}, spoil=_zero_rows, num_steps=1, expected=[1, 1]
    ),
    "zero weights with eps 0": lambda d: agree(
        d,
        SGDP,
        shapes={"channel": (4, 5), "none": (3, 6)},
        spoil=_zero_rows,
        scale_invariant=True,
        eps=0.0,
        num_steps=1,
    ),
    "empty tensors": lambda d: agree(d, shapes={"none-a": (0, 3), "none-b": (3, 0), "channel": (2, 4)}, num_steps=1),
    "vectors alone": lambda d: agree(d, shapes={"vector": (3,), "vector-2": (20,)}, expected=[0, 0]),
    "adamp and an infinite gradient": lambda d: found_inf_leaves_everything(d, AdamP),
    "sgdp and an infinite gradient": lambda d: found_inf_leaves_everything(d, SGDP),
    "no infinite gradient": found_inf_zero_steps,
    "the same bits each time": same_bits_each_time,
    "a small decay": a_small_decay_is_rounded_with_the_step,
    "small steps of bfloat16 weights": small_steps_arrive,
    "kept tables": tables_are_kept_until_something_moves,
    "five launches": five_launches,
    "mixed dtypes": dtypes_may_be_mixed,
    "what it takes": what_it_takes,
    "through the optimizers": the_optimizers_call_it,
    "copies": no_state_is_shared_by_copies,
}


# Minutes under the interpreter
LARGE_CASES: dict[str, Callable[[str], object]] = {
    "many tensors": lambda d: agree(d, shapes={f"scalar-{i}": () for i in range(5_000)}, num_steps=1),
    "a tensor of many rows": lambda d: agree(d, SGDP, shapes={"layer": (200_000, 2)}, num_steps=1, expected=[2]),
}


def patch_the_language_once_a_launch() -> None:
    """Halve the time: the interpreter replaces all of triton.language again at each call of a device function."""
    from triton.runtime import interpreter

    patched: set[int] = set()
    launch = interpreter.GridExecutor.__call__

    def launch_anew(self: object, *args: object, **options: object) -> object:
        patched.clear()
        return launch(self, *args, **options)

    def call(self: interpreter.InterpretedFunction, *args: object, **options: object) -> object:
        if id(self.fn.__globals__) not in patched:
            patched.add(id(self.fn.__globals__))
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **options)

    interpreter.GridExecutor.__call__ = launch_anew
    interpreter.InterpretedFunction.__call__ = call


def main() -> None:
    patch_the_language_once_a_launch()
    outcomes = {}
    cases = LARGE_CASES if sys.argv[1:] == ["large"] else CASES
    for name, case in cases.items():
        try:
            with np.errstate(all="ignore"):  # the interpreter computes in numpy, which warns of NaN
                case("cpu")
            outcomes[name] = None
        except Exception:
            outcomes[name] = traceback.format_exc()
    print(json.dumps(outcomes))


if __name__ == "__main__":
    warnings.filterwarnings("error")
    main()
