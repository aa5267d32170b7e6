"""Biased-MNIST: background colours of digits, their assignment and painting.

Shapes: N digits, H W pixels. Reference: Bahng et al., arXiv:1910.02806, section 4.2, and their published code,
which the rules follow where the text is silent: the colour of a digit that does not get its own class's is drawn
among the other nine, so that rho = 0.1 leaves no bias.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tasks.base import InputError

# Class -> RGB. 225 in classes 3 and 4 are the published values.
COLOURS = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
    (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
)  # fmt: skip
NUM_CLASSES = len(COLOURS)


def colour_digit(image: Tensor | ArrayLike, bias_label: Tensor | ArrayLike) -> Tensor:
    """Paint a digit white on its bias label's colour: 0 becomes that colour, every other value (255, 255, 255).

    Args:
        image: Grey values, (H, W), or any number of them, (..., H, W).
        bias_label: Which of the ten colours, a number or (...,).

    Returns:
        RGB, uint8, (..., H, W, 3).

    Raises:
        ValueError: if a bias label is not one of 0..9.
    """
    grey, label = torch.as_tensor(image), torch.as_tensor(bias_label, dtype=torch.int64)
    if label.numel() and not (int(label.min()) >= 0 and int(label.max()) < NUM_CLASSES):
        raise ValueError(f"bias_label={label.tolist()}: must be from 0 to {NUM_CLASSES - 1}")
    return paint(grey, label.to(grey.device))


def paint(grey: Tensor, label: Tensor) -> Tensor:
    """Return what `colour_digit` does, without looking at the labels: that would make a GPU's queue wait."""
    colours = torch.tensor(COLOURS, dtype=torch.uint8, device=grey.device)[label]  # (..., 3)
    return torch.where(
        grey.unsqueeze(-1) > 0, torch.full_like(colours, 255)[..., None, None, :], colours[..., None, None, :]
    )


def bias_split(num_samples: int, rho: float, num_confusing: int = NUM_CLASSES - 1) -> tuple[int, list[int]]:
    """Return how many samples of a class keep its colour, and how many get each further colour.

    int(n rho) samples are aligned, truncated as the double product is. The other r are cut into chunks of
    ceil(r / num_confusing): fewer chunks than colours where r is small, and the last one may be shorter.

    Args:
        num_samples: n, samples of the class.
        rho: Share that keeps the colour of its class, from 0 to 1.
        num_confusing: Other colours there are.

    Returns:
        The number of aligned samples, and the sizes of the chunks, at most `num_confusing`.

    Raises:
        InputError: if rho is outside [0, 1], or a count is out of its range.
    """
    check_rho(rho)
    if not num_samples >= 0:
        raise InputError(f"num_samples={num_samples}: must be 0 or more")
    if not 1 <= num_confusing < NUM_CLASSES:
        raise InputError(f"task.num_confusing={num_confusing}: must be from 1 to {NUM_CLASSES - 1}")
    aligned = int(num_samples * rho)
    rest = num_samples - aligned
    size = math.ceil(rest / num_confusing)
    return aligned, [min(size, rest - first) for first in range(0, rest, size or 1)]


def check_rho(rho: float) -> None:
    """Raise InputError unless rho is a share: a number from 0 to 1."""
    if isinstance(rho, bool) or not isinstance(rho, int | float) or not 0 <= rho <= 1:
        raise InputError(f"rho={rho}: must be from 0 to 1, the share of digits that have their class's colour")


def assign_colours(labels: Tensor, rho: float, *, seed: int, num_confusing: int = NUM_CLASSES - 1) -> Tensor:
    """Draw every digit's bias label once, for the whole run.

    In each class the samples are shuffled; the first `int(n rho)` keep their class's colour, and the chunks of the
    rest get the next `num_confusing` classes' colours in a drawn order.

    Args:
        labels: (N,) classes, int64.
        rho: Share of aligned samples.
        seed: Of the draw; two seeds colour other digits.
        num_confusing: Other colours in use.

    Returns:
        (N,) bias labels, int64.
    """
    draw = np.random.RandomState(seed % 2**32)
    bias = labels.clone()
    for label in range(NUM_CLASSES):
        members = (labels == label).nonzero().flatten()
        members = members[torch.from_numpy(draw.permutation(len(members)))]
        first, chunks = bias_split(len(members), rho, num_confusing)
        others = draw.permutation([(label + k) % NUM_CLASSES for k in range(1, num_confusing + 1)])
        for size, other in zip(chunks, others.tolist(), strict=False):
            bias[members[first : first + size]] = other
            first += size
    return bias
