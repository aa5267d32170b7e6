"""Host time of a fused step with the kernels stubbed out, beside torch's fused optimizers; needs no GPU.

`python -m benchmarks.gpu_host [rounds=25] [sets=resnet50,vit_s16] [out=results/gpu]`. Parameters have the real number
and dimensions, but sizes of 4 at most, on the CPU; every launch is replaced by nothing, on both sides. CPU seconds, in
turns within one process. Gradients stay where they are, as with CUDA graphs, or all move from step to step.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch.optim import Optimizer

from adamp import SGDP, AdamP, kernels
from adamp.kernels import triton_launch
from benchmarks import pages
from benchmarks.optimizers import ADAM, SGD, attached, compared, shapes
from benchmarks.peers import Make
from launch.checkout import ROOT
from scripts.options import command, parse, results, whole
from tasks.engine.provenance import provenance

OPTIONS = {"rounds": "25", "sets": "resnet50,vit_s16", "out": results("gpu")}
MAKES: dict[str, Make] = {
    "torch AdamW fused": lambda p: torch.optim.AdamW(p, **ADAM, fused=True),
    "AdamP fused": lambda p: AdamP(p, **ADAM, fused=True),
    "torch SGD fused": lambda p: torch.optim.SGD(p, **SGD, fused=True),
    "SGDP fused": lambda p: SGDP(p, **SGD, fused=True),
}


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """Let fused optimizers of parameters on the CPU do all but start their CUDA kernels."""

    def nothing(*args: object, **options: object) -> None:
        return None

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(kernels, "kernel_for", lambda device: triton_launch))
        stack.enter_context(mock.patch.object(triton_launch, "_device_type", lambda: "cpu"))
        stack.enter_context(mock.patch.object(triton_launch, "unavailable_reason", lambda: None))
        stack.enter_context(mock.patch.object(triton_launch, "_launch", nothing))
        # The count of steps is one more kernel of torch's
        for name in ("_fused_adamw_", "_fused_sgd_", "_foreach_add_"):
            stack.enter_context(mock.patch.object(torch, name, nothing))
        yield


def act_of(optimizer: Optimizer, *, move: bool) -> Callable[[], float]:
    """Return a step that returns its CPU seconds, without those of moving the gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    places = [[torch.empty_like(p) for p in params] for _ in range(2)]

    def act() -> float:
        if move:
            places.reverse()
            for p, grad in zip(params, places[0], strict=True):
                p.grad = grad
        begun = time.thread_time()
        optimizer.step()
        return time.thread_time() - begun

    return act


def measure(sets: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Return each optimizer's milliseconds a step and ratio to torch's fused AdamW, by set and kind of gradients."""
    found = []
    with no_kernels():
        for name in sets:
            small = [torch.empty([min(n, 4) for n in shape]) for shape in shapes(name)]
            for move in (False, True):
                acts = {key: act_of(attached(make, small, small), move=move) for key, make in MAKES.items()}
                seconds = _take_turns(acts, rounds)
                for result in compared(seconds, threads=1, clock="CPU", setting=name, gradients="", family=""):
                    found.append({
                        "set": name, "gradients": "move" if move else "stay", "optimizer": result.optimizer,
                        "ms": result.ms, "ratio": result.ratio, "low": result.low, "high": result.high,
                    })  # fmt: skip
    return found


def _take_turns(acts: Mapping[str, Callable[[], float]], rounds: int, repeats: int = 50) -> dict[str, list[float]]:
    """Return name -> CPU seconds of a step in each round: the fastest of some, as other work only adds to it."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for act in acts.values():
        act()
    for _ in range(rounds):
        for name, act in acts.items():
            seconds[name].append(min(act() for _ in range(repeats)))
    return seconds


def main(words: Sequence[str]) -> int:
    """Measure, print the table and write it with its provenance."""
    options = parse(words, options=OPTIONS)
    found = measure(options["sets"].split(","), whole(options, "rounds")[0])
    rows = [
        f"| {r['set']} | {r['gradients']} | {r['optimizer']} | {r['ms']:.3f} | "
        f"{r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) |"
        for r in found
    ]
    text = (
        "# Host time of a fused step\n\n"
        "CPU milliseconds a step with all kernels stubbed out, and the multiple of torch's fused AdamW in the same "
        "round, median (quartiles). Measured on a CPU: no device has been used.\n\n"
        "| parameters of | gradients | optimizer | ms | times torch's AdamW |\n|---|---|---|---|---|\n"
        + "\n".join(rows)
        + f"\n\n{provenance(ROOT)}. Command: `python -m benchmarks.gpu_host {pages.shown(words)}`\n"
    )
    pages.write(text, {"steps": found}, options, stem="host")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
