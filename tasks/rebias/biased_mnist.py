"""Biased-MNIST: digits whose background colour nearly always tells the class (AdamP paper, section D.2).

Shapes: b digits of this process, H W pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasks.base import Batch, InputError, LoopState, Record, Shard
from tasks.data.digits import DigitSet
from tasks.data.loader import derive_seed
from tasks.rebias.colours import NUM_CLASSES, assign_colours, check_rho, paint
from tasks.rebias.hsic import MIN_SAMPLES
from tasks.rebias.scores import cells
from tasks.rebias.task import METHODS, Method, ReBias

_logger = logging.getLogger("tasks.rebias")

# Test split -> share of digits in their class's colour. With 0.1 all ten colours are equally likely: no bias.
TEST_RHOS = {"unbiased": 0.1, "biased": 1.0, "rho0": 0.0}


class BiasedMnist(ReBias):
    """ReBias on coloured digits; the result is f's accuracy on the test digits in colours that say nothing.

    Every digit has one colour for the whole run, drawn with the seed, for each split anew. Nothing is augmented.
    The last, smaller batch of an epoch is used too where it divides by the processes and HSIC can use it.

    Args:
        data: Grey digits.
        f: Builds the target network.
        g: Builds the biased network.
        rho: Share of the training digits that have their class's colour, from 0 to 1; 0.1 is no bias.
        batch_size: Global training batch.
        seed: Fixes the order of the data and the colours.
        method: "rebias", "vanilla" (f alone) or "biased" (g alone).
        lambda_f: Weight of HSIC in f's loss.
        lambda_g: Weight of HSIC in g's loss.
        sigma: Bandwidth of both kernels, or "median".
        num_g_updates: Steps of g before each step of f.
        swap_inner_sigma: As `ReBias`.
        num_confusing: Colours of other classes that a class's digits can get.
        eval_batch_size: Digits in one evaluation batch of one process.
    """

    def __init__(
        self,
        data: DigitSet,
        f: Callable[..., nn.Module],
        g: Callable[..., nn.Module],
        *,
        rho: float,
        batch_size: int,
        seed: int,
        method: Method = "rebias",
        lambda_f: float = 1.0,
        lambda_g: float = 1.0,
        sigma: float | Literal["median"] = 1.0,
        num_g_updates: int = 1,
        swap_inner_sigma: bool = False,
        num_confusing: int = NUM_CLASSES - 1,
        eval_batch_size: int = 500,
    ) -> None:
        check_rho(rho)
        if not eval_batch_size >= 1:
            raise InputError(f"task.eval_batch_size={eval_batch_size}: must be at least 1")
        super().__init__(
            f, g, num_classes=NUM_CLASSES, batch_size=batch_size, seed=seed, method=method, lambda_f=lambda_f,
            lambda_g=lambda_g, sigma=sigma, num_g_updates=num_g_updates, swap_inner_sigma=swap_inner_sigma,
        )  # fmt: skip
        self.monitor = "unbiased/top1"
        self.data, self.rho, self.eval_batch_size = data, rho, eval_batch_size
        labels = data.labels["train"]
        if batch_size > len(labels):
            raise InputError(f"train.batch_size={batch_size}: exceeds the {len(labels)} training images of {data.name}")

        def colours(split: str, share: float, number: int) -> Tensor:
            colour_seed = derive_seed(seed, number)
            return assign_colours(data.labels[split], share, seed=colour_seed, num_confusing=num_confusing)

        self._train_colours = colours("train", rho, 0)
        self._test_colours = {s: colours("test", share, i) for i, (s, share) in enumerate(TEST_RHOS.items(), 1)}
        self.num_conflicting = int((self._train_colours != labels).sum())
        _logger.info(
            "%s: rho=%g leaves %d of %d training digits in another class's colour",
            data.name, rho, self.num_conflicting, len(labels),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------ data

    def batches(self, epoch: int, shard: Shard, start: int) -> Sequence[Batch]:
        num = len(self.data.labels["train"])
        if self.batch_size % shard.count:
            raise InputError(f"train.batch_size={self.batch_size}: must divide by the {shard.count} processes")
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        last = num % self.batch_size
        if last % shard.count or last < MIN_SAMPLES:  # one definition for all methods: they see the same batches
            num -= last
        steps = torch.randperm(len(self.data.labels["train"]), generator=generator)[:num].split(self.batch_size)
        return _Coloured(
            [step.chunk(shard.count)[shard.index] for step in steps[start:]],
            self.data.images["train"], self._train_colours, self.data.labels["train"],
        )  # fmt: skip

    def pictures(self, batch: Batch) -> tuple[Tensor, Tensor]:
        grey, colours, labels = batch
        return normalise(paint(grey, colours)), labels

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        numbers = torch.arange(len(self.data.labels["test"])).split(self.eval_batch_size)[shard.index :: shard.count]
        images, labels = self.data.images["test"], self.data.labels["test"]
        return {split: _Coloured(numbers, images, colours, labels) for split, colours in self._test_colours.items()}

    # ------------------------------------------------------------------------------------------------ scores

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return labels, colours and each network's predicted classes."""
        images, labels = self.pictures(batch)
        predicted = {role: nets[role](images)[0].argmax(1).cpu() for role in METHODS[self.method]}
        return labels.cpu(), batch[1].cpu(), predicted

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return percentages: right answers, answers that name the colour, and the worst cell of label and colour."""
        labels = torch.cat([label for label, _, _ in records])
        colours = torch.cat([colour for _, colour, _ in records])
        predicted = {r: torch.cat([classes[r] for _, _, classes in records]) for r in METHODS[self.method]}
        scores = self.accuracies(split, {role: (classes == labels).tolist() for role, classes in predicted.items()})
        reported = predicted[self.reported]
        scores[f"{split}/colour"] = 100 * float((reported == colours).double().mean())
        scores[f"{split}/worst_cell"] = 100 * float(cells(labels, reported, colours, 1).min())
        return scores

    # ------------------------------------------------------------------------------------------------ facts

    def example_images(self) -> Tensor:
        """Return 32 digits in colours drawn evenly: in one class's colour a 1x1 kernel would see two values."""
        grey = self.data.images["train"][:32]
        return normalise(paint(grey, torch.arange(len(grey)) % NUM_CLASSES))

    def describe(self) -> dict[str, Any]:
        facts = self.data.describe()
        return {
            **facts,
            "name": f"biased_{facts['name']}",
            "rho": self.rho,
            "conflicting_examples": self.num_conflicting,
        }


class _Coloured(Sequence[Batch]):
    """Batches (grey (b, H, W) uint8, colour (b,), label (b,)) of the digits whose numbers are given."""

    def __init__(self, numbers: Sequence[Tensor], *columns: Tensor) -> None:
        self._numbers, self._columns = numbers, columns

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Coloured(self._numbers[index], *self._columns)
        return tuple(column[self._numbers[index]] for column in self._columns)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def normalise(images: Tensor) -> Tensor:
    """Turn (b, H, W, 3) uint8 into (b, 3, H, W) float32 of (x / 255 - 0.5) / 0.5: 0 becomes -1, 255 becomes 1."""
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
