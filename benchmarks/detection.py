"""Decoding and augmenting pictures for detectors beside torchvision's transforms, and a step.

`python benchmarks/detection.py [pictures=48] [rounds=5] [threads=1] [size=512] [steps=8] [out=results/benchmarks]`.
Four paths take turns on the same JPEG files of 640 x 427 pixels, round by round, so that a drift of the machine meets
all: CenterNet's view, SSD's view, and the presets "ssd" and "hflip" of torchvision's references/detection, each with
the resize to the network's square that there happens in the model. The ratio of each round is taken first, then its
median. Then heat maps of a batch of 64: all objects at once against one object after the other into its window. Last,
which share of a training step at mini scale goes into its pictures and targets.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.base import Shard, StepContext
from tasks.data.loader import forked_generators
from tasks.detection import CenterNet, CocoSet, Detection, FashionScenes
from tasks.detection.detector import Objects
from tasks.detection.targets import encode, gaussian_radius
from tasks.detection.views import CenterNetView, SsdView, View
from tasks.engine.provenance import provenance

DEFAULTS = {"pictures": "48", "rounds": "5", "threads": "1", "size": "512", "steps": "8"}
STRIDE, CLASSES = 4, 80
OBJECTS = 7  # a picture, COCO's mean


def write_pictures(root: Path, *, pictures: int) -> CocoSet:
    """Write parts of two photographs, enlarged to COCO's usual size, with boxes at random."""
    from sklearn.datasets import load_sample_images

    random = np.random.RandomState(0)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    for number in range(1, pictures + 1):
        left, top = random.randint(0, 64), random.randint(0, 43)
        part = photos[number % 2].resize((640, 427), Image.Resampling.BICUBIC, box=(left, top, left + 576, top + 384))
        part.save(root / "train" / f"{number}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 427})
        for _ in range(OBJECTS):
            width, height = random.randint(20, 300), random.randint(20, 250)
            box = [int(random.randint(0, 640 - width)), int(random.randint(0, 427 - height)), int(width), int(height)]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return CocoSet(str(root), name="scenes", folders={"train": "train", "val": "train"}, categories="file")


def reference(preset: str, size: int) -> Callable[[Image.Image, torch.Tensor, torch.Tensor], Any]:
    """Return torchvision's references/detection/presets.py, backend "pil" with v2, and the model's resize."""
    steps: list[Any] = [v2.RandomHorizontalFlip(p=0.5)]
    if preset == "ssd":
        fill = {tv_tensors.Image: (123.0, 117.0, 104.0), "others": 0}
        fill[Image.Image] = fill[tv_tensors.Image]  # type: ignore[index]
        steps = [v2.RandomPhotometricDistort(), v2.RandomZoomOut(fill=fill), v2.RandomIoUCrop(), *steps]
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.ConvertBoundingBoxFormat("XYXY")]
    steps += [v2.SanitizeBoundingBoxes(), v2.ToPureTensor()]
    transform = v2.Compose(steps)

    def path(image: Image.Image, boxes: torch.Tensor, labels: torch.Tensor) -> Any:
        framed: Any = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width))
        picture, _ = transform(image, {"boxes": framed, "labels": labels})
        return torch.nn.functional.interpolate(picture[None], (size, size), mode="bilinear", align_corners=False)

    return path


def ours(view: View) -> Callable[[Image.Image, torch.Tensor, torch.Tensor], Any]:
    """Return a view as a path."""
    return lambda image, boxes, labels: view.train(image, boxes, labels=labels)


def picture_rates(data: CocoSet, *, size: int, rounds: int) -> dict[str, list[float]]:
    """Return pictures a second of each path in each round."""
    paths = {
        "centernet": ours(CenterNetView(size)),
        "ssd": ours(SsdView(size, data.mean)),
        "reference ssd": reference("ssd", size),
        "reference hflip": reference("hflip", size),
    }
    rates: dict[str, list[float]] = {name: [] for name in paths}
    with forked_generators():
        for _ in range(rounds):
            for name, path in paths.items():
                begun = time.perf_counter()
                for index in range(data.num_examples["train"]):
                    path(data.image("train", index), *data.objects("train", index))
                rates[name].append(data.num_examples["train"] / (time.perf_counter() - begun))
    return rates


def draw_one_by_one(objects: Objects, *, batch: int, side: int) -> torch.Tensor:
    """Draw each object's window by itself, as the published code does."""
    heat = np.zeros((batch, CLASSES, side, side), dtype=np.float32)
    for (x0, y0, x1, y1), label, owner in zip(
        (objects.boxes / STRIDE).tolist(), objects.labels.tolist(), objects.owner.tolist(), strict=True
    ):
        up = [torch.tensor(float(np.ceil(length))) for length in (y1 - y0, x1 - x0)]
        r = max(0, int(gaussian_radius(*up)))
        column, row = int((x0 + x1) / 2), int((y0 + y1) / 2)
        ys, xs = np.ogrid[-r : r + 1, -r : r + 1]
        bump = np.exp(-(xs * xs + ys * ys) / (2 * ((2 * r + 1) / 6) ** 2))
        top, left = min(row, r), min(column, r)
        bottom, right = min(side - row, r + 1), min(side - column, r + 1)
        window = heat[owner, label, row - top : row + bottom, column - left : column + right]
        np.maximum(window, bump[r - top : r + bottom, r - left : r + right], out=window)
    return torch.from_numpy(heat)


