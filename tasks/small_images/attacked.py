"""Adversarial training on small pictures, by PGD. Shapes: B examples, K networks at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks import as_length, pgd_attack
from tasks.base import Batch, LoopState, ManyUpdate, Record, StepContext, Update
from tasks.checks import check_at_least
from tasks.small_images.data import AveragedImages
from tasks.small_images.task import SmallImages


class AttackedImages(SmallImages):
    """A classifier trained on attacked pictures alone, and scored on clean and attacked ones.

    The attack is PGD in the Linf ball, from the clean picture, on pixels in [0, 1]. It sees the network in evaluation
    mode; the training step is in training mode.

    Args:
        data: As for `SmallImages`, as are the next five.
        model: See there.
        batch_size: See there.
        seed: See there.
        epoch_steps: See there.
        eval_batch_size: See there.
        epsilon: Radius of the ball, a number or a fraction such as "8/255".
        step_size: Length of a step.
        train_steps: Steps of the attack in training; 0 trains on clean pictures.
        eval_steps: Steps of the attack in evaluation, at least 1.
        validation: As for `SmallImages`.

    Raises:
        InputError: An option is out of its range.
    """

    monitor = "val/attacked_accuracy"
    predicts_alone = True

    def __init__(
        self,
        data: AveragedImages,
        model: Callable[..., nn.Module],
        *,
        batch_size: int,
        seed: int,
        epoch_steps: int = 200,
        eval_batch_size: int = 2500,
        epsilon: float | str = "8/255",
        step_size: float | str = "2/255",
        train_steps: int = 10,
        eval_steps: int = 10,
        validation: float | None = None,
    ) -> None:
        super().__init__(
            data, model, batch_size=batch_size, seed=seed, epoch_steps=epoch_steps, eval_batch_size=eval_batch_size,
            validation=validation,
        )  # fmt: skip
        check_at_least(0, {"task.train_steps": train_steps})
        check_at_least(1, {"task.eval_steps": eval_steps})
        self.epsilon = as_length(epsilon, option="task.epsilon")
        self.step_size = as_length(step_size, option="task.step_size")
        self.train_steps, self.eval_steps = train_steps, eval_steps

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        for update in self.many_updates(nets, batch, [context]):
            yield Update(update.losses[0], log={name: values[0] for name, values in update.log.items()})

    def many_updates(
        self, nets: Mapping[str, nn.Module], batch: Batch, contexts: Sequence[StepContext]
    ) -> Iterator[ManyUpdate]:
        images, labels = batch
        count = len(contexts)
        network = OnPixels(nets["model"], self.data, count)
        # Every network gets pictures of its own, attacked with its own gradient: picture b of network k is row b K + k
        pixels, every_label = (each.repeat_interleave(count, 0) for each in (self.data.pixels(images), labels))
        logits = network(self._attacked(network, pixels, every_label, steps=self.train_steps))  # (B K, classes)
        losses = F.cross_entropy(logits, every_label, reduction="none").view(-1, count)
        hits = (logits.detach().argmax(1) == every_label).float().view(-1, count)
        yield ManyUpdate(losses.mean(0), log={"train/attacked_accuracy": 100 * hits.mean(0)})

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return sum of losses and right answers of the clean and of the attacked pictures, and how many there are."""
        images, labels = batch
        network, pixels = OnPixels(nets["model"], self.data, 1), self.data.pixels(images)
        sums = []
        for shown in (pixels, self._attacked(network, pixels, labels, steps=self.eval_steps)):
            logits = network(shown)
            losses = F.cross_entropy(logits, labels, reduction="none").double()
            sums.append((losses.sum().item(), int((logits.argmax(1) == labels).sum())))
        return sums, len(labels)

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        examples = sum(count for _, count in records)
        scores = {}
        for place, kind in enumerate(("clean", "attacked")):
            scores[f"{split}/{kind}_accuracy"] = 100 * sum(sums[place][1] for sums, _ in records) / examples
            scores[f"{split}/{kind}_loss"] = math.fsum(sums[place][0] for sums, _ in records) / examples
        return scores

    def describe(self) -> dict[str, Any]:
        attack = {
            "norm": "linf", "epsilon": self.epsilon, "step_size": self.step_size, "train_steps": self.train_steps,
            "eval_steps": self.eval_steps,
        }  # fmt: skip
        return {**super().describe(), "attack": attack}

    def _attacked(self, network: nn.Module, pixels: Tensor, labels: Tensor, *, steps: int) -> Tensor:
        # A network whose loss is no longer finite must not stop the others: its own loss says so afterwards
        return pgd_attack(
            network, pixels, labels, norm="linf", epsilon=self.epsilon, steps=steps, step_size=self.step_size,
            random_start=False, check_finite=False,
        )  # fmt: skip


class OnPixels(nn.Module):
    """K networks side by side as one function of pixels, (B K, C, S, S) in [0, 1] -> (B K, classes).

    Args:
        network: Of standardised pictures, (B, K C, S, S) -> (B, K classes).
        data: Knows how they are standardised.
        count: K.
    """

    def __init__(self, network: nn.Module, data: AveragedImages, count: int) -> None:
        super().__init__()
        self.network, self._data, self._count = network, data, count

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        images = self._data.standardised(pixels)
        logits: Tensor = self.network(images.reshape(-1, self._count * images.shape[1], *images.shape[2:]))
        return logits.reshape(len(pixels), -1)
