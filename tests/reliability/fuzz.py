"""Mutated files and made-up bytes for every parser, for minutes=10.

usage: python tests/reliability/fuzz.py [minutes=10] [only=WORD] [seed=0]

Options: minutes=10 in all; only=WORD takes the parsers whose name holds the word; seed=0. What a parser refuses, it
must refuse as InputError (a ValueError or OSError where its caller catches that); anything else is printed with the
input that caused it, shrunk by hypothesis, and the exit code is 1. Needs the tests beside the scripts.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import options


@dataclass(frozen=True)
class Parser:
    """A function of a file's content, a sound example to mutate, and what it may raise."""

    call: Callable[[bytes, Path], Any]
    example: bytes
    refusals: tuple[type[Exception], ...]


def on_disk(read: Callable[[Path], Any], name: str) -> Callable[[bytes, Path], Any]:
    """Return a function that writes the content to a file of that name and reads it."""

    def call(content: bytes, folder: Path) -> Any:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return call


def parsers() -> dict[str, Parser]:
    """Return every parser of content that people hand over; loads the suite."""
    import numpy as np
    import torch

    from evidence.runs import run as runs
    from tasks.audio import official as audio
    from tasks.audio.cache import read_wave
    from tasks.base import InputError
    from tasks.data.cifar import read_batch
    from tasks.data.files import parse_json
    from tasks.data.idx import decompress, format_idx, parse_idx
    from tasks.data.imagenet9 import read_clusters
    from tasks.data.shards import read_manifest
    from tasks.detection.annotations import read_annotations
    from tasks.engine import checkpoint
    from tasks.language.text import lines
    from tasks.retrieval import official as retrieval
    from tasks.weights import read_weights
    from tests.tasks.audio.layouts import tone, write
    from tests.tasks.data.cifar_files import pictures, python2_pickle

    images, labels = pictures(2, 0)
    saved, sound = io.BytesIO(), io.BytesIO()
    torch.save({"format": 1, "run": "e/r", "networks": {"w": torch.arange(4.0)}}, saved)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "a.wav", tone(0, 0.05))
        sound.write((Path(folder) / "a.wav").read_bytes())
    boxes = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 9, "height": 9}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "a"}],
    }
    part = {"filenames": ["a.tar"], "shard_bytes": [9], "num_samples": 1}
    shards = {"format": 1, "classes": ["a"], "splits": {"train": part, "val": part}}
    tags = b"clip_id\ta\tb\tmp3_path\n1\t1\t0\t0/a.mp3\n2\t0\t1\tc/b.mp3\n"
    refused = (InputError,)
    marks = "groundtruth_weak_label_training_set.csv"
    metrics = b'{"step":1,"epoch":0.5,"norm/mean":1.0}\n{"step":2,"epoch":1.0,"val/top1":null}\n'
    found = {
        "idx": Parser(lambda b, f: parse_idx(b, "x"), format_idx(np.ones((2, 3, 3), np.uint8)), refused),
        "gzip": Parser(on_disk(decompress, "a.gz"), b"\x1f\x8b\x08\0\0\0\0\0", refused),
        "cifar batch": Parser(
            on_disk(lambda p: read_batch(p, md5=None), "b"), python2_pickle(images, labels.tolist()), refused
        ),
        "json": Parser(lambda b, f: parse_json(b), json.dumps(boxes).encode(), (ValueError,)),
        "boxes": Parser(on_disk(read_annotations, "i.json"), json.dumps(boxes).encode(), refused),
        "shard index": Parser(
            on_disk(lambda p: read_manifest(p.parent), "_info.json"), json.dumps(shards).encode(), refused
        ),
        "clusters": Parser(
            on_disk(lambda p: read_clusters(str(p), ["n02085620/a"]), "c.csv"),
            b"path,category,cluster1,cluster2,cluster3\nn02085620/a,dog,1,2,3\n", refused,
        ),
        "products": Parser(
            on_disk(lambda p: retrieval.read_sop(p.parent), "Ebay_train.txt"),
            b"image_id class_id super_class_id path\n1 1 1 a/b.jpg\n2 2 1 a/c.jpg\n", refused,
        ),
        "tags": Parser(on_disk(lambda p: audio.mtat(p.parent, num_tags=2), "annotations_final.csv"), tags, refused),
        "events": Parser(on_disk(lambda p: audio.dcase(p.parent), marks), b"a.wav\t0\t1\tCar\n", refused),
        "sound": Parser(lambda b, f: read_wave(b, sample_rate=16_000), sound.getvalue(), (ValueError,)),
        "text": Parser(on_disk(lambda p: list(lines(p)), "t.txt"), b"a b\n\xc3\xa9 c\n", refused),
        "packed text": Parser(on_disk(lambda p: list(lines(p)), "t.xz"), b"\xfd7zXZ\0\0\x04", refused),
        "weights": Parser(on_disk(read_weights, "w.pth"), saved.getvalue(), refused),
        "checkpoint": Parser(
            on_disk(lambda p: checkpoint.load(p, run="e/r"), "last.pt"), saved.getvalue(), refused
        ),
        "metrics": Parser(on_disk(lambda p: runs._metrics(p, 1000), "metrics.jsonl"), metrics, ()),
        "record": Parser(on_disk(lambda p: runs.load_run(p.parent), "run.json"), b'{"name":"a","scores":{}}', ()),
    }  # fmt: skip
    return found


