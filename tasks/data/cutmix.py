"""CutMix: each picture of a batch gets a rectangle of another one, and their labels share the target by area.

Shapes: B examples, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tasks.base import InputError


class CutMix:
    """One rectangle and one random pairing per batch.

    The rectangle's sides are S sqrt(1 - λ) with λ ~ Beta(alpha, alpha), its centre is uniform, and what lies outside
    the picture is cut off; λ is then the exact share that is kept. It draws from numpy's and torch's global generators.

    Args:
        alpha: Parameter of the Beta distribution, above 0; 1 makes λ uniform.
        prob: Share of batches that are mixed: 1 for ImageNet, 0.5 for CIFAR in the reference code.

    Reference:
        Yun et al., arXiv:1905.04899, section 3; ImageNet command of clovaai/CutMix-PyTorch.
    """

    def __init__(self, alpha: float = 1.0, *, prob: float = 1.0) -> None:
        if not alpha > 0:
            raise InputError(f"task.mix.alpha={alpha}: must be above 0")
        if not 0 <= prob <= 1:
            raise InputError(f"task.mix.prob={prob}: must lie in 0 to 1")
        self.alpha, self.prob = alpha, prob

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, 3, S, S).
            labels: (B,).

        Returns:
            Mixed pictures (B, 3, S, S), the labels of what was kept (B,), those of the rectangles (B,), and λ (), the
            share of each picture that was kept, float32.
        """
        if not np.random.random_sample() < self.prob:
            return images, labels, labels, torch.tensor(1.0)
        height, width = images.shape[-2:]
        # lambda ~ Beta(alpha, alpha), and a rectangle of area 1 - lambda around a uniform centre
        kept_share = np.random.beta(self.alpha, self.alpha)
        top, bottom = _span(height, kept_share)
        left, right = _span(width, kept_share)
        # Paste the partner's rectangle
        partner = torch.randperm(len(images))
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        # lambda again from the rectangle as clipped at the border
        share = 1 - (bottom - top) * (right - left) / (height * width)
        return mixed, labels, labels[partner], torch.tensor(share)


def _span(side: int, kept_share: float) -> tuple[int, int]:
    """Return the ends, inside the picture, of a cut of length side x sqrt(1 - kept_share) around a uniform centre."""
    length, centre = int(side * np.sqrt(1 - kept_share)), np.random.randint(side)
    return max(centre - length // 2, 0), min(centre + length // 2, side)
