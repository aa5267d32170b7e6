"""Segments of a text for truncated backpropagation: columns side by side, cut into consecutive segments.

B columns, T tokens per column, L tokens per segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import overload

import numpy as np
import torch
from torch import Tensor

from tasks.base import InputError, Shard
from tasks.language.text import Tokens

MEAN_SHARE = (
    0.95  # of segments around the full length; the rest are around half of it (Merity et al. 2018, section 3.1)
)
SPREAD = 5.0  # standard deviation of a segment's length, in tokens
SHORTEST = 5

# One training batch: inputs and targets (b, L) int64, whether a pass over the text starts here, segment length / L.
Segment = tuple[Tensor, Tensor, bool, float]


def columns(tokens: Tokens, count: int, *, option: str) -> Tokens:
    """Cut a text into `count` columns of equal length, (B, T); the remainder of fewer than B tokens is dropped.

    Raises:
        InputError: A column would hold fewer than two tokens; `option` is named.
    """
    length = len(tokens) // count
    if length < 2:
        raise InputError(f"{option}={count}: a text of {len(tokens)} tokens gives columns of {length}; choose fewer")
    return tokens[: count * length].reshape(count, length)


def fixed_lengths(total: int, length: int) -> list[int]:
    """Cut `total` predictions into segments of `length`; the last one may be shorter."""
    return [length] * (total // length) + ([total % length] if total % length else [])


def random_lengths(total: int, length: int, *, seed: int) -> list[int]:
    """Cut `total` predictions into segments of random lengths, as AWD-LSTM does, always equally many.

    A length is drawn from N(length, 5) with probability 0.95 and from N(length / 2, 5) else, and is at least 5.
    The authors draw until the text ends, so that the number of steps differs from epoch to epoch; here it is the
    expected number, and what the draws miss of the total is spread over all segments, less than a token each.
    """
    count = min(total, max(1, round(total / (length * (MEAN_SHARE + (1 - MEAN_SHARE) / 2)))))
    generator = np.random.default_rng(seed)
    means = np.where(generator.random(count) < MEAN_SHARE, length, length / 2)
    lengths = np.maximum(SHORTEST, generator.normal(means, SPREAD).astype(int))
    ends = np.round(np.cumsum(lengths) * (total / lengths.sum())).astype(int)
    # At least one token each, also where the mean length is about one
    least = np.arange(1, count + 1)
    ends = np.minimum(np.maximum.accumulate(np.maximum(ends - least, 0)) + least, total - count + least)
    return [int(each) for each in np.diff(ends, prepend=0)]


class Segments(Sequence[Segment]):
    """A shard's training batches of one epoch; item i is micro-batch i % parts of step i // parts.

    An epoch is `steps` steps from where the one before ended, over pass after pass of the text. Nothing is drawn
    while batches are read, so that skipping costs nothing.

    Args:
        text: (B, T), all columns; this shard's rows are cut from it.
        length: L.
        shard: Whose columns.
        epoch: Counted from 0.
        steps: Steps per epoch; null for one pass over the text.
        start: First step wanted.
        seed: Of the random lengths; null for segments of equal length.
    """

    def __init__(
        self,
        text: Tokens,
        *,
        length: int,
        shard: Shard,
        epoch: int,
        steps: int | None,
        start: int,
        seed: int | None,
    ) -> None:
        self._text, self._length, self._shard, self._seed = text, length, shard, seed
        self._total = text.shape[1] - 1  # predictions of a column: its first token has none
        self._turn, self._ends = 0, self._cuts(0)
        self._pass_steps = len(self._ends)
        self._steps = self._pass_steps if steps is None else steps
        self._first = epoch * self._steps + start
        self._count = max(0, self._steps - start)

    def _cuts(self, turn: int) -> list[int]:
        """Return where each segment of a pass over the text ends."""
        if self._seed is None:
            lengths = fixed_lengths(self._total, self._length)
        else:
            lengths = random_lengths(self._total, self._length, seed=self._seed + 7919 * turn)
        return list(accumulate(lengths))

    def __len__(self) -> int:
        return self._count * self._shard.accumulation_steps

    @overload
    def __getitem__(self, number: int) -> Segment: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Segment]: ...

    def __getitem__(self, number: int | slice) -> Segment | Sequence[Segment]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(number)
        step, part = divmod(number, self._shard.accumulation_steps)
        turn, place = divmod(self._first + step, self._pass_steps)
        if turn != self._turn:
            self._turn, self._ends = turn, self._cuts(turn)
        begin, end = self._ends[place - 1] if place else 0, self._ends[place]
        rows = len(self._text) // (self._shard.count * self._shard.accumulation_steps)
        row = (self._shard.index * self._shard.accumulation_steps + part) * rows
        piece = torch.from_numpy(self._text[row : row + rows, begin : end + 1].astype(np.int64))
        return piece[:, :-1], piece[:, 1:], place == 0, (end - begin) / self._length

    def __iter__(self) -> Iterator[Segment]:
        return (self[i] for i in range(len(self)))
