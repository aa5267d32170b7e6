"""Check or make the texture clusters of 9-Class ImageNet's validation pictures.

python -m scripts.prepare.imagenet9_clusters mode=check file=9class_imagenet_val.csv
python -m scripts.prepare.imagenet9_clusters mode=make data_root=/data/imagenet weights=vgg16.pth out=clusters.csv

Clusters made here are not those of the published numbers, whose k-means had no fixed seed.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.models import vgg16

from tasks.base import InputError, Shard
from tasks.data.files import existing_folder
from tasks.data.imagenet9 import CLASS_OF, NUM_CLUSTERINGS, PUBLISHED_CLUSTERS, SYNSETS, SynsetPictures, read_clusters
from tasks.data.loader import CorruptImages, eval_batches
from tasks.data.textures import cluster, gram_matrices

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPTIONS = {
    "mode": "check",
    "file": "",
    "data_root": "",
    "weights": "",
    "out": "clusters.csv",
    "layer": "15",
    "seed": "0",
}


def check(path: str) -> str:
    """Return a line that says which clusters a file holds; raises InputError where it is none of this format."""
    if not path:
        raise InputError("file is not set: give the CSV to check, file=/path/to/9class_imagenet_val.csv")
    with_rows = Path(path).expanduser()
    if not with_rows.is_file():
        raise InputError(f"file={path}: does not exist")
    names = [line.partition(",")[0] for line in with_rows.read_text(encoding="utf-8").splitlines()[1:]]
    unknown = [name for name in names if name.partition("/")[0] not in CLASS_OF]
    if unknown:
        raise InputError(f"file={path}: {unknown[0]} is in none of the 42 synsets")
    clusterings, published = read_clusters(path, names)
    labels = np.array([CLASS_OF[name.partition("/")[0]] for name in names])
    sizes = [np.unique(labels * 1000 + clusters, return_counts=True)[1] for clusters in clusterings]
    large = ", ".join(str(int((size >= 10).sum())) for size in sizes)
    digest = hashlib.sha256(with_rows.read_bytes()).hexdigest()
    verdict = "the published clusters" if published else f"not the published clusters ({PUBLISHED_CLUSTERS[:12]}...)"
    return f"{path}: {len(names)} pictures, cells of at least 10: {large}; sha256 {digest[:12]}..., {verdict}"


def vgg_features(weights: str, layer: int) -> nn.Module:
    """Return VGG16's feature stack cut after `layer` modules, with weights from a torchvision checkpoint.

    15 modules are what the published code keeps: the last is conv3_3, without its ReLU.
    """
    if not 1 <= layer <= 31:
        raise InputError(f"layer={layer}: must be from 1 to 31, the modules of VGG16's features")
    if not Path(weights).is_file():
        raise InputError(
            f"weights={weights or 'not set'}: give torchvision's VGG16 checkpoint, weights=/path/to/vgg16.pth"
        )
    net = vgg16(weights=None)
    try:
        net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:
        raise InputError(
            f"weights={weights}: is no checkpoint of torchvision's VGG16 ({type(error).__name__})"
        ) from error
    return net.features[:layer].eval()


@torch.no_grad()
def grams_of(data: SynsetPictures, features: nn.Module) -> NDArray[np.float32]:
    """Return every validation picture's Gram matrix (N, C * C); no picture may be unreadable."""
    mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    corrupt = CorruptImages(data)
    found = [
        gram_matrices(features((images.float() - mean) / std)).numpy()
        for images, _ in eval_batches(data, Shard(), batch_size=32, corrupt=corrupt, num_workers=0)
    ]
    if corrupt.count:
        raise InputError(f"{corrupt.count} validation pictures cannot be read; every one needs a cluster")
    return np.concatenate(found)


def make(options: dict[str, str]) -> str:
    """Write clusters of all validation pictures and return a line about them."""
    folder = existing_folder("data_root", options["data_root"], "the folder that holds val/<synset>/*.JPEG") / "val"
    features = vgg_features(options["weights"], int(options["layer"]))
    data = SynsetPictures(
        {"val": folder}, name="imagenet9", image_size=224, resize_ratio=256 / 224, crop_scale=(0.08, 1.0), mean=MEAN,
        std=STD, licence="", max_corrupt=None,
    )  # fmt: skip
    grams = grams_of(data, features)
    clusterings = [cluster(grams, seed=int(options["seed"]) + k) for k in range(NUM_CLUSTERINGS)]
    classes = list(SYNSETS)
    with Path(options["out"]).expanduser().open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "category", *(f"cluster{k}" for k in range(1, NUM_CLUSTERINGS + 1))])
        for index, name in enumerate(data.names("val")):
            writer.writerow([name, classes[data.label("val", index)], *(int(c[index]) for c in clusterings)])
    return f"{options['out']}: {len(grams)} pictures; these clusters are not comparable with published numbers"


def main(arguments: list[str]) -> int:
    """Run the command and return the exit code: 0 done, 2 a wrong option or file."""
    options = dict(OPTIONS)
    try:
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if not equals or key not in options:
                raise InputError(f"{argument}: not an option; known are {', '.join(f'{name}=...' for name in options)}")
            options[key] = value
        for key in ("layer", "seed"):
            if not options[key].isdecimal():
                raise InputError(f"{key}={options[key]}: must be a whole number")
        if options["mode"] not in ("check", "make"):
            raise InputError(f"mode={options['mode']}: must be check or make")
        print(check(options["file"]) if options["mode"] == "check" else make(options))
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
