"""torch.compile of a step: one graph, no new one after the first steps, the same numbers."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from adamp import SGDP, AdamP
from tests.adamp import reference
from tests.adamp.trajectories import OPTIMIZERS, assert_close, parameters, train

# What torch's compiler itself warns of; the second is torch 2.6's.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles:UserWarning"),
]
HOW = {"default": {}, "single": {"foreach": False}, "foreach": {"foreach": True}, "capturable": {"capturable": True}}


class Compiled:
    """An optimizer whose step is compiled; a graph break is an error."""

    def __init__(self, optimizer, backend):
        torch._dynamo.reset()
        self.counter = CompileCounterWithBackend(backend)
        self.optimizer = optimizer
        self.step = torch.compile(optimizer.step, backend=self.counter, fullgraph=True)


@pytest.mark.parametrize(
    ("name", "how"),
    [("sgdp", "default"), ("adamp", "default"), ("sgdp", "single"), ("adamp", "single")]
    + [pytest.param(name, how, marks=pytest.mark.slow) for name in OPTIMIZERS for how in ("foreach", "capturable")],
)
def test_a_compiled_step_is_one_graph_and_the_same_numbers(name, how):
    cls, options = OPTIMIZERS[name]
    ours, plain = parameters(), parameters()
    compiled = Compiled(cls(ours, **options, **HOW[how]), "eager")
    train(compiled, ours, 2)
    warm = compiled.counter.frame_count
    train(compiled, ours, 4, start=2)
    assert compiled.counter.frame_count == warm <= 2
    train(cls(plain, **options, foreach=False), plain, 6)
    assert_close(ours, plain)


@pytest.mark.parametrize("name", ["sgdp", "adamp"])
def test_a_learning_rate_that_is_a_tensor_changes_without_a_new_graph(name):
    cls, options = OPTIMIZERS[name]
    ours, plain = parameters(), parameters()
    lr = torch.tensor(options["lr"], dtype=torch.float64)
    compiled = Compiled(cls(ours, **{**options, "lr": lr}), "eager")
    other = cls(plain, **options, foreach=False)
    counts = []
    for step in range(6):
        if step >= 2:
            lr.mul_(0.5)
            other.param_groups[0]["lr"] *= 0.5
        train(compiled, ours, 1, start=step)
        train(other, plain, 1, start=step)
        counts.append(compiled.counter.frame_count)
    assert counts[-1] == counts[1] <= 2
    assert_close(ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgdp", "adamp"])
def test_a_compiled_step_survives_functionalisation(name):
    cls, options = OPTIMIZERS[name]
    ours, plain = parameters(), parameters()
    compiled = Compiled(cls(ours, **options), "aot_eager")
    train(compiled, ours, 4)
    assert compiled.counter.frame_count <= 2
    train(cls(plain, **options, foreach=False), plain, 4)
    assert_close(ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgdp", "adamp"])
def test_an_inductor_step_gives_the_same_numbers(name):
    cls, options = OPTIMIZERS[name]
    ours, plain = parameters(torch.float32), parameters(torch.float32)
    compiled = Compiled(cls(ours, **options), "inductor")
    train(compiled, ours, 4)
    train(cls(plain, **options, foreach=False), plain, 4)
    assert_close(ours, plain, torch.float32)


@pytest.mark.parametrize("cls", [SGDP, AdamP])
def test_capturable_keeps_the_count_beside_the_parameter(cls):
    params = [nn.Parameter(torch.ones(2, 2))]
    params[0].grad = reference.gradient(torch.ones(2, 2), "none", torch.Generator().manual_seed(0))
    optimizer = cls(params, 0.1, capturable=True)
    optimizer.step()
    assert all(x.device == params[0].device for x in optimizer.state[params[0]].values())
