"""Images a second of the loader, folders and shards, beside timm's and torchvision's.

`python benchmarks/loader.py [images=256] [size=224] [batch=32] [workers=0,2] [rounds=9] [quality=90] [width=500]
[height=375] [folder=] [stem=loader] [out=results/benchmarks]`.
All read the same generated JPEG files (of about ImageNet's mean dimensions and bytes) and deliver what a network takes:
batches of random crops, resized and mirrored, float32 and normalised. Each round every loader makes one pass of its
own, starting its workers; the order turns from round to round. A ratio is taken within each round, then its median
and quartiles over rounds. The clock of the ratios is CPU time of the process and its workers, which on a machine
that other work shares is steadier than the wall clock and is what limits a loader whose cores are busy; images a
second of wall time stand beside it. `folder` keeps the generated files there and uses them again.
"""

from __future__ import annotations

import csv
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from scripts.prepare import imagenet_shards
from tasks.base import Shard
from tasks.data import CorruptImages, ImageFolderSet, ImageSet, ImageShardSet, train_batches
from tasks.engine.provenance import provenance

DEFAULTS = {
    "images": "256", "size": "224", "batch": "32", "workers": "0,2", "rounds": "9", "quality": "90", "width": "500",
    "height": "375", "folder": "", "stem": "loader", "out": results("benchmarks"),
}  # fmt: skip
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 4
OURS, REFERENCES = ("ours, folders", "ours, shards", "ours, folders, decode=full"), ("timm", "torchvision")
DECODER = "decoding alone"

Batches = Iterator[tuple[Tensor, Tensor]]
Pass = Callable[[int], Batches]  # epoch -> its batches: pictures (B, 3, S, S) float32, classes (B,)


def picture(number: int, *, width: int, height: int) -> Image.Image:
    """Return a random picture with about a photograph's spectrum: its amplitude falls as frequency^-1.1.

    With that exponent, 500 x 375 pixels at quality 90 are about as many bytes as ImageNet's mean file.
    """
    generator = np.random.default_rng(number)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falling = np.maximum(np.hypot(rows, columns), 1 / max(width, height)) ** -1.1
    noise = np.fft.rfft2(generator.standard_normal((3, height, width))) * falling
    waves = np.fft.irfft2(noise, s=(height, width))
    shared = waves.mean(0, keepdims=True)  # channels of photographs resemble each other
    waves = shared + 0.3 * (waves - shared)
    waves = 128 + 55 * (waves - waves.mean()) / waves.std()
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def generate(root: Path, *, images: int, width: int, height: int, quality: int) -> None:
    """Write ImageNet's layout with so many training pictures, unless they are there."""
    for split, count in (("train", images), ("val", CLASSES)):
        for number in range(count):
            path = root / split / f"n{number % CLASSES:08d}" / f"{number:06d}.JPEG"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                picture(number, width=width, height=height).save(path, quality=quality)


def ours(data: ImageSet, *, batch: int, workers: int) -> Pass:
    """The suite's loader, and the normalisation that is the device's part, in place as timm's loader does it."""
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))

    def passing(epoch: int) -> Batches:
        batches = train_batches(
            data, Shard(), batch_size=batch, seed=0, epoch=epoch, start=0, corrupt=CorruptImages(data),
            num_workers=workers,
        )  # fmt: skip
        for images, labels in batches:
            yield images.float().sub_(mean).div_(std), labels

    return passing


def timm_loader(root: Path, *, size: int, batch: int, workers: int) -> Pass:
    """Call timm's `create_loader` as its training script calls it, without augmentation that ours does not do."""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", root=str(root), split="train", is_training=True, batch_size=batch)
    loader = create_loader(
        dataset, (3, size, size), batch, is_training=True, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5,
        color_jitter=0.0, interpolation="bilinear", mean=MEAN, std=STD, num_workers=workers,
        device=torch.device("cpu"), persistent_workers=False,
    )  # fmt: skip
    return lambda epoch: iter(loader)


def torchvision_loader(root: Path, *, size: int, batch: int, workers: int) -> Pass:
    """What torchvision's reference training does: ImageFolder, its transforms, DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [
        transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]  # fmt: skip
    dataset = ImageFolder(str(root / "train"), transforms.Compose(steps))
    loader = DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=workers, drop_last=True)
    return lambda epoch: iter(loader)


def decoder(root: Path) -> Pass:
    """Decode every file whole with libjpeg-turbo, and no more: what no loader of these pixels can undercut."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    def passing(epoch: int) -> Batches:
        for path in sorted((root / "train").rglob("*.JPEG")):
            decode_jpeg(read_file(str(path)), mode=ImageReadMode.RGB)
            yield torch.empty(1), torch.empty(1)

    return passing


def clocks() -> tuple[float, float]:
    """Return CPU seconds of this process and of the workers that have ended, and wall seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used), time.perf_counter()


def timed(passing: Pass, epoch: int, *, size: int) -> tuple[int, float, float]:
    """Return images, CPU seconds and wall seconds of one pass, its workers' start and end included."""
    count, begun = 0, clocks()
    batches = passing(epoch)
    for images, labels in batches:
        assert images.ndim == 1 or (images.shape == (len(labels), 3, size, size) and images.dtype == torch.float32)
        count += len(labels)
    del batches  # with it the workers, whose time counts once they have ended
    ended = clocks()
    return count, ended[0] - begun[0], ended[1] - begun[1]


