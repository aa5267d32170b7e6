"""Exact Recall@K beside a faiss flat index doing the same search: time and peak memory.

`python benchmarks/recall.py [rows=60502] [features=512] [classes=11316] [ks=1,10,100,1000] [noise=2.2] [threads=2]
[rounds=1] [out=results/benchmarks]`.
The embeddings have the sizes of Stanford Online Products' test set: a random centre for each class plus noise, of
length 1.
Each search runs in a process of its own, so that its peak memory is its own; both read the same file and count hits at
the same K. faiss hands over the K nearest, which is all it can do; where embeddings tie its order is arbitrary.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pages
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.engine.provenance import provenance

DEFAULTS = {
    "rows": "60502", "features": "512", "classes": "11316", "ks": "1,10,100,1000", "noise": "2.2", "threads": "2",
    "rounds": "1",
}  # fmt: skip
MOST_TIME, MOST_MEMORY = 0.8, 2 * 2**30


class Clock:
    """Wall-clock seconds and CPU seconds of all threads, of what runs inside it."""

    def __enter__(self) -> Clock:
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()


def make(folder: Path, *, rows: int, features: int, classes: int, noise: float) -> None:
    """Write seeded embeddings (rows, features) float32 and labels (rows,), classes of even size."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % classes
    centres = generator.standard_normal((classes, features), dtype=np.float32)
    found = centres[labels] + noise * generator.standard_normal((rows, features), dtype=np.float32)
    np.save(folder / "rows.npy", found / np.linalg.norm(found, axis=1, keepdims=True))
    np.save(folder / "labels.npy", labels)


def ours(folder: Path, ks: Sequence[int], threads: int) -> tuple[dict[int, float], Clock]:
    """Search with `tasks.retrieval.recall_at_k`."""
    import torch

    from tasks.retrieval.recall import recall_at_k

    torch.set_num_threads(threads)
    rows, labels = torch.from_numpy(np.load(folder / "rows.npy")), torch.from_numpy(np.load(folder / "labels.npy"))
    with Clock() as clock:
        found = recall_at_k(rows, labels, ks=ks)
    return found, clock


def with_faiss(folder: Path, ks: Sequence[int], threads: int) -> tuple[dict[int, float], Clock]:
    """Search with faiss's flat index of inner products, leaving out the query itself."""
    import faiss

    faiss.omp_set_num_threads(threads)
    rows, labels = np.load(folder / "rows.npy"), np.load(folder / "labels.npy")
    with Clock() as clock:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
        hits = dict.fromkeys(ks, 0)
        for start in range(0, len(rows), 4096):  # 1,001 neighbours of all rows at once would be 727 MB
            part = np.arange(start, min(start + 4096, len(rows)))
            near = index.search(rows[part], max(ks) + 1)[1]
            same = (labels[near] == labels[part, None]) & (near != part[:, None])
            ahead = ((near != part[:, None]) & ~same).cumsum(1)
            for k in ks:
                hits[k] += int((same & (ahead < k)).any(1).sum())
    return {k: count / len(rows) for k, count in hits.items()}, clock


SEARCHES = {"ours": ours, "faiss": with_faiss}


def measure(name: str, folder: Path, ks: str, threads: int) -> dict[str, Any]:
    """Run one search in a process of its own: recalls, seconds, CPU seconds and peak memory in bytes."""
    words = [sys.executable, "-m", "benchmarks.recall", "search", name, str(folder), ks, str(threads)]
    # Threads that wait sleep, as in training: spinning on a core that others use lengthens both searches.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise ReadError(f"{name}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def search(words: Sequence[str]) -> int:
    """The inside of such a process: search and print."""
    name, folder, ks, threads = words
    found, clock = SEARCHES[name](Path(folder), [int(k) for k in ks.split(",")], int(threads))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    print(json.dumps({"recall": found, **vars(clock), "peak_bytes": peak}))
    return 0


def table(found: Mapping[str, Mapping[str, Any]], options: Mapping[str, str], words: Sequence[str]) -> str:
    """Return the page that is written."""
    lines = [
        f"# Exact recall of {options['rows']} x {options['features']} embeddings, {options['threads']} threads\n",
        "| search | seconds | CPU seconds | peak memory of the process, MiB | "
        + " | ".join(f"recall@{k}" for k in options["ks"].split(","))
        + " |",
        "| --- | " + "--- | " * (3 + len(options["ks"].split(","))),
    ]
    for name, one in found.items():
        recalls = " | ".join(f"{100 * value:.4f}" for value in one["recall"].values())
        memory = one["peak_bytes"] / 2**20
        lines.append(f"| {name} | {one['seconds']:.1f} | {one['cpu_seconds']:.1f} | {memory:.0f} | {recalls} |")
    cpu, wall = (found["ours"][key] / found["faiss"][key] for key in ("cpu_seconds", "seconds"))
    lines.append(
        f"\nOurs takes {cpu:.2f} x the CPU time of faiss (aim: at most {MOST_TIME}) and {wall:.2f} x its wall-clock "
        "time, which says little where other work shares the cores.\n"
    )
    lines.append(f"{provenance(ROOT)}. Command: `python benchmarks/recall.py {pages.shown(words)}`\n")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Measure both, print and write; exit code 1 if ours misses an aim."""
    if words and words[0] == "search":
        return search(words[1:])
    options = parse(words, options={**DEFAULTS, "out": results("benchmarks")})
    try:
        numbers = {key: int(options[key]) for key in ("rows", "features", "classes", "threads", "rounds")}
        noise, ks = float(options["noise"]), [int(k) for k in options["ks"].split(",")]
    except ValueError as error:
        raise ReadError(f"an option is no number: {error}") from None
    if min(*numbers.values(), *ks) < 1 or not numbers["classes"] <= numbers["rows"] or max(ks) >= numbers["rows"]:
        raise ReadError("rows, features, classes, threads, rounds and ks must be at least 1, classes and ks below rows")
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), rows=numbers["rows"], features=numbers["features"], classes=numbers["classes"], noise=noise)
        found: dict[str, dict[str, Any]] = {}
        for _ in range(numbers["rounds"]):  # in turns; the quickest of each counts
            for name in SEARCHES:
                one = measure(name, Path(folder), options["ks"], numbers["threads"])
                if name not in found or one["cpu_seconds"] < found[name]["cpu_seconds"]:
                    found[name] = one
    text = table(found, options, words)
    pages.write(text, found, options, stem="recall")
    good = found["ours"]["cpu_seconds"] <= MOST_TIME * found["faiss"]["cpu_seconds"]
    return 0 if good and found["ours"]["peak_bytes"] < MOST_MEMORY else 1


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
