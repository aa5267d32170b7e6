"""Deterministic data loading: batches fixed by (seed, epoch), split over processes and micro-batches.

The item of a loader's data set is a whole batch, by number. So skipping to a step decodes nothing, and what a
batch holds depends on its number and on (seed, epoch) alone, not on workers or on where a run was resumed. What
is made of a picture depends on (seed, epoch) and its own number, so not on the number of processes either.
"""

from __future__ import annotations

import hashlib
import logging
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from tasks.base import InputError, Shard
from tasks.data.images import ImageSet, Split, UnreadableImageError

_logger = logging.getLogger("tasks.data")

# What a worker sends: (number, reason) of unreadable pictures, and the batch: images (B, 3, S, S) uint8, labels (B,)
# int64, and what a mix adds to them.
Loaded = tuple[list[tuple[int, str]], tuple[Tensor, ...]]
Augment = Callable[[Tensor], Tensor]  # a picture (3, S, S) uint8 to another
Mix = Callable[[Tensor, Tensor], tuple[Tensor, ...]]  # images and labels to these, mixed, and more


def derive_seed(*parts: int) -> int:
    """Return a 63-bit seed that depends on every number given; close inputs give unrelated seeds."""
    text = ",".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@contextmanager
def forked_generators() -> Iterator[None]:
    """Give the global CPU generators of python, numpy and torch back as they were.

    `torch.random.fork_rng` is not used: it would also seed CUDA, whose generator belongs to the networks.
    """
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def seed_generators(seed: int) -> None:
    """Seed the global CPU generators of python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


class CorruptImages:
    """Counts pictures that could not be decoded, names each once, and ends a run that meets too many.

    Args:
        data: The set they belong to; its `max_corrupt` is the number allowed in each split, by default 0.1 %
            of the split and at least 10.
    """

    def __init__(self, data: ImageSet) -> None:
        self._data = data
        self._seen: dict[Split, dict[int, None]] = {"train": {}, "val": {}}

    @property
    def count(self) -> int:
        """Number of different pictures met so far."""
        return sum(len(seen) for seen in self._seen.values())

    def limit(self, split: Split) -> int:
        """Return how many pictures of a split may be unreadable; never all of them."""
        num = self._data.num_examples[split]
        allowed = self._data.max_corrupt
        return min(max(10, num // 1000) if allowed is None else allowed, num - 1)

    def report(self, split: Split, unreadable: Sequence[tuple[int, str]]) -> None:
        """Note pictures that a batch could not read.

        Raises:
            InputError: if there are now more than the limit.
        """
        seen = self._seen[split]
        for index, reason in unreadable:
            if index not in seen:
                seen[index] = None
                _logger.warning("unreadable image left out: %s", reason)
        self._check(split)

    def state(self) -> list[tuple[str, int]]:
        """Return the split and number of each picture met so far, for other processes and for checkpoints."""
        return [(split, index) for split, seen in self._seen.items() for index in seen]

    def add_state(self, state: Sequence[tuple[Split, int]]) -> None:
        """Take the pictures of another process, or of the run before it was resumed; raises as `report`."""
        for split, index in state:
            self._seen[split][index] = None
        for split in {split for split, _ in state}:
            self._check(split)

    def _check(self, split: Split) -> None:
        seen = self._seen[split]
        limit = self.limit(split)
        if len(seen) > limit:
            paths = ", ".join(self._data.location(split, index) for index in list(seen)[:3])
            total = self._data.num_examples[split]
            raise InputError(
                f"{len(seen)} unreadable {split} images of {total}: more than data.max_corrupt allows "
                f"({limit}); first: {paths}"
            )


class MicroBatches(Dataset[Any]):
    """Which examples each training micro-batch of an epoch holds, for the sets of all tasks.

    Item i is micro-batch i % accumulation_steps of this process's share of step i // accumulation_steps.

    Args:
        num_examples: Examples in the training split; the last incomplete global batch is dropped.
        batch_size: Size of a global batch, over all processes and micro-batches.
        seed: With `epoch` it fixes the order.
        epoch: Counted from 0.
        shard: This process's share: a contiguous slice of every global batch.
    """

    def __init__(self, num_examples: int, *, batch_size: int, seed: int, epoch: int, shard: Shard) -> None:
        self._seed, self._epoch, self._shard, self._batch_size = seed, epoch, shard, batch_size
        self._micro_size = batch_size // (shard.count * shard.accumulation_steps)
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
        self._order = torch.randperm(num_examples, generator=generator)[: num_examples - num_examples % batch_size]

    def __len__(self) -> int:
        return len(self._order) // self._batch_size * self._shard.accumulation_steps

    def locate(self, number: int) -> tuple[int, list[int]]:
        """Return a micro-batch's step and the numbers of its examples."""
        step, part = divmod(number, self._shard.accumulation_steps)
        slot = self._shard.index * self._shard.accumulation_steps + part
        first = step * self._batch_size + slot * self._micro_size
        return step, self._order[first : first + self._micro_size].tolist()

    def from_step(self, start: int) -> range:
        """Return the numbers of the micro-batches from a step on."""
        return range(start * self._shard.accumulation_steps, len(self))


