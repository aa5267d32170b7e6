"""Language modelling: next-token prediction with a memory carried from segment to segment.

B columns of a batch, T tokens of a column, L tokens of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tasks.base import Batch, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.data.identity import data_digest
from tasks.language.segments import Segments, columns, fixed_lengths
from tasks.language.text import Corpus
from tasks.precision import widen


@dataclass(frozen=True)
class Scoring:
    """How a text is cut up to score it.

    Attributes:
        columns: Side by side; the remainder of fewer tokens is dropped, and each column starts without memory.
            1 scores every token but the first.
        length: Tokens a segment.
        options: Handed to the network, e.g. {"memory_length": 640, "clamp": 400, "same_length": True}.
    """

    columns: int = 10
    length: int = 150
    options: Mapping[str, Any] = field(default_factory=dict)


class LanguageModel(Task):
    """A language model on a `Corpus`.

    Args:
        data: The text.
        model: Builds the network from the number of words; its forward returns the loss of each token, the memory for
            the next segment, and a penalty.
        columns: Global batch: columns of text side by side, over all processes and micro-batches.
        length: Tokens of a training segment.
        seed: Of the random segment lengths.
        random_lengths: Draw each segment's length, and scale the learning rate by it (Merity et al. 2018, section 3.1).
        epoch_steps: Steps per epoch; null for one pass over the text. The memory starts anew with each pass only.
        val: How the validation text is scored after each epoch; a `Scoring` or its attributes.
        tests: Name -> how the test text is scored at the end, with the best weights.
    """

    monitor = "-val/loss"

    def __init__(
        self,
        data: Corpus,
        model: Callable[[int], nn.Module],
        *,
        columns: int,
        length: int,
        seed: int,
        random_lengths: bool = False,
        epoch_steps: int | None = None,
        val: Scoring | Mapping[str, Any] | None = None,
        tests: Mapping[str, Scoring | Mapping[str, Any]] | None = None,
    ) -> None:
        for option, value in (
            ("train.batch_size", columns),
            ("task.length", length),
            ("task.epoch_steps", epoch_steps),
        ):
            if value is not None and not value >= 1:
                raise InputError(f"{option}={value}: must be at least 1")
        self.data, self.columns, self.length, self.seed = data, columns, length, seed
        self.random_lengths, self.epoch_steps = random_lengths, epoch_steps
        self.val = _scoring(val or {}, "task.val")
        self.tests = {name: _scoring(each, f"task.tests.{name}") for name, each in (tests or {"test": {}}).items()}
        self.networks = {"model": model(len(data.words))}

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> Sequence[Batch]:
        pieces = shard.count * shard.accumulation_steps
        if self.columns % pieces:
            raise InputError(
                f"train.batch_size={self.columns} columns: must divide by processes x micro-batches "
                f"({shard.count} x {shard.accumulation_steps}), since each keeps the memory of its own columns"
            )
        return Segments(
            columns(self.data.tokens["train"], self.columns, option="train.batch_size"),
            length=self.length,
            shard=shard,
            epoch=epoch,
            steps=self.epoch_steps,
            start=start,
            seed=self.seed if self.random_lengths else None,
        )

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {"val": self._streams("valid", self.val, shard, option="task.val.columns")}

    def test_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {
            name: self._streams("test", scoring, shard, option=f"task.tests.{name}.columns")
            for name, scoring in self.tests.items()
        }

    def _streams(self, split: str, scoring: Scoring, shard: Shard, *, option: str) -> list[Batch]:
        """Return this process's columns of a text as one batch: a column's memory cannot be cut into batches."""
        text = columns(self.data.tokens[split], scoring.columns, option=option)
        numbers = torch.arange(len(text)).tensor_split(shard.count)[shard.index]
        if not len(numbers):
            return []
        tokens = torch.from_numpy(text[numbers[0] : numbers[-1] + 1].astype("int64"))
        return [(tokens, scoring.length, dict(scoring.options))]

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        inputs, targets, first, share = batch  # (b, L), (b, L)
        memory = None if first else context.state.get("memory")
        losses, context.state["memory"], penalty = nets["model"](inputs, targets, memory)
        loss = widen(losses).mean()
        log = {"train/nll": loss.detach()} if penalty.requires_grad else {}
        yield Update(loss + penalty, log=log, lr_scale=share if self.random_lengths else 1.0)

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return the sum of the losses of this process's columns, float64, and the number of tokens predicted."""
        text, length, options = batch  # (b, T)
        total, begin, memory = torch.zeros((), dtype=torch.float64, device=text.device), 0, None
        for size in fixed_lengths(text.shape[1] - 1, length):
            piece = text[:, begin : begin + size + 1]
            losses, memory, _ = nets["model"](piece[:, :-1], piece[:, 1:], memory, **options)
            total += losses.double().sum()
            begin += size
        return float(total), len(text) * begin

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return the loss in nats per token, and perplexity; for characters bits per character."""
        loss = math.fsum(total for total, _ in records) / sum(count for _, count in records)
        scores = {f"{split}/loss": loss, f"{split}/ppl": math.exp(min(loss, 700.0))}
        if self.data.unit == "char":
            scores[f"{split}/bpc"] = loss / math.log(2)
        return scores

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Return two short columns of training text, so that the search for scale-invariant parameters is quick."""
        size = min(8, (len(self.data.tokens["train"]) - 1) // 2)
        text = torch.from_numpy(self.data.tokens["train"][: 2 * size + 1].astype("int64"))
        return {"model": (text[:-1].view(2, size), text[1:].view(2, size))}

    def describe(self) -> dict[str, Any]:
        """Return the set's name, its sizes in tokens, and what guessing by frequency scores on it."""
        tokens = {split: len(each) for split, each in self.data.tokens.items()}
        floor = self.data.unigram_loss("valid")
        text = f"{math.exp(floor):.1f} validation perplexity of guessing by frequency"
        return {
            "name": self.data.name,
            "digest": data_digest(self.data.words, self.data.counts, *(self.data.tokens[s] for s in ("valid", "test"))),
            "train_examples": tokens["train"],
            "val_examples": tokens["valid"],
            "test_examples": tokens["test"],
            "unit": self.data.unit,
            "vocabulary": len(self.data.words),
            "licence": self.data.licence,
            "unigram_val_loss": floor,
            "unigram_test_loss": self.data.unigram_loss("test"),
            "baseline": text,
        }


def _scoring(value: Scoring | Mapping[str, Any], option: str) -> Scoring:
    try:
        scoring = value if isinstance(value, Scoring) else Scoring(**value)
    except TypeError as error:
        raise InputError(f"{option}: {error}") from None
    for name in ("columns", "length"):
        if not getattr(scoring, name) >= 1:
            raise InputError(f"{option}.{name}={getattr(scoring, name)}: must be at least 1")
    return scoring
