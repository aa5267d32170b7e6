"""The dependence between two networks' features: RBF kernels and the unbiased estimator of HSIC.

Shapes: n samples of a batch, D features.
References: Bahng et al., "Learning De-biased Representations with Biased Representations", arXiv:1910.02806
(ReBias); Song et al., "Feature Selection via Dependence Maximization", JMLR 13 (2012), for the estimator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_SAMPLES = 4  # the estimator averages over tuples of four different samples


def squared_distances(features: Tensor) -> Tensor:
    """Return ||x_i - x_j||^2 of every two rows, exactly zero on the diagonal.

    Args:
        features: (n, ...), flattened from dimension 1.

    Returns:
        (n, n), of the features' dtype.
    """
    rows = features.flatten(1)
    squares = rows.square().sum(1)
    distances = squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.T
    # Rounding may leave the product a little above the squares; what is clamped has no gradient to lose.
    off_diagonal = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(off_diagonal, distances.clamp(min=0), torch.zeros_like(distances))


def rbf_kernel(features: Tensor, sigma: float | Tensor) -> Tensor:
    """Return the Gaussian kernel K_ij = exp(-||x_i - x_j||^2 / (2 sigma^2)).

    Args:
        features: (n, ...), flattened from dimension 1.
        sigma: Bandwidth, positive, in the features' unit.

    Returns:
        (n, n), of the features' dtype, with ones on the diagonal.

    Raises:
        ValueError: if sigma is not positive and finite.
    """
    if not 0 < float(sigma) < float("inf"):
        raise ValueError(f"sigma={float(sigma)}: must be positive and finite")
    return torch.exp(-squared_distances(features) / (2 * sigma**2))


def hsic_unbiased(kernel_x: Tensor, kernel_y: Tensor) -> Tensor:
    """Return the unbiased estimate of the Hilbert-Schmidt independence criterion.

    With the diagonals of K and L set to zero and 1 the vector of ones,

        HSIC = [ tr(K L) + (1'K 1)(1'L 1) / ((n-1)(n-2)) - 2 (1'K L 1) / (n-2) ] / (n (n-3)),

    the mean of K_ij L_ij + K_ij L_qr - 2 K_ij L_iq over all four different i, j, q, r. It can be negative.

    Args:
        kernel_x: K, (n, n), symmetric.
        kernel_y: L, (n, n), symmetric.

    Returns:
        0-d, of the kernels' dtype.

    Raises:
        ValueError: if the kernels are not square, differ in size, or n < 4.

    Reference: Song et al. 2012, equation 4; ReBias, section 3.3.
    """
    if kernel_x.ndim != 2 or kernel_x.shape[0] != kernel_x.shape[1] or kernel_x.shape != kernel_y.shape:
        raise ValueError(f"kernels of shapes {tuple(kernel_x.shape)} and {tuple(kernel_y.shape)}: must be n x n, alike")
    n = len(kernel_x)
    if n < MIN_SAMPLES:
        raise ValueError(f"{n} samples: the unbiased HSIC needs at least {MIN_SAMPLES}")
    # Subtracting the diagonal as a vector, as the published code does, takes it off every row: right only for
    # kernels whose diagonal is constant.
    k = kernel_x - torch.diag(kernel_x.diagonal())
    m = kernel_y - torch.diag(kernel_y.diagonal())
    # The three terms of equation 4, the last by row sums: 1'K L 1 = (1'K)(L 1)
    trace = (k * m.T).sum()
    rows_k, rows_m = k.sum(0), m.sum(1)
    total = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return (trace + total - 2 * (rows_k @ rows_m) / (n - 2)) / (n * (n - 3))


def median_sigma(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the square root of the median squared distance, ReBias's choice of a bandwidth.

    All n^2 distances inside each batch count, the zeros of the diagonal too; none between batches. At that
    distance the kernel is exp(-1/2). Of an even number of distances the two middle ones are averaged.

    Args:
        features: One batch (n, ...) or several, each flattened from dimension 1.

    Returns:
        0-d, of the features' dtype, without gradient.

    Raises:
        ValueError: if there are no features.
    """
    batches = [features] if isinstance(features, Tensor) else list(features)
    distances = [squared_distances(batch.detach()).flatten() for batch in batches]
    if not sum(len(batch) for batch in distances):
        raise ValueError("no features to take the median distance of")
    ordered = torch.cat(distances).sort().values
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return (middle / 2).sqrt()
