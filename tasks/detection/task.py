"""Object detection as in the AdamP paper's section D.1: CenterNet and SSD, scored by COCO's average precision.

Shapes: B pictures, S their side in pixels, N objects of all of them, n detections of one picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.base import Batch, BatchLoader, InputError, LoopState, Record, Shard, StepContext, Task, Update
from tasks.checks import check_at_least
from tasks.data import CorruptImages
from tasks.data.image_batches import ChannelNormaliser
from tasks.detection.batches import eval_batches, train_batches
from tasks.detection.coco import CocoSet
from tasks.detection.detector import Detector, Mean, Objects
from tasks.detection.evaluation import EVALUATORS, average_precision
from tasks.detection.views import to_original

_logger = logging.getLogger("tasks.detection")
# What CenterNet's published code feeds its networks: blue first, with statistics of its own.
CENTERNET_BGR = ((0.408, 0.447, 0.470), (0.289, 0.274, 0.278))
COLOURS = ("rgb", "centernet_bgr")


class Detection(Task):
    """A detector on any `CocoSet`.

    Args:
        data: The pictures and boxes.
        model: Builds the detector from `num_classes`; called once.
        batch_size: Global training batch, over all processes and micro-batches.
        seed: Fixes the order of the data and its augmentation.
        colours: "rgb" with the data's statistics, or "centernet_bgr": as CenterNet's published code, which gives
            ImageNet weights the channels in the wrong order.
        flip_test: Average the outputs of a picture and its mirror image in evaluation; CenterNet alone.
        evaluator: "pycocotools" or "faster_coco_eval".
        num_workers: Decoding processes beside each training process; 0 decodes in it.
        eval_batch_size: Pictures in one evaluation batch of one process; 1 where they keep their sizes.

    Raises:
        InputError: An option is out of its range.
    """

    monitor = "val/ap"

    def __init__(
        self,
        data: CocoSet,
        model: Callable[..., Detector],
        *,
        batch_size: int,
        seed: int,
        colours: str = "rgb",
        flip_test: bool = False,
        evaluator: str = "pycocotools",
        num_workers: int = 0,
        eval_batch_size: int = 32,
    ) -> None:
        check_at_least(1, {"train.batch_size": batch_size, "task.eval_batch_size": eval_batch_size})
        check_at_least(0, {"train.num_workers": num_workers})
        for option, value, known in (("colours", colours, COLOURS), ("evaluator", evaluator, EVALUATORS)):
            if value not in known:
                raise InputError(f"task.{option}={value}: choose one of {', '.join(known)}")
        net = model(num_classes=data.num_classes)
        if flip_test and not net.MERGES:
            raise InputError("task.flip_test=true: only CenterNet's maps can be averaged with those of mirror images")
        self.data, self.networks, self.view, self._net = data, {"model": net}, net.view, net
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.eval_batch_size = 1 if getattr(net.view, "keep_size", False) else eval_batch_size
        self.flip_test, self.evaluator = flip_test, evaluator
        self._num_pieces = 1  # of a step: processes x micro-batches
        self._corrupt = CorruptImages(data)  # type: ignore[arg-type]
        self._bgr = colours == "centernet_bgr"
        mean, std = CENTERNET_BGR if self._bgr else (data.mean, data.std)
        self._normalise = ChannelNormaliser(mean, std)
        _logger.info("network starts from %s", net.origin)

    def train_batches(self, epoch: int, shard: Shard, start: int = 0) -> BatchLoader:
        self._num_pieces = shard.count * shard.accumulation_steps
        return train_batches(
            self.data, self.view, batch_size=self.batch_size, shard=shard, start=start, seed=self.seed, epoch=epoch,
            corrupt=self._corrupt, num_workers=self.num_workers,
        )  # fmt: skip

    def eval_batches(self, shard: Shard) -> Mapping[str, Iterable[Batch]]:
        batches = eval_batches(
            self.data, self.view, batch_size=self.eval_batch_size, shard=shard, corrupt=self._corrupt,
            num_workers=self.num_workers,
        )  # fmt: skip
        return {"val": batches}

    def updates(self, nets: Mapping[str, nn.Module], batch: Batch, context: StepContext) -> Iterator[Update]:
        images, *objects = batch
        outputs = nets["model"](self.normalise(images))
        with torch.autocast(images.device.type, enabled=False):
            mean = self._mean(context, outputs[0])
            loss, parts = self._net.losses(outputs, Objects(*objects), mean=mean, share=1 / self._num_pieces)
        yield Update(loss, log={f"train/{name}_loss": part.detach() for name, part in parts.items()})

    def _mean(self, context: StepContext, like: Tensor) -> Mean:
        """Return what averages the counts of `Detector.losses` over the processes and micro-batches of the step.

        Args:
            context: Of the step.
            like: An output of the network: its device, and float64 where it is.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)

        def over_processes(count: Tensor) -> Tensor:
            return context.gather(count.detach().to(dtype).reshape(1)).mean()

        if len(context.micro_batches) <= 1:
            return over_processes
        # The counts of the other micro-batches too, from their boxes alone: their outputs do not exist yet
        counts = []
        for images, *objects in context.micro_batches:
            on_device = Objects(*(each.to(like.device) for each in objects))
            counts.append(self._net.counts(on_device, batch=len(images), side=images.shape[-1]))
        means = iter([over_processes(torch.stack(each).to(dtype).mean()) for each in zip(*counts, strict=True)])
        return lambda count: next(means)

    def predict(self, nets: Mapping[str, nn.Module], batch: Batch, state: LoopState) -> Record:
        """Return image ids, and each picture's (n, 6) boxes in its stored pixels, scores and category ids, as numpy."""
        images, numbers, backs = batch
        if not len(images):
            return [], []
        images = self.normalise(images)
        outputs = nets["model"](images)
        if self.flip_test:
            outputs = self._net.merged(outputs, nets["model"](images.flip(3)))
        ids = np.array(self.data.category_ids)
        records = []
        for rows, back in zip(self._net.detections(outputs), backs, strict=True):
            boxes = to_original(rows[:, :4], back)
            detections = torch.cat([boxes, rows[:, 4:]], dim=1).cpu().numpy()
            detections[:, 5] = ids[detections[:, 5].astype(np.int64)]
            records.append(detections)
        return [self.data.image_id("val", number) for number in numbers.tolist()], records

    def score(self, split: str, records: Sequence[Record]) -> dict[str, float]:
        """Return COCO's AP and recall in percent; pictures that could not be read are left out."""
        if not any(images for images, _ in records):
            raise InputError(f"{self.data.name}: no readable image in the {split} split")
        truth = self.data.splits["val"].ground_truth()
        scores = average_precision(truth, records, evaluator=self.evaluator)
        return {f"{split}/{name}": value for name, value in scores.items()}

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, 3, H, W) float32 of mean 0 and standard deviation 1 per channel, in the order of `colours`."""
        return self._normalise(images.flip(1) if self._bgr else images)

    def example_inputs(self) -> Mapping[str, tuple[Any, ...]]:
        """Return the middle of a few normalised training pictures, the same ones whatever the batch size."""
        num = min(self._net.num_examples, self.data.num_examples["train"])
        batches = train_batches(
            self.data, self.view, batch_size=num, shard=Shard(), start=0, seed=0, epoch=0,
            corrupt=CorruptImages(self.data), num_workers=0,  # type: ignore[arg-type]
        )  # fmt: skip
        images = next(iter(batches))[0].cpu()
        side = self._net.example_side
        first = (images.shape[-1] - side) // 2
        return {"model": (self.normalise(images[..., first : first + side, first : first + side]),)}

    def describe(self) -> dict[str, Any]:
        return {**self.data.describe(), "network_starts_from": self._net.origin}

    def notices(self) -> dict[str, int]:
        counts = {"corrupt_images": self._corrupt.count, **self.data.skipped}
        return {name: count for name, count in counts.items() if count}

    def faulty_examples(self) -> dict[str, list[Any]]:
        return {"corrupt_images": self._corrupt.state()}

    def add_faulty_examples(self, faulty: Mapping[str, Sequence[Any]]) -> None:
        self._corrupt.add_state(faulty.get("corrupt_images", ()))