class _TrainBatches(MicroBatches):
    """Training micro-batches of an image set, augmented and mixed."""

    def __init__(
        self,
        data: ImageSet,
        *,
        batch_size: int,
        seed: int,
        epoch: int,
        shard: Shard,
        patience: int,
        augment: Augment | None = None,
        mix: Mix | None = None,
    ) -> None:
        super().__init__(data.num_examples["train"], batch_size=batch_size, seed=seed, epoch=epoch, shard=shard)
        self._data, self._patience, self._augment, self._mix = data, patience, augment, mix

    def __getitem__(self, number: int) -> Loaded:
        step, indices = self.locate(number)
        images: list[Tensor] = []
        labels: list[int] = []
        unreadable: list[tuple[int, str]] = []
        with forked_generators():
            for index in indices:
                image, label = self._load(index, unreadable)
                images.append(image)
                labels.append(label)
            batch: tuple[Tensor, ...] = (torch.stack(images), torch.tensor(labels))
            if self._mix is not None:  # every share of a step draws the same
                seed_generators(derive_seed(self._seed, self._epoch, step, 1))
                batch = self._mix(*batch)
        return unreadable, batch

    def _load(self, index: int, unreadable: list[tuple[int, str]]) -> tuple[Tensor, int]:
        """Return picture `index`, or the next readable one in the order of the set."""
        num = self._data.num_examples["train"]
        for attempt in range(min(self._patience + 1, num)):
            candidate = (index + attempt) % num
            seed_generators(derive_seed(self._seed, self._epoch, index))
            try:
                image, label = self._data.train_example(candidate)
            except UnreadableImageError as error:
                unreadable.append((candidate, str(error)))
                continue
            return image if self._augment is None else self._augment(image), label
        # More than allowed are unreadable: the main process raises on the report, this picture is never used.
        size = self._data.image_size
        return torch.zeros(3, size, size, dtype=torch.uint8), 0


