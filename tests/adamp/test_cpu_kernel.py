"""The CPU kernel against the tensor-by-tensor path."""

import ctypes
import itertools

import pytest
import torch
from torch import nn

from adamp import SGDP, AdamP
from adamp.kernels import cpu, cpu_build
from tests.adamp import reference

reason = cpu.unavailable_reason()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

# float64: rounding alone. float32: the two paths sum in another order, 1e-7 relative to the norms, and an update
# whose radial part is taken off keeps its absolute error. Half precision: computed in float32 by both, so that
# a weight may end on the other side of one rounding.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ADAMP = {
    "lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.1, "delta": 0.1, "wd_ratio": 0.2,
    "nesterov": False, "maximize": False,
}  # fmt: skip
SGD = {
    "lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 1e-2, "nesterov": False, "eps": 1e-8, "delta": 0.1,
    "wd_ratio": 0.2, "maximize": False, "project_buffer": False,
}  # fmt: skip
NAMES = {AdamP: ("exp_avg", "exp_avg_sq"), SGDP: ("momentum_buffer",)}


class Kernel:
    """Weights and states that the kernel steps."""

    def __init__(self, weights, cls, options, scale_invariant="auto"):
        self.weights, self.cls = [w.clone() for w in weights], cls
        self.options = {**options, "scale_invariant": scale_invariant}
        names = NAMES[cls] if options.get("momentum", 1) != 0 else ()
        self.states = {name: [torch.zeros_like(w) for w in weights] for name in names}
        self.steps = [torch.zeros(()) for _ in weights]

    def step(self, grads, **scaling):
        before = [g.clone() for g in grads]
        for i, (w, g) in enumerate(zip(self.weights, grads, strict=True)):
            assert cpu.supports(w, g, *(xs[i] for xs in self.states.values()))
        if self.cls is AdamP:
            cpu.adamp(self.weights, grads, *self.states.values(), self.steps, **self.options, **scaling)
        else:
            cpu.sgdp(self.weights, grads, self.states.get("momentum_buffer"), **self.options, **scaling)
        same(grads, before)

    def tensors(self):
        return [*self.weights, *(x for xs in self.states.values() for x in xs)]


class Single(Kernel):
    """The same with the tensor-by-tensor path."""

    def __init__(self, weights, cls, options, scale_invariant="auto"):
        self.params = [nn.Parameter(w.clone()) for w in weights]
        self.names = NAMES[cls] if options.get("momentum", 1) != 0 else ()
        marks = ["auto" if p.ndim < 2 else scale_invariant for p in self.params]
        groups = [{"params": [p], "scale_invariant": mark} for p, mark in zip(self.params, marks, strict=True)]
        self.optimizer = cls(groups, foreach=False, **options)

    def step(self, grads, **scaling):
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g.clone(memory_format=torch.preserve_format)
        self.optimizer.step()

    def tensors(self):
        states = [self.optimizer.state[p][name] for name in self.names for p in self.params]
        return [*(p.detach() for p in self.params), *states]


def same(first, second, tolerance=0.0):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def gradient(w, kind, generator):
    """A gradient of a kind of `reference.gradient` in the weight's dtype and memory format."""
    x = w.detach().double().contiguous()
    matrix = w.ndim > 1 and w.numel() > 0
    g = reference.gradient(x, kind, generator) if matrix else torch.randn(x.shape, generator=generator)
    return torch.empty_like(w).copy_(g)


def agree(
    cls,
    shapes,
    *,
    kinds=("channel", "layer", "none"),
    dtype=torch.float32,
    mark="auto",
    num_steps=3,
    layout=None,
    **given,
):
    """Step both ways from the same start and compare after each step; return the kernel's side."""
    generator = torch.Generator().manual_seed(0)
    cases = list(itertools.product(shapes, kinds))
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape, _ in cases]
    weights = [w.to(memory_format=layout) if layout and w.ndim == 4 else w for w in weights]
    options = {**(ADAMP if cls is AdamP else SGD), **given}
    kernel, single = (side(weights, cls, options, mark) for side in (Kernel, Single))
    for _ in range(num_steps):
        grads = [gradient(w, kind, generator) for w, (_, kind) in zip(kernel.weights, cases, strict=True)]
        kernel.step(grads)
        single.step(grads)
        same(kernel.tensors(), single.tensors(), TOLERANCE[dtype])
    return kernel


