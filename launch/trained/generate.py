"""Draw text from a trained language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from evidence.runs.run import ReadError
from launch.trained.restore import build, configuration, weights
from tasks.base import InputError
from tasks.language import Corpus


def number(values: dict[str, str], key: str, *, kind: type = int, low: float = 0) -> float:
    """Return an option as a number of its kind.

    Raises:
        ReadError: It is none, or below the lowest value allowed.
    """
    try:
        value = kind(values[key])
    except ValueError:
        value = low - 1
    if not low <= value < float("inf"):
        raise ReadError(
            f"{key}={values[key]}: must be {'a whole number' if kind is int else 'a number'} of at least {low}"
        )
    return float(value)


def load(folder: Path, *, checkpoint: str, data_root: str) -> tuple[nn.Module, Corpus]:
    """Return a run's network in evaluation mode, and its text.

    Raises:
        ReadError: The folder holds no run of a language experiment, no such checkpoint, or its text is gone.
    """
    config = configuration(folder)
    if not str(config.get("task", {}).get("_target_", "")).startswith("tasks.language."):
        raise ReadError(f"run={folder}: is a run of {config.get('experiment_name')}, not of a language experiment")
    data = {**config["data"], **({"root": data_root} if data_root else {})}
    try:
        corpus = build(data)
        network = build(config["model"])(len(corpus.words))
    except InputError as error:
        raise ReadError(str(error)) from None
    network.load_state_dict(weights(folder, checkpoint)["model"])
    return network.eval(), corpus


@torch.no_grad()
def generate(
    network: nn.Module, prompt: Sequence[int], *, length: int, temperature: float, top: int, seed: int
) -> list[int]:
    """Return `length` tokens drawn one after the other, each from the probabilities after all before it.

    Args:
        network: Its `log_probabilities(inputs, memory)` returns (1, V) and the new memory.
        prompt: Tokens to begin with, at least one.
        length: Tokens to draw.
        temperature: Divides log-probabilities; 0 takes the likeliest token.
        top: Draw among so many likeliest tokens; 0 among all.
        seed: Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    logs, memory = network.log_probabilities(torch.tensor([list(prompt)]), None)  # type: ignore[operator]
    drawn: list[int] = []
    while len(drawn) < length:
        scores = logs[0].double()
        if top:
            scores[scores < scores.topk(min(top, len(scores))).values[-1]] = -torch.inf
        if temperature == 0:
            token = int(scores.argmax())
        else:
            token = int(torch.multinomial((scores / temperature).softmax(0), 1, generator=generator))
        drawn.append(token)
        logs, memory = network.log_probabilities(torch.tensor([[token]]), memory)  # type: ignore[operator]
    return drawn
