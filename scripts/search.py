"""Search pictures with a trained retrieval network, and draw queries with what they find."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # `python scripts/search.py` puts scripts/ there, not the root
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from torch import Tensor  # noqa: E402
from torchvision.transforms import v2  # noqa: E402

from evidence.runs.run import ReadError  # noqa: E402
from scripts.options import command, parse  # noqa: E402
from scripts.restore import build, configuration, weights  # noqa: E402
from tasks.base import InputError  # noqa: E402
from tasks.data.folder import list_images  # noqa: E402
from tasks.data.images import BILINEAR, UnreadableImageError  # noqa: E402
from tasks.retrieval import EmbeddingNet, RetrievalSet  # noqa: E402
from tasks.retrieval.sets import read_rgb  # noqa: E402

USAGE = """
usage: python scripts/search.py run=FOLDER [folder=PICTURES query=PICTURE] [KEY=VALUE ...]

With folder= and query=: embeds all pictures below a folder and prints the nearest to the query, with their cosines.
Without: draws queries of the run's own unseen classes with their nearest neighbours; green frames are hits, red misses.

  run=FOLDER          a run of a retrieval experiment, results/runs/EXPERIMENT/NAME
  k=6                 neighbours of a query
  queries=8           rows of the picture, spread evenly over the set's queries
  checkpoint=best     best or last
  embeddings=FILE     also write the folder's paths and embeddings, as npz
  out=FILE            the picture; default RUN/figures/neighbours.png, and none for folder= unless given
  data_root=FOLDER    where an official set lies now, if not where the run had it

example: python scripts/search.py run=results/runs/cub-proxyanchor/NAME folder=photos query=photos/cat.jpg k=5
"""
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


def _count(options: Mapping[str, str], key: str) -> int:
    if not options[key].isdecimal() or int(options[key]) < 1:
        raise ReadError(f"{key}={options[key]}: must be a whole number, at least 1")
    return int(options[key])


def main(words: Sequence[str]) -> int:
    """Search, print and draw."""
    defaults = {"run": "", "folder": "", "query": "", "k": "6", "queries": "8", "checkpoint": "best"}
    options = parse(words, options={**defaults, "embeddings": "", "out": "", "data_root": ""})
    if not options["run"]:
        raise ReadError("run= is missing: the folder of a run, results/runs/EXPERIMENT/NAME")
    if bool(options["folder"]) != bool(options["query"]):
        raise ReadError("folder= and query= go together")
    k, queries, run = _count(options, "k"), _count(options, "queries"), Path(options["run"])
    try:
        trained = load(run, options["checkpoint"])
        if options["folder"]:
            folder, query = Path(options["folder"]), Path(options["query"])
            rows = [search_folder(trained, folder, query, k=k, embeddings=options["embeddings"])]
        else:
            rows = search_set(trained, queries=queries, k=k, data_root=options["data_root"])
    except (InputError, UnreadableImageError) as error:
        raise ReadError(str(error)) from None
    if options["out"] or not options["folder"]:
        draw(rows, Path(options["out"]) if options["out"] else run / "figures" / "neighbours.png")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, USAGE))