def strategy(example: bytes) -> Any:
    """Return a hypothesis strategy of contents: made up, or the example with parts changed, cut, doubled or moved."""
    from hypothesis import strategies as st

    places = st.integers(0, max(len(example), 1))
    pieces = st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b"\0", b"\xff" * 4, b"-1", b"NaN", b"1e999", b"[" * 50, b"../../x", b"\n", b'"', b"9" * 25]),
    )
    edits = st.lists(st.tuples(places, st.integers(0, 40), pieces), min_size=1, max_size=4)

    def mutated(changes: Sequence[tuple[int, int, bytes]]) -> bytes:
        content = example
        for place, length, piece in changes:
            content = content[:place] + piece + content[place + length :]
        return content

    return st.one_of(edits.map(mutated), edits.map(mutated), st.binary(max_size=200))


def fuzz(name: str, parser: Parser, *, seconds: float, seed: int, examples: int = 200) -> tuple[int, str | None]:
    """Feed one parser for so long, at least once, and return how many inputs it took and what went wrong."""
    import hypothesis

    fed = 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:

        def check(content: bytes) -> None:
            nonlocal fed
            fed += 1
            with contextlib.suppress(*parser.refusals):
                parser.call(content, Path(place))

        deadline, part = time.monotonic() + seconds, 0
        while True:
            settings = hypothesis.settings(
                max_examples=examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
            )
            part += 1
            given = hypothesis.given(strategy(parser.example))(check)
            try:
                settings(hypothesis.seed(1_000_003 * seed + part)(given))()
            except Exception as error:
                notes = " ".join(getattr(error, "__notes__", []))
                return fed, f"{type(error).__name__}: {str(error)[:300]} {notes[:600]}"
            if time.monotonic() >= deadline:
                return fed, None


def main(argv: Sequence[str]) -> int:
    """Fuzz the parsers in turn, and return the exit code."""
    import logging

    values = options.parse(argv, options={"minutes": "10", "only": "", "seed": "0"})
    try:
        minutes, seed = float(values["minutes"]), int(values["seed"])
    except ValueError:
        raise options.ReadError("minutes is a number, and seed a whole one") from None
    logging.disable(logging.WARNING)  # what a reader leaves out, it says
    chosen = {name: parser for name, parser in parsers().items() if values["only"] in name}
    if not chosen:
        raise options.ReadError(f"only={values['only']} is in none of: {', '.join(parsers())}")
    wrong = 0
    for name, parser in chosen.items():
        fed, fault = fuzz(name, parser, seconds=60 * minutes / len(chosen), seed=seed)
        wrong += fault is not None
        print(f"{name:14} {fed:7} inputs  {fault or 'refused or read'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(options.command(main, __doc__ or ""))
