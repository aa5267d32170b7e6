"""Tied adaptive softmax: word clusters whose output vectors are the input embedding.

N positions, D width, V words. `torch.nn.AdaptiveLogSoftmaxWithLoss` does not serve: it projects every cluster even
where all have one width, gives rare words no bias, and cannot share its weights with an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.base import InputError
from tasks.precision import widen


class TiedAdaptiveSoftmax(nn.Module):
    """Log-probabilities of words: first of a frequent word or of a cluster, then of a word in the cluster.

    `log p(w) = log softmax([E_0 h + b_0; C h + c])_w` for the `cutoffs[0]` most frequent words, and for a word of
    cluster i `log softmax(...)_{cluster i} + log softmax(E_i h + b_i)_w`, with E the embedding (Grave et al. 2017,
    section 4, with equal widths). Without cutoffs it is an ordinary softmax.

    Args:
        num_words: V.
        width: D.
        cutoffs: Where one cluster ends and the next begins, rising, each below V.

    Raises:
        InputError: The cutoffs do not rise or do not lie inside the vocabulary.
    """

    def __init__(self, num_words: int, width: int, cutoffs: Sequence[int] = ()) -> None:
        super().__init__()
        bounds = [0, *cutoffs, num_words]
        if any(not low < high for low, high in pairwise(bounds)):
            raise InputError(
                f"model.cutoffs={list(cutoffs)}: must rise from above 0 to below the vocabulary of {num_words}; "
                "model.cutoffs=[] is an ordinary softmax"
            )
        self.clusters = list(pairwise(bounds[1:]))
        self.head = bounds[1]
        self.bias = nn.Parameter(torch.zeros(num_words))
        self.cluster_weight = nn.Parameter(torch.zeros(len(self.clusters), width))
        self.cluster_bias = nn.Parameter(torch.zeros(len(self.clusters)))

    def _head(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        weight = torch.cat([embedding[: self.head], self.cluster_weight])
        return widen(F.linear(hidden, weight, torch.cat([self.bias[: self.head], self.cluster_bias]))).log_softmax(-1)

    def _inside(self, hidden: Tensor, embedding: Tensor, cluster: tuple[int, int]) -> Tensor:
        """Return the log-probabilities of a cluster's words within it, in float32 at least as those of the head."""
        low, high = cluster
        return widen(F.linear(hidden, embedding[low:high], self.bias[low:high])).log_softmax(-1)

    def forward(self, hidden: Tensor, targets: Tensor, embedding: Tensor) -> Tensor:
        """Return the negative log-probability of each target, (N,), in the order of the targets.

        Args:
            hidden: (N, D).
            targets: (N,) int64, each below V.
            embedding: (V, D).
        """
        head = self._head(hidden, embedding)  # (N, head + clusters)
        if not self.clusters:
            return -head.gather(1, targets.unsqueeze(1)).squeeze(1)
        # Head: the log-probability of a frequent word, or of a target's cluster
        entry = targets.clone()
        for i, (low, high) in enumerate(self.clusters):
            entry[(targets >= low) & (targets < high)] = self.head + i
        logs = head.gather(1, entry.unsqueeze(1)).squeeze(1)
        # Clusters: add the log-probability of the word within its cluster
        for low, high in self.clusters:
            rows = ((targets >= low) & (targets < high)).nonzero().squeeze(1)
            inside = self._inside(hidden[rows], embedding, (low, high))
            logs = logs.index_add(0, rows, inside.gather(1, (targets[rows] - low).unsqueeze(1)).squeeze(1))
        return -logs

    def log_probabilities(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the log-probability of every word, (N, V)."""
        head = self._head(hidden, embedding)
        parts = [head[:, : self.head]]
        for i, cluster in enumerate(self.clusters):
            parts.append(head[:, self.head + i : self.head + i + 1] + self._inside(hidden, embedding, cluster))
        return torch.cat(parts, 1)