class _EvalBatches(Dataset[Loaded]):
    """Item i: validation batch i, in the order of the set, without the pictures that cannot be read."""

    def __init__(self, data: ImageSet, *, batch_size: int) -> None:
        self._data, self._batch_size = data, batch_size

    def __len__(self) -> int:
        return -(-self._data.num_examples["val"] // self._batch_size)

    def __getitem__(self, number: int) -> Loaded:
        size = self._data.image_size
        first = number * self._batch_size
        images = [torch.empty(0, 3, size, size, dtype=torch.uint8)]
        labels: list[int] = []
        unreadable: list[tuple[int, str]] = []
        with forked_generators():
            for index in range(first, min(first + self._batch_size, self._data.num_examples["val"])):
                try:
                    image, label = self._data.eval_example(index)
                except UnreadableImageError as error:
                    unreadable.append((index, str(error)))
                    continue
                images.append(image.unsqueeze(0))
                labels.append(label)
        return unreadable, (torch.cat(images), torch.tensor(labels, dtype=torch.int64))


class Batches:
    """An iterable with a length of (images (B, 3, S, S) uint8, labels (B,) int64, ...); a pass starts its workers.

    Workers do not outlive a pass: starting them costs a fork, and between epochs none would hold memory.
    """

    def __init__(
        self,
        source: Dataset[Loaded],
        numbers: range,
        *,
        split: Split,
        corrupt: CorruptImages,
        num_workers: int,
    ) -> None:
        self._source, self._numbers = source, numbers
        self._split, self._corrupt, self._num_workers = split, corrupt, num_workers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for unreadable, batch in batch_loader(self._source, self._numbers, self._num_workers):
            self._corrupt.report(self._split, unreadable)
            yield batch


def train_batches(
    data: ImageSet,
    shard: Shard,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int,
    corrupt: CorruptImages,
    num_workers: int,
    augment: Augment | None = None,
    mix: Mix | None = None,
) -> Batches:
    """Return an epoch's batches of a shard from step `start` on; the last incomplete global batch is dropped.

    Args:
        data: The set.
        shard: This process's share: it gets a contiguous slice of every global batch, cut into `parts`.
        batch_size: Size of a global batch, over all processes and micro-batches.
        seed: With `epoch` it fixes the order, and with a picture's number that picture's augmentation.
        epoch: Counted from 0.
        start: First step wanted.
        corrupt: Where unreadable pictures are reported.
        num_workers: Decoding processes; 0 decodes in this one.
        augment: Changes each picture after the set's own view of it; seeded by seed, epoch and the picture's number.
        mix: Mixes the examples of a batch; seeded by seed, epoch and step, so that all processes and micro-batches of
            a step draw alike, each within its own examples.

    Raises:
        InputError: if the batch does not divide evenly or exceeds the training split.
    """
    check_batch_size(batch_size, shard, data.num_examples["train"], of=f"images of {data.name}")
    source = _TrainBatches(
        data,
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        shard=shard,
        patience=corrupt.limit("train"),
        augment=augment,
        mix=mix,
    )
    return Batches(source, source.from_step(start), split="train", corrupt=corrupt, num_workers=num_workers)


def check_batch_size(batch_size: int, shard: Shard, num_examples: int, *, of: str) -> None:
    """Refuse a global batch that does not divide evenly or exceeds the training split.

    Args:
        batch_size: Size of a global batch.
        shard: This process's share.
        num_examples: Examples in the training split.
        of: Their kind and set, for the message.

    Raises:
        InputError: The batch does not divide evenly or exceeds the training split.
    """
    if batch_size % (shard.count * shard.accumulation_steps):
        raise InputError(
            f"train.batch_size={batch_size}: must divide by processes x micro-batches "
            f"({shard.count} x {shard.accumulation_steps})"
        )
    if batch_size > num_examples:
        raise InputError(f"train.batch_size={batch_size}: exceeds the {num_examples} training {of}")


def batch_loader(source: Dataset[Any], numbers: range, num_workers: int) -> DataLoader[Any]:
    """Return a loader of the batches with these numbers, whose items are whole batches."""
    return DataLoader(
        source,
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        collate_fn=_shared,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_signals,
        # Without a generator of its own, starting a pass would draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )


def eval_batches(data: ImageSet, shard: Shard, *, batch_size: int, corrupt: CorruptImages, num_workers: int) -> Batches:
    """Return validation batches index, index + count, ... of `batch_size` pictures, the last one shorter."""
    source = _EvalBatches(data, batch_size=batch_size)
    numbers = range(shard.index, len(source), shard.count)
    return Batches(source, numbers, split="val", corrupt=corrupt, num_workers=num_workers)


def ignore_signals(worker_id: int) -> None:
    """Let a worker outlive the signals that ask a run to stop: the main process saves, then ends its workers.

    Schedulers and terminals signal the whole process group; a worker that dies of it takes the run down
    before the checkpoint is written.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _shared(loaded: Any) -> Any:
    """Move a worker's batch to shared memory here: torch's sending thread would swallow the error where that is full.

    The batch would then never arrive, and the main process would wait for it for ever.
    """
    if get_worker_info() is not None:
        _share(loaded)
    return loaded


def _share(value: Any) -> None:
    if isinstance(value, Tensor):
        value.share_memory_()
    elif isinstance(value, Mapping):
        for each in value.values():
            _share(each)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for each in value:
            _share(each)
