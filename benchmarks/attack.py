"""A step of adversarial training beside its bound: steps + 1 forward and backward passes.

`python benchmarks/attack.py [rounds=15] [attack=paper-linf] [steps=10] [depth=10] [width=1] [batch=64] [threads=1]
[precision=fp32] [channels_last=false] [device=cpu] [out=results/benchmarks]`.
Three things take turns on one network and batch, round by round, so that a drift of the machine meets all: the step
itself (attack, forward, backward); the tight bound, `steps` bare gradients to the pictures and one pass with gradients
of the parameters; and the loose one, steps + 1 passes with gradients of the parameters. The ratio of each round is
taken first, then its median over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import pages
from launch.checkout import ROOT
from scripts.options import command, parse_as
from tasks.attacks import PRESETS, pgd_attack
from tasks.engine.provenance import git_state, hardware, now, versions
from tasks.wide_resnet import WideResNet

DEFAULTS = {
    "rounds": 15, "attack": "paper-linf", "steps": 10, "depth": 10, "width": 1, "batch": 64, "threads": 1,
    "precision": "fp32", "channels_last": "false", "device": "cpu", "out": "results/benchmarks",
}  # fmt: skip


def train_pass(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward with gradients of the parameters, as the step after the attack takes."""
    F.cross_entropy(network(images), labels).backward()
    network.zero_grad(set_to_none=True)


def input_pass(network: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward to the pictures alone: what no attack step can do without."""
    images = images.detach().requires_grad_()
    torch.autograd.grad(F.cross_entropy(network(images), labels, reduction="sum"), images)


def contenders(
    network: nn.Module, images: Tensor, labels: Tensor, options: Mapping[str, Any]
) -> dict[str, Callable[[], None]]:
    """Return what is timed, by name."""
    preset, steps = PRESETS[options["attack"]], options["steps"]

    def step() -> None:
        moved = pgd_attack(
            network, images, labels, norm=preset.norm, epsilon=preset.epsilon, steps=steps,
            step_size=preset.step_size, direction=preset.direction, random_start=preset.random_start_train,
        )  # fmt: skip
        train_pass(network, moved, labels)

    def tight() -> None:
        network.eval()
        for _ in range(steps):
            input_pass(network, images, labels)
        network.train()
        train_pass(network, images, labels)

    def loose() -> None:
        for _ in range(steps + 1):
            train_pass(network, images, labels)

    return {"step": step, "tight": tight, "loose": loose}


def timed(call: Callable[[], None], device: torch.device) -> float:
    """Return the seconds of a call: of this process's cores on the CPU, of the clock on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(options: Mapping[str, Any]) -> dict[str, Any]:
    """Time the three in turns and return the medians and ratios."""
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"])
    torch.manual_seed(0)
    network = WideResNet(10, depth=options["depth"], width=options["width"]).to(device).train()
    images = torch.rand(options["batch"], 3, 32, 32, device=device)
    if options["channels_last"] == "true":
        network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    calls = contenders(network, images, torch.arange(options["batch"], device=device) % 10, options)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options["precision"] == "bf16"):
        for _ in range(options["rounds"] + 1):
            for name, call in calls.items():
                seconds[name].append(timed(call, device))
    kept = {name: values[1:] for name, values in seconds.items()}  # the first round warms up
    ratios = {bound: [a / b for a, b in zip(kept["step"], kept[bound], strict=True)] for bound in ("tight", "loose")}
    return {
        "seconds": {name: statistics.median(values) for name, values in kept.items()},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "spread": {name: [min(values), max(values)] for name, values in ratios.items()},
    }


def report(options: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Return the result as Markdown."""
    git = git_state(ROOT)
    setting = ", ".join(f"{key} {value}" for key, value in options.items() if key != "out")
    lines = ["# Cost of an adversarial training step", ""]
    for name, bound in (
        ("tight", f"{options['steps']} gradients to the pictures and one to the parameters"),
        ("loose", f"{options['steps'] + 1} passes with gradients of the parameters"),
    ):
        low, high = found["spread"][name]
        lines.append(f"- {found['ratio'][name]:.3f} ({low:.3f} to {high:.3f}) of {bound}")
    lines += [
        "",
        f"Medians over rounds, smallest to largest in brackets; a step took {found['seconds']['step']:.3f} s.",
        "",
        f"- {setting}",
        f"- commit {str(git['commit'] or 'unknown')[:10]}{'+' if git['dirty'] else ''}, {hardware(1)['machine']}, "
        f"torch {versions()['torch']}, {now()}",
    ]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    options = parse_as(words, DEFAULTS)
    found = measure(options)
    pages.write(report(options, found), found, options, stem="attack")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
