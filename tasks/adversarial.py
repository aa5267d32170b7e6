"""Adversarial training as in the AdamP paper's section 4.2: cross-entropy on PGD-attacked pictures.

Shapes: B pictures, S side in pixels, K classes. Pictures are in [0, 1] when they reach a network.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.attacks import PRESETS, Attack, NonFiniteLossError, as_length, pgd_attack, random_perturbation
from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.checks import check_at_least
from tasks.data import ImageSet
from tasks.data.image_batches import ImageBatches
from tasks.data.loader import derive_seed

__all__ = ["PRESETS", "Adversarial", "pgd_attack"]

EVALUATIONS = ("pgd", "strong")


class Adversarial(Task):
    """A classifier trained on attacked pictures alone, and scored on clean and attacked ones.

    The attack sees the network in evaluation mode; the training step on the attacked pictures is in training mode.
    Random starts depend on the seed, the epoch, the step and a picture's place in the global batch, so they are the
    same on any number of processes.

    Args:
        data: The pictures.
        model: Builds the network from `num_classes`; called once.
        batch_size: Global training batch, over all processes and micro-batches.
        seed: Fixes the order of the data, its augmentation and the random starts.
        attack: A preset: "paper-linf", "paper-l2" (sign steps, as the code behind the paper) or "l2" (gradient steps).
        epsilon: Radius instead of the preset's: a number or a fraction such as "8/255".
        step_size: Length of a step instead of the preset's.
        train_steps: Steps of the attack in training; 0 trains on clean pictures.
        eval_steps: Steps of the attack in evaluation, at least 1.
        evaluation: "pgd", or "strong" for AutoAttack as well, once, with the best weights of the run.
        strong_images: Validation pictures that AutoAttack gets, the first ones of the set.
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process.
        validation: As in `ImageNet`.

    Raises:
        InputError: if an option is out of its range, or AutoAttack is asked for and cannot run.
    """

    monitor = "val/attacked_accuracy"

    def __init__(
        self,
        data: ImageSet,
        model: Callable[..., nn.Module],
        *,
        batch_size: int,
        seed: int,
        attack: str = "paper-linf",
        epsilon: float | str | None = None,
        step_size: float | str | None = None,
        train_steps: int = 10,
        eval_steps: int = 10,
        evaluation: str = "pgd",
        strong_images: int = 1000,
        num_workers: int = 0,
        eval_batch_size: int = 250,
        validation: float | None = None,
    ) -> None:
        check_at_least(0, {"task.train_steps": train_steps})
        check_at_least(1, {"task.eval_steps": eval_steps, "task.strong_images": strong_images})
        if evaluation not in EVALUATIONS:
            raise InputError(f"eval={evaluation}: must be one of {', '.join(EVALUATIONS)}")
        if evaluation == "strong":
            _check_strong(data)
        self.attack = _select_attack(attack, epsilon=epsilon, step_size=step_size)
        if validation is not None:
            data.hold_out(validation)
        self.data = data
        self.batches = ImageBatches(
            data, batch_size=batch_size, seed=seed, num_workers=num_workers, eval_batch_size=eval_batch_size
        )
        self.networks = {"model": model(num_classes=data.num_classes)}
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.train_steps, self.eval_steps = train_steps, eval_steps
        self.evaluation, self.strong_images = evaluation, strong_images

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        """Return (pictures, labels, (seed of the step's random starts, place of the first picture in the step))."""
        batches = self.batches.train(epoch, shard, start)
        size = self.batch_size // (shard.count * shard.accumulation_steps)

        def origin(number: int) -> tuple[int, int]:
            step, part = divmod(number, shard.accumulation_steps)
            return derive_seed(self.seed, epoch, start + step), (shard.index * shard.accumulation_steps + part) * size

        return _TaggedBatches(batches, origin, count=len(batches))

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {"val": self._eval_split("val", shard, self.data.num_examples["val"])}

    def test_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        """Return the first validation pictures once more, for AutoAttack on the best weights, if it is asked for."""
        if self.evaluation != "strong":
            return {}
        return {"strong": self._eval_split("strong", shard, self.strong_images)}

    def _eval_split(self, split: str, shard: Shard, num_images: int) -> BatchLoader:
        """Return (pictures, labels, (split, number of the batch)) of the batches that hold so many pictures."""
        batches = self.batches.evaluation(shard)
        num_batches = -(-min(num_images, self.data.num_examples["val"]) // self.eval_batch_size)
        count = len(range(shard.index, num_batches, shard.count))
        return _TaggedBatches(batches, lambda number: (split, shard.index + number * shard.count), count=count)

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, labels, (seed, first) = batch  # (B, 3, S, S) uint8, (B,)
        x, poison = as_unit_range(images), 0.0
        if self.train_steps:
            start = None
            if self.attack.random_start_train:
                # Drawn for the whole batch of the step, of which this process may hold a part.
                global_batch = x.new_empty(()).expand(self.batch_size, *x.shape[1:])
                start = self._random_start(global_batch, seed)[first : first + len(x)]
            try:
                x = self._attacked(nets["model"], x, labels, steps=self.train_steps, start=start)
            except NonFiniteLossError:
                poison = math.nan  # ends the run in the engine's words, with the step and the last checkpoint
        logits = nets["model"](x)  # (B, K)
        hits = (logits.detach().argmax(1) == labels).float()
        loss = F.cross_entropy(logits, labels) + poison
        yield Update(loss, log={"train/attacked_accuracy": 100 * hits.mean()})

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return (loss, hit) of each clean picture and of the same pictures attacked; losses are float64."""
        images, labels, (split, number) = batch
        x, net = as_unit_range(images), nets["model"]
        with torch.autocast(images.device.type, enabled=False):  # reported in full precision
            if split == "strong":
                x, labels = self._first(x, number), self._first(labels, number)
                attacked = autoattack(net, x, labels, norm=self.attack.norm, epsilon=self.attack.epsilon)
            else:
                start = None
                if self.attack.random_start_eval:
                    start = self._random_start(x, derive_seed(self.seed, -1, number))
                attacked = self._attacked(net, x, labels, steps=self.eval_steps, start=start)
            return [_losses_and_hits(net(each), labels) for each in (x, attacked)]

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return mean losses and percentages; sums are exact, so the order of records is free."""
        scores = {}
        for place, kind in enumerate(("clean", "attacked")):
            losses = [value for record in records for value in record[place][0].tolist()]
            if not losses:
                raise InputError(f"{self.data.name}: no readable image in the {split} split")
            hits = sum(int(record[place][1].sum()) for record in records)
            scores[f"{split}/{kind}_accuracy"] = 100 * hits / len(losses)
            scores[f"{split}/{kind}_loss"] = math.fsum(losses) / len(losses)
        return scores

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        return {"model": (as_unit_range(self.batches.examples()),)}

    def describe(self) -> dict[str, Any]:
        attack = dataclasses.asdict(self.attack) | {"train_steps": self.train_steps, "eval_steps": self.eval_steps}
        return {**self.data.describe(), "attack": attack}

    def notices(self) -> dict[str, int]:
        return self.batches.notices()

    def faulty_examples(self) -> dict[str, list[Any]]:
        return self.batches.faulty_examples()

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        self.batches.add_faulty_examples(faulty)

    def _attacked(self, net: nn.Module, x: Tensor, labels: Tensor, *, steps: int, start: Tensor | None) -> Tensor:
        return pgd_attack(
            net,
            x,
            labels,
            norm=self.attack.norm,
            epsilon=self.attack.epsilon,
            steps=steps,
            step_size=self.attack.step_size,
            random_start=False,
            direction=self.attack.direction,
            start=start,
        )

    def _random_start(self, images: Tensor, seed: int) -> Tensor:
        generator = torch.Generator(images.device).manual_seed(seed)
        norm = "linf" if self.attack.direction == "sign" else self.attack.norm
        return random_perturbation(images, norm=norm, epsilon=self.attack.epsilon, generator=generator)

    def _first(self, tensor: Tensor, number: int) -> Tensor:
        return tensor[: max(0, self.strong_images - number * self.eval_batch_size)]


class _TaggedBatches:
    """The first `count` batches, each with a tag computed from its number."""

    def __init__(self, batches: Iterable[Any], tag: Callable[[int], Any], *, count: int) -> None:
        self._batches, self._tag, self._count = batches, tag, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Any]:
        for number, batch in zip(range(self._count), self._batches, strict=False):
            yield *batch, self._tag(number)


def as_unit_range(images: Tensor) -> Tensor:
    """Return (B, 3, S, S) uint8 pictures as float32 in [0, 1], the range that every attack works in."""
    return images.float() / 255


def autoattack(network: nn.Module, images: Tensor, labels: Tensor, *, norm: str, epsilon: float) -> Tensor:
    """Return what AutoAttack's standard version finds: APGD-CE, targeted APGD-DLR, targeted FAB, Square; seed 0.

    Args:
        network: In evaluation mode.
        images: (B, 3, S, S) float32 in [0, 1].
        labels: (B,).
        norm: "linf" or "l2".
        epsilon: Radius.

    Reference:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
        attacks", arXiv:2003.01690; package pyautoattack.
    """
    from pyautoattack import AutoAttack  # an optional extra

    name = {"linf": "Linf", "l2": "L2"}[norm]
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # it seeds the global generators
        attack = AutoAttack(network, norm=name, eps=epsilon, device=images.device, seed=0)
        attacked, _ = attack.run_standard_evaluation(images, labels, batch_size=len(images))
    return attacked


def _losses_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    loss = F.cross_entropy(logits, labels, reduction="none").double()
    return loss.cpu(), (logits.argmax(1) == labels).cpu()


def _select_attack(name: str, *, epsilon: float | str | None, step_size: float | str | None) -> Attack:
    """Return a preset with some of its lengths replaced."""
    if name not in PRESETS:
        raise InputError(f"task.attack={name}: must be one of {', '.join(PRESETS)}")
    replacements = {"epsilon": epsilon, "step_size": step_size}
    lengths: dict[str, Any] = {
        key: as_length(value, option=f"task.{key}") for key, value in replacements.items() if value is not None
    }
    return dataclasses.replace(PRESETS[name], **lengths)


def _check_strong(data: ImageSet) -> None:
    """Refuse an AutoAttack that cannot run, rather than fail after the last epoch."""
    if importlib.util.find_spec("pyautoattack") is None:
        raise InputError("eval=strong: needs the package pyautoattack; install the extra `attacks`, or leave eval=pgd")
    if data.num_classes < 10:
        raise InputError(
            f"eval=strong: AutoAttack's targeted attacks need 10 classes, {data.name} has {data.num_classes}"
        )