SHAPES = [
    (0, 4),
    (8, 1, 3, 3),
    (6, 3, 7, 7),
    (5, 8),
    (4, 24),
    (7, 1),
    (1, 9),
    (3, 2, 1, 1),
    (1030, 3),
    (2, 1000),
    (9,),
    (),
    (0, 4),
    (4, 0),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_kernel_makes_the_step_of_the_readable_path(cls, nesterov, dtype):
    agree(cls, SHAPES, dtype=dtype, nesterov=nesterov)


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize("mark", ["auto", True, False])
@pytest.mark.parametrize("length", [1, 9, 147, 25088, 16384, 16385])
def test_rows_of_every_length_marked_or_not(cls, mark, length):
    agree(cls, [(3, length), (1, length)], mark=mark, num_steps=2, dtype=torch.float64)


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize(
    "given",
    [
        {"maximize": True},
        {"weight_decay": 0.0},
        {"delta": 0.0},
        {"wd_ratio": 1.0},
        {"eps": 0.0},
        {"lr": torch.tensor(0.02, dtype=torch.float64)},
    ],
)
def test_every_option_acts_as_on_the_readable_path(cls, given):
    agree(cls, SHAPES, dtype=torch.float64, **given)


@pytest.mark.parametrize("given", [{"momentum": 0.0}, {"momentum": 0.0, "dampening": 0.5}, {"dampening": 0.5}])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("project_buffer", [False, True])
def test_momentum_dampening_and_projected_buffers(given, nesterov, project_buffer):
    shapes = [*SHAPES, (2, 20000)]
    agree(SGDP, shapes, dtype=torch.float64, nesterov=nesterov, project_buffer=project_buffer, **given)


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_channels_last_weights_and_half_precision(cls, dtype):
    kernel = agree(cls, [(8, 3, 5, 5), (6, 16, 1, 1), (4, 7)], dtype=dtype, layout=torch.channels_last, nesterov=True)
    assert kernel.weights[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_of_half_precision_survives_and_all_are_rounded_as_torch_does(dtype):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(0)
    kernel = Kernel([every], SGDP, {**SGD, "momentum": 0.0, "lr": 1.0, "weight_decay": 0.0})
    kernel.step([torch.zeros_like(every)])
    same(kernel.weights, [every])
    grads = torch.randn(every.shape, generator=generator).to(dtype)
    kernel.step([grads])
    same(kernel.weights, [(every.float() - grads.float()).to(dtype)])


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [5, 64, 17000])
def test_nan_infinity_and_zeros_stay_in_their_rows(cls, dtype, width):
    generator = torch.Generator().manual_seed(0)
    bad = [float("nan"), float("inf"), 0.0]
    for what, where in itertools.product(bad, ("weight", "grad")):
        weights = [torch.randn(4, width, generator=generator, dtype=dtype) for _ in range(3)]
        grads = [gradient(w, kind, generator) for w, kind in zip(weights, ("channel", "layer", "none"), strict=True)]
        for x in weights if where == "weight" else grads:
            x[1] = what
        kernel, single = (side(weights, cls, ADAMP if cls is AdamP else SGD) for side in (Kernel, Single))
        kernel.step(grads)
        single.step(grads)
        same(kernel.tensors(), single.tensors(), TOLERANCE[dtype])
        if what != 0:
            assert torch.isfinite(kernel.weights[2][[0, 2, 3]]).all()


@pytest.mark.parametrize("cls", [AdamP, SGDP])
def test_gradients_are_unscaled_on_the_way_and_an_overflow_skips_the_step(cls):
    weights = [torch.randn(s, generator=torch.Generator().manual_seed(0)) for s in ((4, 9), (3,))]
    grads = [torch.randn_like(w) for w in weights]
    options = ADAMP if cls is AdamP else SGD
    plain, scaled = Kernel(weights, cls, options), Kernel(weights, cls, options)
    plain.step(grads)
    scale, clear = torch.tensor([1024.0]), torch.zeros(1)
    scaled.step([g * 1024 for g in grads], grad_scale=scale, found_inf=clear)
    same(plain.tensors(), scaled.tensors())  # a power of two: exact
    scaled.step([g * float("inf") for g in grads], grad_scale=scale, found_inf=torch.ones(1))
    same(plain.tensors(), scaled.tensors())
    assert cls is SGDP or [int(x) for x in scaled.steps] == [1, 1]


def test_a_gradient_scaled_down_decides_by_its_own_norm():
    w, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[1e-9, 1e-9]])  # the norm is below eps: cosine 0.1, not 0.7
    options = {**SGD, "delta": 0.2, "momentum": 0.0, "weight_decay": 0.0}
    for scale in (1.0, 2.0**30):
        kernel = Kernel([w], SGDP, options)
        kernel.step([g * scale], grad_scale=torch.tensor(scale))
        assert kernel.weights[0][0, 0] == 1  # projected


