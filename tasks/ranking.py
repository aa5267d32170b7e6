"""The rank of the right class among all: one rule for top-1 and top-k. B examples, K classes."""

from __future__ import annotations

import torch
from torch import Tensor


def label_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many classes are ahead of each example's own, (B,) int64: 0 is a top-1 hit, below 5 a top-5 hit.

    Of equal logits the first is ahead, as with argmax; topk leaves their order open. A logit that is NaN is ahead of
    all, so that an own logit of NaN is never a hit.

    Args:
        logits: (B, K).
        labels: (B,) int64.
    """
    own = logits.gather(1, labels.unsqueeze(1))
    is_before = torch.arange(logits.shape[1], device=logits.device) < labels.unsqueeze(1)
    return (~(logits <= own) | ((logits == own) & is_before)).sum(1)
