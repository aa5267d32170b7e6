"""Search pictures with a trained retrieval network, and draw queries with what they find."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms import v2

from evidence.runs.run import ReadError
from launch.trained.restore import build, configuration, weights
from tasks.data.folder import list_images
from tasks.data.images import BILINEAR, UnreadableImageError
from tasks.retrieval import EmbeddingNet, RetrievalSet
from tasks.retrieval.sets import read_rgb

HIT, MISS, ASKED = "#1a7f37", "#cf222e", "#57606a"
BATCH = 64


@dataclass(frozen=True)
class Row:
    """One query and its neighbours: pictures (3, S, S) uint8, captions, and whether each is of the query's class."""

    query: Tensor
    caption: str
    found: list[Tensor]
    captions: list[str]
    hits: list[bool | None]


@dataclass(frozen=True)
class Trained:
    """A run's network and configuration."""

    net: EmbeddingNet
    config: dict[str, Any]


def load(folder: Path, checkpoint: str) -> Trained:
    """Read a run's network in evaluation mode.

    Raises:
        ReadError: The folder holds no run of a retrieval experiment, or no such checkpoint.
    """
    if checkpoint not in ("best", "last"):
        raise ReadError(f"checkpoint={checkpoint}: choose best or last")
    config = configuration(folder)
    if not str(config.get("task", {}).get("_target_", "")).startswith("tasks.retrieval."):
        raise ReadError(f"run={folder}: is a run of {config.get('experiment_name')}, not of a retrieval experiment")
    state = weights(folder, checkpoint)["model"]
    net = build(config["model"])(num_proxies=len(state.get("proxies", ())), init="random")
    net.load_state_dict(state)
    return Trained(net.eval(), config)


@torch.no_grad()
def embed(net: EmbeddingNet, pictures: Sequence[Tensor]) -> Tensor:
    """Return embeddings (N, D) of pictures (3, S, S) uint8."""
    rows = [net(torch.stack(list(pictures[i : i + BATCH])))[0] for i in range(0, len(pictures), BATCH)]
    return torch.cat(rows)


def view(path: Path, config: Mapping[str, Any]) -> Tensor:
    """Return a picture as the run's set shows it in validation: short side resized, centre crop, (3, S, S) uint8."""
    size = int(config["data"]["image_size"])
    short = round(size * float(config["data"].get("resize_ratio", 1.0)))
    image = v2.functional.resize(read_rgb(path), [short], BILINEAR, antialias=True)
    return v2.functional.pil_to_tensor(v2.functional.center_crop(image, [size, size]))


def search_folder(trained: Trained, folder: Path, query: Path, *, k: int, embeddings: str) -> Row:
    """Embed a folder, print the neighbours of the query and return them.

    Raises:
        ReadError: No folder, no readable picture in it, or no such query.
    """
    if not folder.is_dir():
        raise ReadError(f"folder={folder}: is no folder")
    paths, pictures = [], []
    for name in list_images(folder):
        try:
            pictures.append(view(folder / name, trained.config))
            paths.append(folder / name)
        except UnreadableImageError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not paths:
        raise ReadError(f"folder={folder}: holds no picture that can be read")
    try:
        asked = view(query, trained.config)
    except UnreadableImageError as error:
        raise ReadError(f"query={query}: cannot be read ({error})") from None
    rows = embed(trained.net, pictures)
    if embeddings:
        np.savez(embeddings, paths=[str(path) for path in paths], embeddings=rows.numpy())
    cosine = rows @ embed(trained.net, [asked])[0]
    others = [i for i in cosine.argsort(descending=True, stable=True).tolist() if not paths[i].samefile(query)][:k]
    for i in others:
        print(f"{cosine[i]:.4f}  {paths[i]}")
    captions = [f"{paths[i].name}\n{cosine[i]:.2f}" for i in others]
    return Row(asked, query.name, [pictures[i] for i in others], captions, [None] * len(others))


def search_set(trained: Trained, *, queries: int, k: int, data_root: str) -> list[Row]:
    """Return queries spread over the run's unseen classes, with their neighbours."""
    root = {"root": data_root} if data_root else {}
    data: RetrievalSet = build({**trained.config["data"], **root})
    labels = torch.tensor(data.val_labels)
    # A batch of pictures at a time, and those that are shown read again: a large set would not fit into memory.
    rows = torch.cat([
        embed(trained.net, [data.eval_example(i)[0] for i in range(first, min(first + BATCH, len(labels)))])
        for first in range(0, len(labels), BATCH)
    ])  # fmt: skip
    last = len(rows) if data.num_queries is None else data.num_queries
    found = []
    for query in np.linspace(0, last - 1, min(queries, last)).round().astype(int).tolist():
        cosine = rows @ rows[query]
        if data.num_queries is None:
            cosine[query] = -torch.inf
        else:
            cosine[:last] = -torch.inf
        near = cosine.topk(min(k, int(torch.isfinite(cosine).sum()))).indices.tolist()
        hits: list[bool | None] = [bool(labels[i] == labels[query]) for i in near]
        captions = [f"{cosine[i]:.2f}" for i in near]
        shown = [data.eval_example(i)[0] for i in (query, *near)]
        found.append(Row(shown[0], _name(data, int(labels[query])), shown[1:], captions, hits))
    return found


def write_neighbours(folder: Path) -> None:
    """Draw `neighbours.png` of a run that has ended: queries of its unseen classes with what is nearest to them."""
    draw(search_set(load(folder, "best"), queries=8, k=6, data_root=""), folder / "figures" / "neighbours.png")


def _name(data: RetrievalSet, label: int) -> str:
    names = getattr(data, "val_classes", ())
    return str(names[label]).replace("-", " ") if names else f"class {label}"


def draw(rows: Sequence[Row], out: Path) -> None:
    """Draw one row a query: it on the left, then its neighbours, framed by whether they are of its class."""
    columns = 1 + max(len(row.found) for row in rows)
    figure = Figure(figsize=(1.15 * columns, 1.35 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        shown = [(row.query, row.caption, None), *zip(row.found, row.captions, row.hits, strict=True)]
        for place, ax in enumerate(axes):
            ax.set(xticks=[], yticks=[])
            if place >= len(shown):
                ax.set_visible(False)
                continue
            picture, caption, hit = shown[place]
            ax.imshow(picture.permute(1, 2, 0).numpy())
            mark = "" if hit is None else (" hit" if hit else " miss")  # colour alone does not reach everybody
            ax.set_xlabel(caption[:40] + mark, fontsize=6, labelpad=2)
            for spine in ax.spines.values():
                spine.set(color=ASKED if hit is None else HIT if hit else MISS, linewidth=1.5 if hit is None else 3)
    grid[0][0].set_title("query", fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    print(f"picture  {out}")
