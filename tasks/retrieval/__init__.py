"""Image retrieval (metric learning): losses, exact recall, networks, the official sets and a small one."""

from tasks.retrieval.emoji import EmojiDesigns
from tasks.retrieval.losses import proxy_anchor_loss, semihard_triplet_loss, semihard_triplets
from tasks.retrieval.networks import EmbeddingNet
from tasks.retrieval.recall import recall_at_k
from tasks.retrieval.sets import OfficialSet, RetrievalSet
from tasks.retrieval.task import Retrieval

__all__ = [
    "EmbeddingNet",
    "EmojiDesigns",
    "OfficialSet",
    "Retrieval",
    "RetrievalSet",
    "proxy_anchor_loss",
    "recall_at_k",
    "semihard_triplet_loss",
    "semihard_triplets",
]