@pytest.mark.parametrize("cls", [AdamP, SGDP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("plain_threads", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(cls, dtype, plain_threads, monkeypatch):
    if plain_threads:  # as where torch brings no OpenMP
        monkeypatch.setattr(cpu, "_parallel", lambda: None)
    threads, results = torch.get_num_threads(), []
    shapes = [(300, 257), (64, 3, 7, 7), (4, 20000), (70000,), (9,)]  # above 65536: shared by the threads
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(0)
            cases = list(itertools.product(shapes, ("channel", "layer", "none")))
            weights = [torch.randn(shape, generator=generator).to(dtype) for shape, _ in cases]
            grads = [gradient(w, kind, generator) for w, (_, kind) in zip(weights, cases, strict=True)]
            kernel = Kernel(weights, cls, ADAMP if cls is AdamP else SGD)
            for _ in range(2):
                kernel.step(grads)
            results.append(kernel.tensors())
    finally:
        torch.set_num_threads(threads)
    same(results[0], results[1])
    same(results[0], results[2])


def test_decay_below_the_rounding_of_one_minus_decay_still_acts():
    w = torch.full((1, 4096), 1.0)
    kernel = Kernel([w], SGDP, {**SGD, "lr": 1e-4, "momentum": 0.0, "weight_decay": 1e-4, "wd_ratio": 1.0})
    kernel.step([torch.full_like(w, -1e-3)])  # the step alone, 1e-7, ends on another number than with the decay 1e-8
    assert torch.equal(kernel.weights[0], (w.double() + 1e-7 - 1e-8).float())


def test_autograd_notices_that_a_weight_has_changed():
    weight = nn.Parameter(torch.ones(2, 3))
    loss = (weight * weight).sum()
    with torch.no_grad():
        cpu.sgdp([weight], [torch.ones(2, 3)], None, **{**SGD, "momentum": 0.0, "scale_invariant": "auto"})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_the_kernel_takes():
    conv, last = torch.zeros(4, 3, 5, 5), torch.zeros(4, 3, 5, 5).to(memory_format=torch.channels_last)
    one = torch.zeros(4, 3, 1, 1)
    taken = [(conv, conv), (last, last, last), (one, one.to(memory_format=torch.channels_last)), (conv[:2], conv[2:])]
    taken += [
        (torch.zeros(3), torch.zeros(3)),
        (torch.zeros(()), torch.zeros(())),
        (torch.zeros(0, 3), torch.zeros(0, 3)),
    ]
    transposed, strided = torch.zeros(5, 4).t(), torch.zeros(4, 10)[:, ::2]
    refused = [
        (conv, last),
        (conv, conv, last),
        (transposed, transposed),
        (strided, strided),
        (torch.zeros(4, 10)[:, :5], torch.zeros(4, 10)[:, :5]),
        (torch.zeros(6)[::2], torch.zeros(6)[::2]),
        (conv, conv.double()),
        (conv, conv, conv.double()),
        (conv, conv[:2]),
        (torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 2, dtype=torch.complex64)),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)),
        (torch.zeros(2, device="meta"), torch.zeros(2, device="meta")),
        (torch.zeros(1, 3).expand(4, 3), torch.zeros(1, 3).expand(4, 3)),
    ]
    assert [cpu.supports(*case) for case in taken] == [True] * len(taken)
    assert [cpu.supports(*case) for case in refused] == [False] * len(refused)


def test_the_options_of_both_languages_have_the_same_size_and_order():
    source = next(path for path in cpu_build.SOURCES if path.name == "step.h").read_text()
    body = source[source.index("struct Options {") : source.index("struct Options {") + 1200].split("};")[0]
    names = [name for name, _ in cpu._Options._fields_]
    positions = [body.index(f" {name}") for name in names if name != "parallel"]
    assert positions == sorted(positions)
    assert ctypes.sizeof(cpu._Options) == 8 * len(names)
