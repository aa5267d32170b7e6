"""Deterministic batches of waveforms, fixed by (seed, epoch): random crops for training, chunks for evaluation.

As with pictures, an item is a whole batch by number: skipping to a step decodes nothing, and a clip's crop depends on
(seed, epoch) and its own number alone. B clips, N samples, M chunks of a batch's clips, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tasks.audio.clips import ClipSet
from tasks.base import Shard
from tasks.data.loader import MicroBatches, batch_loader, check_batch_size, derive_seed


def crop(data: ClipSet, split: str, index: int, *, samples: int, seed: int) -> Tensor:
    """Return a random stretch (N,) of a clip; a shorter clip lies at a random place among zeros."""
    length = data.length(split, index)
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(abs(length - samples) + 1, (), generator=generator))
    if length >= samples:
        return torch.from_numpy(data.samples(split, index, offset, offset + samples))
    wave = torch.zeros(samples)
    wave[offset : offset + length] = torch.from_numpy(data.samples(split, index))
    return wave


def chunk(data: ClipSet, split: str, index: int, *, samples: int, chunks: int) -> Tensor:
    """Return what scoring sees of a clip, (M, N): chunks that begin every (length - N) // M samples.

    So the last one ends before the clip does, as in the reference. Where all of them would be equal, since the clip is
    no longer than one, it is one, in the middle of zeros. With `chunks` 1 it is the middle of the clip.
    """
    length = data.length(split, index)
    if length <= samples:
        wave = torch.zeros(1, samples)
        start = (samples - length) // 2
        wave[0, start : start + length] = torch.from_numpy(data.samples(split, index))
        return wave
    if chunks == 1:
        start = (length - samples) // 2
        return torch.from_numpy(data.samples(split, index, start, start + samples)).unsqueeze(0)
    wave = torch.from_numpy(data.samples(split, index))
    hop = (length - samples) // chunks
    return torch.stack([wave[i * hop : i * hop + samples] for i in range(chunks)])


class _TrainBatches(MicroBatches):
    """Training micro-batches: random crops of clips, and their targets."""

    def __init__(self, data: ClipSet, shard: Shard, *, samples: int, batch_size: int, seed: int, epoch: int) -> None:
        super().__init__(data.num("train"), batch_size=batch_size, seed=seed, epoch=epoch, shard=shard)
        self._data, self._samples = data, samples

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        _, indices = self.locate(number)
        waves = [
            crop(self._data, "train", i, samples=self._samples, seed=derive_seed(self._seed, self._epoch, i))
            for i in indices
        ]
        return torch.stack(waves), self._data.targets("train", indices)


class _EvalBatches(Dataset[Any]):
    """Item i: the chunks (M, N) of clips i * B to (i + 1) * B, the chunks a clip has (B,), and the targets."""

    def __init__(self, data: ClipSet, split: str, *, samples: int, chunks: int, batch_size: int) -> None:
        self._data, self._split, self._samples, self._chunks = data, split, samples, chunks
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-self._data.num(self._split) // self._batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        first = number * self._batch_size
        numbers = range(first, min(first + self._batch_size, self._data.num(self._split)))
        parts = [chunk(self._data, self._split, i, samples=self._samples, chunks=self._chunks) for i in numbers]
        counts = torch.tensor([len(part) for part in parts])
        return torch.cat(parts), counts, self._data.targets(self._split, numbers)


class Batches:
    """An iterable with a length; a pass starts its workers, which do not outlive it."""

    def __init__(self, source: Dataset[Any], numbers: range, num_workers: int) -> None:
        self._source, self._numbers, self._num_workers = source, numbers, num_workers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Any]:
        yield from batch_loader(self._source, self._numbers, self._num_workers)


def train_batches(
    data: ClipSet, shard: Shard, *, samples: int, batch_size: int, seed: int, epoch: int, start: int, num_workers: int
) -> Batches:
    """Return an epoch's batches of a shard from step `start` on; the last incomplete global batch is dropped.

    Raises:
        InputError: The batch does not divide evenly, or exceeds the training split.
    """
    check_batch_size(batch_size, shard, data.num("train"), of=f"clips of {data.name}")
    source = _TrainBatches(data, shard, samples=samples, batch_size=batch_size, seed=seed, epoch=epoch)
    return Batches(source, source.from_step(start), num_workers)


def eval_batches(
    data: ClipSet, split: str, shard: Shard, *, samples: int, chunks: int, batch_size: int, num_workers: int
) -> Batches:
    """Return batches index, index + count, ... of a split, every clip once, the last batch shorter."""
    source = _EvalBatches(data, split, samples=samples, chunks=chunks, batch_size=batch_size)
    return Batches(source, range(shard.index, len(source), shard.count), num_workers)


def mean_by_clip(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean over each clip's chunks, (B, K), of values (M, K)."""
    clips = torch.arange(len(counts), device=values.device)
    # As a product of matrices the order of the sum is fixed, which index_add does not promise on a GPU.
    belongs = (torch.repeat_interleave(clips, counts) == clips.unsqueeze(1)).to(values.dtype)  # (B, M)
    return belongs @ values / counts.unsqueeze(1)
