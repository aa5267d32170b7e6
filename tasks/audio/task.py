"""Audio classification: a clip's word, its tags, or the events heard in it. B clips, N samples, M chunks, K classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.audio.batches import chunk, eval_batches, mean_by_clip, train_batches
from tasks.audio.clips import ClipSet
from tasks.audio.networks import HarmonicCnn
from tasks.audio.scores import tagging_scores
from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.checks import check_at_least, check_fractions
from tasks.precision import widen


class AudioClassifier(Task):
    """A network of waveforms on a `ClipSet`: cross-entropy where clips have one class, else a binary one for each.

    Trains on random crops. A clip's output is the mean of the probabilities of its chunks, its loss the mean of theirs.
    The test split is scored once, at the end, with the best weights.

    Args:
        data: The clips.
        model: Builds the network from `num_classes`; called once.
        batch_size: Global training batch, over all processes and micro-batches.
        seed: Fixes the order of the clips and their crops.
        input_length: N.
        chunks: Chunks of a clip that is longer than N, in scoring; 1 takes its middle.
        select: What picks the best weights: "loss" or "f1", of the validation split.
        select_after: With "f1", so many first epochs count as worse than any later one.
        eval_batch_size: Clips in one batch of scoring of one process.
        threshold: Probability above which a clip is given a tag, for F1; None: no F1.
        num_workers: Loading processes beside each training process; 0 loads in it.
    """

    def __init__(
        self,
        data: ClipSet,
        model: Callable[..., HarmonicCnn],
        *,
        batch_size: int,
        seed: int,
        input_length: int,
        chunks: int,
        select: str,
        select_after: int,
        eval_batch_size: int,
        threshold: float | None = None,
        num_workers: int = 0,
    ) -> None:
        check_at_least(1, {"train.batch_size": batch_size, "task.eval_batch_size": eval_batch_size})
        check_at_least(1, {"task.input_length": input_length, "task.chunks": chunks})
        check_at_least(0, {"task.select_after": select_after, "train.num_workers": num_workers})
        if threshold is not None:
            check_fractions({"task.threshold": threshold})
        if select not in ("loss", "f1") or (select == "f1" and (threshold is None or not data.multi_label)):
            raise InputError(f"task.select={select}: must be loss, or f1 for a set of several labels with a threshold")
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.input_length, self.chunks, self.threshold = input_length, chunks, threshold
        self.num_workers, self.eval_batch_size = num_workers, eval_batch_size
        self.monitor = "-val/loss" if select == "loss" else "val/selection"
        self.select_after, self._epoch, self._main = select_after, 0, True
        network = model(num_classes=len(data.classes))
        if not input_length >= network.min_samples:
            raise InputError(
                f"task.input_length={input_length}: too short for the network, whose time axis would end before its "
                f"last stage; must be at least {network.min_samples} samples"
            )
        self.networks: Mapping[str, HarmonicCnn] = {"model": network}

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        self._epoch, self._main = epoch, shard.index == 0
        return train_batches(
            self.data, shard, samples=self.input_length, batch_size=self.batch_size, seed=self.seed, epoch=epoch,
            start=start, num_workers=self.num_workers,
        )  # fmt: skip

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {"val": self._chunks("val", shard)}

    def test_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        return {"test": self._chunks("test", shard)}

    def _chunks(self, split: str, shard: Shard) -> Iterable[Batch]:
        return eval_batches(
            self.data, split, shard, samples=self.input_length, chunks=self.chunks, batch_size=self.eval_batch_size,
            num_workers=self.num_workers,
        )  # fmt: skip

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        waves, targets = batch  # (B, N), and (B,) or (B, K)
        logits = widen(nets["model"](waves))  # (B, K)
        log: dict[str, Tensor] = {"train/q": self.networks["model"].front.q.detach().squeeze()}
        if not self.data.multi_label:
            log["train/top1"] = 100 * (logits.detach().argmax(1) == targets).float().mean()
        yield Update(self._losses(logits, targets).mean(), log=log)

    def _losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each row's loss; of several labels the mean over the classes."""
        if not self.data.multi_label:
            return F.cross_entropy(logits, targets, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none").mean(1)

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return each clip's loss, probabilities (B, K) and targets, all on the CPU; losses and sums in float64."""
        waves, counts, targets = batch  # (M, N), (B,), and (B,) or (B, K)
        logits = nets["model"](waves).double()  # (M, K)
        losses = self._losses(logits, torch.repeat_interleave(targets, counts, dim=0))
        shares = logits.sigmoid() if self.data.multi_label else logits.softmax(1)
        loss = mean_by_clip(losses.unsqueeze(1), counts).squeeze(1)
        return loss.cpu(), mean_by_clip(shares, counts).cpu(), targets.cpu()

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return the loss and, in percent, accuracy, or the areas and F1 scores of `tasks.audio.scores`."""
        losses = [value for loss, _, _ in records for value in loss.tolist()]
        outputs = torch.cat([output for _, output, _ in records]).numpy()
        targets = torch.cat([target for _, _, target in records]).numpy()
        scores = {f"{split}/loss": math.fsum(losses) / len(losses)}
        if not self.data.multi_label:
            return scores | {f"{split}/top1": 100 * float((outputs.argmax(1) == targets).mean())}
        tagging = tagging_scores(targets.astype(np.int64), outputs, threshold=self.threshold)
        scores |= {f"{split}/{name}": value for name, value in tagging.items()}
        if self.monitor == "val/selection" and split == "val":
            early = self._epoch + 1 <= self.select_after
            scores["val/selection"] = tagging["f1"] - (100 if early else 0)
        return scores

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Return one chunk of each of up to eight training clips."""
        num = min(8, self.data.num("train"))
        waves = [chunk(self.data, "train", i, samples=self.input_length, chunks=1) for i in range(num)]
        return {"model": (torch.cat(waves),)}

    def describe(self) -> dict[str, Any]:
        """Return the set's name and sizes, and what a score must beat."""
        targets = self.data.targets("val", range(self.data.num("val")))
        if self.data.multi_label:
            chance = 100 * float(targets.mean())
            text = f"{chance:.2f} validation PR-AUC of guessing, 50 ROC-AUC"
        else:
            chance = 100 * float(targets.bincount().max()) / len(targets)
            text = f"{chance:.2f} validation top1 of the most frequent class"
        return {**self.data.describe(), "chance": chance, "baseline": text}

    def notices(self) -> dict[str, int]:
        # Every process finds the same ones; the engine adds up.
        count = len(self.data.undecodable)
        return {"undecodable_clips": count} if count and self._main else {}
