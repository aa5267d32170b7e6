"""Clusters of pictures by texture: k-means on Gram matrices of filter responses.

Shapes: B pictures, C filters, H W positions.
Reference: Gatys et al., arXiv:1505.07376 for the Gram matrix; Bahng et al., arXiv:1910.02806, section 4.3 for the use.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tasks.data.fashion_mnist import FashionMnist
from tasks.data.imagenet9 import NUM_CLUSTERINGS, TexturedSet

NUM_CLUSTERS = 9


def gram_matrices(responses: Tensor) -> Tensor:
    """Return each picture's Gram matrix of filter responses, divided by C H W, flattened, of length 1.

    Args:
        responses: (B, C, H, W).

    Returns:
        (B, C * C).
    """
    rows = responses.flatten(2)  # (B, C, H W)
    grams = rows @ rows.transpose(1, 2) / rows[0].numel()
    return F.normalize(grams.flatten(1), dim=1)


def cluster(grams: NDArray[Any], *, seed: int) -> NDArray[np.int64]:
    """Return nine clusters' numbers (B,) by k-means on mini-batches of 1,024."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second, which other runs need not spend

    means = MiniBatchKMeans(NUM_CLUSTERS, batch_size=1024, n_init=3, random_state=seed)
    labels: NDArray[np.int64] = means.fit_predict(grams).astype(np.int64)
    return labels


class FashionTextures(FashionMnist, TexturedSet):
    """Fashion-MNIST with texture clusters of its validation pictures, to stand in for 9-Class ImageNet.

    Textures are those that 16 fixed random 5x5 filters see, since no trained network is at hand offline. A sweater
    and a bag of one weave may share a cluster, but nothing makes texture tell the class: it shows that the task
    works, not that a bias was removed. There is no counterpart of ImageNet-A.

    Args:
        name: As `FashionMnist`.
        root: As `FashionMnist`.
        image_size: Side of the pictures handed out, in pixels.
        crop_scale: Area fractions of the random crop.
    """

    FILTERS, KERNEL = 16, 5

    def __init__(
        self,
        name: str = "fashion_mnist_10k",
        root: str | None = None,
        *,
        image_size: int = 32,
        crop_scale: tuple[float, float] = (0.5, 1.0),
    ) -> None:
        super().__init__(name, root, image_size=image_size, crop_scale=crop_scale)
        self.hard = None
        self.val_labels = np.array(self._labels["val"], dtype=np.int64)
        pictures = self._images["val"].float() / 255
        generator = torch.Generator().manual_seed(0)
        filters = torch.randn(self.FILTERS, 1, self.KERNEL, self.KERNEL, generator=generator)
        filters -= filters.mean((2, 3), keepdim=True)  # blind to brightness
        grams = gram_matrices(F.conv2d(pictures, filters).relu()).numpy()
        self.clusterings = tuple(cluster(grams, seed=seed) for seed in range(NUM_CLUSTERINGS))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "clusters": f"random {self.KERNEL}x{self.KERNEL} filters"}