def measure(root: Path, shards: Path, *, workers: int, options: dict[str, int]) -> list[dict[str, Any]]:
    """Time all loaders in turns with so many workers; one row a loader and round."""
    size, batch = options["size"], options["batch"]
    passes: dict[str, Pass] = {
        OURS[0]: ours(ImageFolderSet(str(root), image_size=size, decode="quick"), batch=batch, workers=workers),
        OURS[1]: ours(ImageShardSet(str(shards), image_size=size, decode="quick"), batch=batch, workers=workers),
        OURS[2]: ours(ImageFolderSet(str(root), image_size=size), batch=batch, workers=workers),
        DECODER: decoder(root),
        REFERENCES[0]: timm_loader(root, size=size, batch=batch, workers=workers),
        REFERENCES[1]: torchvision_loader(root, size=size, batch=batch, workers=workers),
    }
    rows = []
    for number in range(options["rounds"] + 1):
        names = list(passes)[number % len(passes) :] + list(passes)[: number % len(passes)]
        for name in names:
            images, cpu, wall = timed(passes[name], number, size=size)
            if number:  # the first round warms up
                rows.append({"workers": workers, "round": number, "loader": name, "images": images,
                             "cpu_seconds": round(cpu, 4), "wall_seconds": round(wall, 4)})  # fmt: skip
        print(f"\rworkers {workers}, round {number}/{options['rounds']}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def rates(rows: Sequence[dict[str, Any]], loader: str, workers: int, clock: str) -> list[float]:
    """Return images a second of each round, in order."""
    chosen = [row for row in rows if (row["loader"], row["workers"]) == (loader, workers)]
    return [row["images"] / row[f"{clock}_seconds"] for row in sorted(chosen, key=lambda row: row["round"])]


def spread(values: Sequence[float], digits: int) -> str:
    """Return "median (quartile to quartile)"."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: speeds, and ours over each reference."""
    text = "| workers | loader | images a CPU second | images a second | / timm | / torchvision |\n"
    text += "| --- | --- | --- | --- | --- | --- |\n"
    for workers in dict.fromkeys(row["workers"] for row in rows):
        for loader in (*OURS, *REFERENCES, DECODER):
            cpu = rates(rows, loader, workers, "cpu")
            ratios = [
                spread([a / b for a, b in zip(cpu, rates(rows, other, workers, "cpu"), strict=True)], 3)
                if loader not in REFERENCES else ""
                for other in REFERENCES
            ]  # fmt: skip
            wall = spread(rates(rows, loader, workers, "wall"), 1)
            text += f"| {workers} | {loader} | {spread(cpu, 1)} | {wall} | {ratios[0]} | {ratios[1]} |\n"
    return text


def numbers(options: dict[str, str]) -> tuple[dict[str, int], list[int]]:
    """Return the whole numbers among the options, and the counts of workers."""
    found = {}
    for key in ("images", "size", "batch", "rounds", "quality", "width", "height"):
        if not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(f"{key} is {options[key]!r}; it must be a whole number, at least 1")
        found[key] = int(options[key])
    if found["images"] < max(found["batch"], CLASSES):
        raise ReadError(f"images is {found['images']}; it must be at least batch ({found['batch']}) and {CLASSES}")
    words = options["workers"].split(",")
    if not all(word.isdecimal() for word in words):
        raise ReadError(f"workers is {options['workers']!r}; it must be whole numbers with commas, such as 0,2")
    return found, [int(word) for word in words]


def main(argv: Sequence[str]) -> int:
    options = parse(argv, options=DEFAULTS)
    whole, workers = numbers(options)
    torch.set_num_threads(1)
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    with ExitStack() as stack:
        given = options["folder"] or stack.enter_context(tempfile.TemporaryDirectory())
        root, shards = Path(given).expanduser() / "folders", Path(given).expanduser() / "shards"
        generate(root, **{key: whole[key] for key in ("images", "width", "height", "quality")})
        with redirect_stdout(sys.stderr):
            imagenet_shards.main([f"data_root={root}", f"out={shards}", "shard_size=64", "workers=1"])
        stored = sum(path.stat().st_size for path in (root / "train").rglob("*.JPEG"))
        rows = [row for count in workers for row in measure(root, shards, workers=count, options=whole)]
    out = Path(options["out"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{options['stem']}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = (
        "# Loaders of ImageNet's training pictures\n\n"
        f"{whole['images']} generated JPEG files of {whole['width']} x {whole['height']} pixels and "
        f"{stored / whole['images'] / 1000:.0f} kB, to {whole['size']} pixels, batches of {whole['batch']}; "
        f"{whole['rounds']} rounds in turns, each a pass of every loader. Median (quartiles); ratios are of CPU time, "
        "workers included, within a round; above 1 ours is faster.\n\n" + table(rows) + "\n"
        "All end in normalised float32 on the CPU. Ours also seeds each picture's crop by itself, which the others do "
        "not: that is what lets a run resume inside an epoch. Rows without decode=full decode what the crop needs "
        '(`tasks/data/quick_view.py`). "Decoding alone" decodes every file whole in this process with libjpeg-turbo '
        "and makes no batch: its ratio bounds any loader that decodes at full scale.\n\n"
        f"{provenance(ROOT)}, "
        f"load {os.getloadavg()[0]:.1f}. "
        f"Command: `make benchmark-loader {' '.join(argv)}`\n"
    )
    (out / f"{options['stem']}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
