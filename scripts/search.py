"""Nearest pictures by a trained retrieval network, and queries with what they find (run=FOLDER)."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from launch.trained.neighbours import draw, load, search_folder, search_set
from launch.trained.neighbours import write_neighbours as write_neighbours  # configurations name it here
from scripts.options import command, parse
from tasks.base import InputError
from tasks.data.images import UnreadableImageError

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
