"""Reproducibility: rounding, determinism, random generators, and weights that differ between processes."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.engine.config import Train
from tasks.engine.distributed import World
from tasks.engine.errors import RunFailed

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes per entry -> type to sum bits in
GeneratorStates = dict[str, Any]


def set_reproducibility(train: Train) -> None:
    """Set rounding and determinism of this process. Call it before CUDA is used, which reads one of them only once."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is refused as not deterministic
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = train.deterministic
    torch.use_deterministic_algorithms(train.deterministic)


def rounding_facts(train: Train, device: torch.device) -> dict[str, Any]:
    """Return the rounding of this run for its record: the options, and what torch reports as in force."""
    cuda = torch.backends.cuda.matmul
    return {
        "precision": train.precision,
        "weights": "float32",
        "device": device.type,
        "tf32": {"matmul": cuda.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32},
        "reduced_precision_sums": {
            "bf16": cuda.allow_bf16_reduced_precision_reduction, "fp16": cuda.allow_fp16_reduced_precision_reduction,
        },
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "loss_scaling": train.precision == "fp16" or train.nonfinite == "scale",
        "nonfinite": train.nonfinite or "stop",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def checksums(modules: Mapping[str, nn.Module]) -> tuple[list[str], Tensor]:
    """Return the parameters' names and a sum over the bits of each, int64 (number of parameters,).

    Sums of integers do not depend on their order, so equal bits give equal sums on every device.
    """
    named = [(f"{role}.{name}", p) for role, net in modules.items() for name, p in net.named_parameters()]
    sums = [_bits(p.detach()).sum(dtype=torch.int64) for _, p in named]
    return [name for name, _ in named], torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def _bits(values: Tensor) -> Tensor:
    return values.reshape(-1).view(INTEGERS[values.element_size()])


def check_same_weights(modules: Mapping[str, nn.Module], world: World, *, step: int) -> None:
    """Compare the weights of all processes bit by bit. Collective; free for a single one.

    Raises:
        RunFailed: They differ: a process has drifted unnoticed.
    """
    if world.size == 1:
        return
    names, sums = checksums(modules)
    if (index := world.first_difference(sums)) is not None:
        raise RunFailed(
            f"the processes' weights differ at step {step}, first in {names[index]}: their updates were not the same\n"
            "Nothing was saved since they agreed; run again to resume. Is one machine or library unlike the others?"
        )


def generator_states(device: torch.device) -> GeneratorStates:
    """Return the states of this process's random generators, as tensors and plain containers."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    version, words, gauss = random.getstate()
    states: GeneratorStates = {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(words), gauss],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: GeneratorStates, device: torch.device) -> None:
    """Restore what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def seed_generators(seed: int, rank: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators; each process has its own stream."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    random.seed(mixed)
    np.random.seed(mixed)
    torch.manual_seed(mixed)