def heat_times(*, size: int, rounds: int) -> dict[str, list[float]]:
    """Return seconds of both ways to draw the heat maps of 64 pictures, after comparing them."""
    generator = torch.Generator().manual_seed(0)
    num, side = 64 * OBJECTS, size // STRIDE
    corners = size * 0.6 * torch.rand(num, 2, generator=generator)
    boxes = torch.cat([corners, corners + size * (0.05 + 0.35 * torch.rand(num, 2, generator=generator))], 1)
    labels = torch.randint(CLASSES, (num,), generator=generator)
    objects = Objects(boxes, labels, torch.arange(num) // OBJECTS)
    ways = {
        "all at once": lambda: encode(objects, batch=64, num_classes=CLASSES, size=(side, side), stride=STRIDE).heat,
        "one by one": lambda: draw_one_by_one(objects, batch=64, side=side),
    }
    torch.testing.assert_close(*[draw() for draw in ways.values()], atol=1e-5, rtol=0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, draw in ways.items():
            begun = time.perf_counter()
            draw()
            times[name].append(time.perf_counter() - begun)
    return times


def step_shares(*, steps: int) -> dict[str, float]:
    """Return the shares of a training step at mini scale: pictures, targets and loss, the rest."""
    data = FashionScenes()
    model = partial(CenterNet, image_size=128, width=0.25, init="random")
    task = Detection(data, model, batch_size=8, seed=0)
    net = task.networks["model"]
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    spent = dict.fromkeys(("pictures", "targets", "rest"), 0.0)
    batches = iter(task.train_batches(0, Shard()))
    for step in range(steps + 2):
        begun = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        objects = Objects(*batch[1:])
        encode(objects, batch=8, num_classes=data.num_classes, size=(32, 32), stride=STRIDE)
        drawn = time.perf_counter()
        (update,) = task.updates(task.networks, batch, StepContext())
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
        if step >= 2:  # warm by then
            spent["pictures"] += loaded - begun
            spent["targets"] += drawn - loaded
            spent["rest"] += time.perf_counter() - drawn - (drawn - loaded)  # the step draws them once more
    total = sum(spent.values())
    return {name: value / total for name, value in spent.items()} | {"seconds a step": total / steps}


def summary(found: Mapping[str, Any]) -> str:
    """Return the page of a result."""
    rates, times, shares = found["rates"], found["heat"], found["shares"]

    def median_ratio(one: Sequence[float], other: Sequence[float]) -> float:
        return statistics.median(a / b for a, b in zip(one, other, strict=True))

    lines = [
        "# Pictures for detectors",
        "",
        f"Decoded and augmented to {found['options']['size']} pixels, one process:",
        "",
    ]
    lines += [f"- {name}: {statistics.median(values):.1f} pictures a second" for name, values in rates.items()]
    lines += [
        "",
        f"Ratio of each round, median: our SSD view {median_ratio(rates['ssd'], rates['reference ssd']):.2f} x the "
        f"reference's, CenterNet's {median_ratio(rates['centernet'], rates['reference hflip']):.2f} x its plain flip.",
        "",
        f"Heat maps of 64 pictures of {OBJECTS} objects: {1000 * statistics.median(times['all at once']):.0f} ms all "
        f"at once, {1000 * statistics.median(times['one by one']):.0f} ms one by one (ratio of each round, median: "
        f"{median_ratio(times['all at once'], times['one by one']):.2f}).",
        "",
        f"Of a step of `make coco-centernet` at mini scale ({shares['seconds a step']:.3f} s): "
        f"{100 * shares['pictures']:.0f} % pictures, {100 * shares['targets']:.0f} % targets.",
        "",
        "- " + ", ".join(f"{key} {value}" for key, value in found["options"].items()),
        f"- {found['where']}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    """Measure and write."""
    options = parse(words, options={**DEFAULTS, "out": ""})
    out = Path(options.pop("out") or results("benchmarks"))
    numbers = {key: int(value) if value.isdecimal() else 0 for key, value in options.items()}
    for key, value in numbers.items():
        if value < 1:
            raise ReadError(f"{key}={options[key]}: must be a whole number, at least 1")
    torch.set_num_threads(numbers["threads"])
    with tempfile.TemporaryDirectory() as folder:
        data = write_pictures(Path(folder), pictures=numbers["pictures"])
        rates = picture_rates(data, size=numbers["size"], rounds=numbers["rounds"])
    found = {
        "options": numbers, "rates": rates, "heat": heat_times(size=numbers["size"], rounds=numbers["rounds"]),
        "shares": step_shares(steps=numbers["steps"]), "where": provenance(ROOT),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    (out / "detection.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (out / "detection.md").write_text(summary(found), encoding="utf-8")
    print(summary(found))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
