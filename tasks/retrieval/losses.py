"""Losses of metric learning on l2-normalised embeddings.

Both compare every example of a batch with every other, so neither is a mean over examples: the loss of a batch is not
the mean of the losses of its halves. Shapes: B examples, D features, P proxies (one a training class), T triplets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.base import InputError


def proxy_anchor_loss(
    embeddings: Tensor, labels: Tensor, proxies: Tensor, *, alpha: float = 32, margin: float = 0.1
) -> Tensor:
    """Return the Proxy-Anchor loss of a batch.

    With cosines s(x, p), P+ the proxies that have an example in the batch, and X+_p, X-_p a proxy's own and other
    examples:

        1/|P+| sum_{p in P+} log(1 + sum_{x in X+_p} exp(-alpha (s(x, p) - margin)))
        + 1/|P| sum_p log(1 + sum_{x in X-_p} exp(alpha (s(x, p) + margin)))

    Half precision is raised to float32: exp(32 * 1.1) is beyond float16.

    Args:
        embeddings: (B, D), of any length.
        labels: (B,), whole numbers in 0..P-1.
        proxies: (P, D), of any length.
        alpha: Sharpness of the soft maximum, positive.
        margin: Cosine by which own examples must be nearer and others farther, at least 0.

    Returns:
        0-d, in the precision of the embeddings, at least float32.

    Raises:
        InputError: Shapes do not fit, a label has no proxy, or an option is out of its range.

    Reference:
        Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, equation 4.
    """
    _check(embeddings, labels, margin)
    if not alpha > 0:
        raise InputError(f"alpha is {alpha}; it must be positive")
    if proxies.ndim != 2 or proxies.shape[1] != embeddings.shape[1]:
        raise InputError(f"proxies are {tuple(proxies.shape)}; they must be (P, {embeddings.shape[1]}) as embeddings")
    if not (int(labels.min()) >= 0 and int(labels.max()) < len(proxies)):
        raise InputError(f"labels span {int(labels.min())}..{int(labels.max())}; {len(proxies)} proxies have 0..P-1")
    with torch.autocast(embeddings.device.type, enabled=False):
        cosine = unit_rows(embeddings) @ unit_rows(proxies).to(_working(embeddings)).T  # (B, P)
        is_own_class = F.one_hot(labels.long(), len(proxies)).bool()  # (B, P)
        # Pull: proxies with examples in the batch; push: all proxies (equation 4)
        pull = _log1p_sum_exp(-alpha * (cosine - margin), is_own_class)[is_own_class.any(0)]
        push = _log1p_sum_exp(alpha * (cosine + margin), ~is_own_class)
        return pull.mean() + push.mean()


def _log1p_sum_exp(values: Tensor, chosen: Tensor) -> Tensor:
    """Return log(1 + sum over chosen rows of exp(values)) per column, without overflow: (B, P) -> (P,)."""
    masked = values.masked_fill(~chosen, -torch.inf)
    return torch.logsumexp(torch.cat([masked, masked.new_zeros(1, masked.shape[1])]), 0)


def semihard_triplets(embeddings: Tensor, labels: Tensor, *, margin: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Return the semi-hard triplets of a batch: 0 < d(anchor, negative) - d(anchor, positive) <= margin.

    All ordered ones; d is the Euclidean distance (not its square) between l2-normalised embeddings. A batch of one
    class, or without two examples of one class, has none.

    Args:
        embeddings: (B, D), of any length.
        labels: (B,).
        margin: Distance by which a negative must be farther to be easy, at least 0.

    Returns:
        Three index vectors (T,), in lexicographic order.

    Raises:
        InputError: Shapes do not fit, or the margin is out of its range.

    Reference:
        Schroff et al., "FaceNet", CVPR 2015, section 3.2, which squares the distances and keeps one negative a pair;
        all of them and plain distances are the code that the AdamP paper builds on.
    """
    _check(embeddings, labels, margin)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        distance = _distances(unit_rows(embeddings))
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        # Every (anchor, positive), then every negative within the margin behind the positive
        pairs = same.clone().fill_diagonal_(False).nonzero()  # (pairs, 2), anchor and positive
        gap = distance[pairs[:, 0]] - distance[pairs[:, 0], pairs[:, 1]].unsqueeze(1)  # (pairs, B)
        semihard = ~same[pairs[:, 0]] & (gap > 0) & (gap <= margin)
        pair, negative = semihard.nonzero(as_tuple=True)
        return pairs[pair, 0], pairs[pair, 1], negative


def semihard_triplet_loss(embeddings: Tensor, labels: Tensor, *, margin: float = 0.1) -> Tensor:
    """Return the triplet loss of a batch: the mean of the positive d(a,p) - d(a,n) + margin over `semihard_triplets`.

    Without any such triplet it is exactly 0 and still has a (zero) gradient, so that a step can be taken.

    Args:
        embeddings: (B, D), of any length.
        labels: (B,).
        margin: As in `semihard_triplets`.

    Returns:
        0-d, in the precision of the embeddings, at least float32.

    Raises:
        InputError: Shapes do not fit, or the margin is out of its range.
    """
    return triplet_loss(embeddings, semihard_triplets(embeddings, labels, margin=margin), margin=margin)


def triplet_loss(embeddings: Tensor, triplets: tuple[Tensor, Tensor, Tensor], *, margin: float = 0.1) -> Tensor:
    """Return the mean of the positive d(a,p) - d(a,n) + margin over given triplets; 0 when there is none.

    Args:
        embeddings: (B, D), of any length.
        triplets: Anchors, positives and negatives, each (T,).
        margin: At least 0.
    """
    anchor, positive, negative = triplets
    with torch.autocast(embeddings.device.type, enabled=False):
        unit = unit_rows(embeddings)
        near = _lengths(unit[anchor] - unit[positive])
        far = _lengths(unit[anchor] - unit[negative])
        hinge = (near - far + margin).relu()  # (T,)
        active = (hinge > 0).sum().clamp(min=1)
        # The empty sum alone has no path to the embeddings.
        return (hinge.sum() + 0 * unit.sum()) / active


def unit_rows(rows: Tensor) -> Tensor:
    """Return rows of Euclidean length 1, in float32 or better; a zero row stays zero."""
    return F.normalize(rows.to(_working(rows)), dim=1, eps=1e-12)


def _working(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


def _distances(unit: Tensor) -> Tensor:
    # By differences, not through the matrix product: near 0 that would lose half of the digits.
    return torch.cdist(unit, unit, compute_mode="donot_use_mm_for_euclid_dist")


def _lengths(rows: Tensor) -> Tensor:
    """Return Euclidean lengths whose gradient is 0, not NaN, at a zero row (two copies of one picture)."""
    squares = rows.square().sum(1)
    zero = squares == 0
    return torch.where(zero, 0.0, squares.masked_fill(zero, 1.0).sqrt())


def _check(embeddings: Tensor, labels: Tensor, margin: float) -> None:
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise InputError(f"embeddings are {tuple(embeddings.shape)}; they must be (B, D) with at least one row")
    if labels.shape != embeddings.shape[:1]:
        raise InputError(f"labels are {tuple(labels.shape)}; they must be ({len(embeddings)},), one an embedding")
    if not margin >= 0:
        raise InputError(f"margin is {margin}; it must be at least 0")
