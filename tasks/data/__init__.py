"""Labelled image sets and the seeded, sharded loaders that read them."""

from tasks.data.augment import ColourJitter, RandAugment
from tasks.data.cutmix import CutMix
from tasks.data.fashion_mnist import FashionMnist
from tasks.data.folder import ImageFolderSet
from tasks.data.images import ImageSet, Synthetic, UnreadableImageError
from tasks.data.loader import CorruptImages, eval_batches, train_batches
from tasks.data.parquet import ImageParquetSet
from tasks.data.shards import ImageShardSet

__all__ = [
    "ColourJitter",
    "CorruptImages",
    "CutMix",
    "FashionMnist",
    "ImageFolderSet",
    "ImageParquetSet",
    "ImageSet",
    "ImageShardSet",
    "RandAugment",
    "Synthetic",
    "UnreadableImageError",
    "eval_batches",
    "train_batches",
]
