"""The Triton kernels on a CUDA device: the cases of the interpreter, and what only a device can show."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from adamp import SGDP, AdamP
from adamp.kernels import triton_launch as fused
from tests.adamp.kernel_cases import CASES, LARGE_CASES, SGD, agree
from tests.cuda import kernels_of, may_capture_nothing, without_synchronisation

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

OPTIONS = {AdamP: {"lr": 1e-2, "weight_decay": 0.1}, SGDP: {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}}
SHAPES = [(64, 3, 7, 7), (64,), (128, 64, 3, 3), (96, 1, 3, 3), (1000, 512), (1000,), (1, 197, 384), (), (2, 9000)]
BOTH = pytest.mark.parametrize("cls", [AdamP, SGDP])


def build(cls: type, *, num_copies: int = 1, **options: object) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    shapes = SHAPES * num_copies
    params = [nn.Parameter(torch.randn(shape, generator=generator).cuda()) for shape in shapes]
    return params, cls(params, **{**OPTIONS[cls], **options})


def set_grads(params: list[nn.Parameter], step: int = 0, factor: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in params:
        p.grad = factor * torch.randn(p.shape, generator=generator).cuda()


def assert_close(first: list[nn.Parameter], second: list[nn.Parameter]) -> None:
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [*CASES, *LARGE_CASES])
def test_on_the_device(case: str) -> None:
    {**CASES, **LARGE_CASES}[case]("cuda")


@BOTH
def test_large_tensors_agree_with_the_tensor_by_tensor_path(cls: type) -> None:
    shapes = {"channel": (512, 512, 3, 3), "layer": (384, 1536), "none": (1000, 2048), "channel-vgg": (64, 25088)}
    agree("cuda", cls, shapes=shapes, expected=[1, 2, 0, 1])


@BOTH
@pytest.mark.parametrize("num_copies", [1, 20])
def test_a_step_is_at_most_six_launches_for_any_number_of_tensors(cls: type, num_copies: int) -> None:
    params, optimizer = build(cls, num_copies=num_copies, fused=True)
    set_grads(params)
    optimizer.step()
    torch.cuda.synchronize()
    on_device = kernels_of(optimizer.step)
    assert 2 <= len(on_device) <= 6, on_device


@BOTH
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_step_never_waits_for_the_device(cls: type, tensor_lr: bool) -> None:
    lr = torch.tensor(0.01, device="cuda") if tensor_lr else 0.01
    params, optimizer = build(cls, fused=True, lr=lr, capturable=True)
    set_grads(params)
    optimizer.step()  # compiles
    moved = [p.grad.clone() for p in params]
    with without_synchronisation():
        optimizer.step()
        for p, grad in zip(params, moved, strict=True):
            p.grad = grad  # tables are sent anew
        optimizer.step()


def backward(params: list[nn.Parameter], noise: list[Tensor]) -> None:
    """Gradients that depend on the weights, in memory of their own at each call."""
    for p, x in zip(params, noise, strict=True):
        p.grad = x - 0.1 * p.detach()


def capture(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, noise: list[Tensor]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        backward(params, noise)
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backward(params, noise)
        optimizer.step()
    return graph


@BOTH
def test_a_captured_step_replays_as_steps_one_by_one_also_between_others(cls: type) -> None:
    lr = torch.tensor(0.01, device="cuda")
    params, optimizer = build(cls, fused=True, capturable=True, lr=lr)
    twins, single = build(cls, foreach=False, fused=False, lr=0.01)
    noise = [torch.randn_like(p) for p in params]

    def step_twins() -> None:
        backward(twins, noise)
        single.step()

    graph = capture(params, optimizer, noise)
    step_twins()  # the step before the capture; the capture makes none
    for _ in range(3):
        graph.replay()
        step_twins()
    assert_close(params, twins)
    backward(params, noise)
    optimizer.step()  # moves the gradients of the tables kept for such steps, not the graph's
    step_twins()
    lr.fill_(0.02)
    single.param_groups[0]["lr"] = 0.02
    graph.replay()
    step_twins()
    assert_close(params, twins)


def test_two_captures_do_not_share_their_tables() -> None:
    params, optimizer = build(AdamP, fused=True, capturable=True)
    twins, single = build(AdamP, foreach=False, fused=False)
    noise = [torch.randn_like(p) for p in params]
    graphs = [capture(params, optimizer, noise) for _ in range(2)]
    for graph in (*graphs, *graphs):
        graph.replay()
    for _ in range(6):
        backward(twins, noise)
        single.step()
    assert_close(params, twins)


@may_capture_nothing
def test_a_capture_without_a_step_before_it_says_what_is_missing() -> None:
    weights, grads, buffers = ([torch.zeros(3, 4, device="cuda")] for _ in range(3))
    match = "one step with the same parameters before it"
    with pytest.raises(RuntimeError, match=match), torch.cuda.graph(torch.cuda.CUDAGraph()):
        fused.sgdp(weights, grads, buffers, **SGD)


@BOTH
def test_grad_scaler_hands_over_its_factor_and_an_infinite_gradient_changes_nothing(cls: type) -> None:
    params, optimizer = build(cls, fused=True)
    twins, plain = build(cls, fused=True)
    noise = [torch.randn_like(p) for p in params]
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)

    def loss(of: list[nn.Parameter], factor: float = 1.0) -> Tensor:
        return factor * sum((p * x).sum() for p, x in zip(of, noise, strict=True))

    def scaled_step(factor: float) -> None:
        optimizer.zero_grad()
        scaler.scale(loss(params, factor)).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(2):
        scaled_step(1.0)
        plain.zero_grad()
        loss(twins).backward()
        plain.step()
    assert_close(params, twins)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(optimizer.state_dict()["state"])
    scaled_step(float("inf"))
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    for index, values in optimizer.state_dict()["state"].items():
        assert all(torch.equal(x, state[index][name]) for name, x in values.items())
    assert scaler.get_scale() == 512.0


@BOTH
def test_a_step_gives_the_same_bits_each_time(cls: type) -> None:
    runs: list[list[nn.Parameter]] = []
    for _ in range(2):
        params, optimizer = build(cls, fused=True)
        for step in range(3):
            set_grads(params, step)
            optimizer.step()
        runs.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_gradients_may_be_freed_right_after_a_step() -> None:
    results = []
    for clear in (False, True):
        params, optimizer = build(AdamP, fused=True)
        for step in range(4):
            set_grads(params, step)
            optimizer.step()
            if clear:
                optimizer.zero_grad(set_to_none=True)
                torch.full((1 << 20,), float("nan"), device="cuda")
        results.append(params)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
