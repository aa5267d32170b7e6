"""Tokens a second of Transformer-XL beside torch's own encoder layers, and its use of memory.

`python benchmarks/language.py [rounds=9] [steps=3] [threads=1] [layers=4] [width=128] [heads=4] [inner=256]
[words=12944] [columns=16] [length=32] [memory_steps=1000] [out=results/benchmarks]`.
The yardstick is the same embedding and softmax around a stack of `torch.nn.TransformerEncoderLayer`, with a causal mask
and no memory: what a user would write who does without relative positions. Both take turns within one process; the
ratio is taken in each round, then its median. CPU time, since a shared machine's wall clock measures the others too.
"""

from __future__ import annotations

import csv
import gc
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from launch.checkout import ROOT
from scripts.options import command, parse
from tasks.engine.provenance import git_state, hardware, now
from tasks.language import TransformerXL
from tasks.language.adaptive import TiedAdaptiveSoftmax

OPTIONS = {
    "rounds": "9", "steps": "3", "threads": "1", "layers": "4", "width": "128", "heads": "4", "inner": "256",
    "words": "12944", "columns": "16", "length": "32", "memory_steps": "1000", "out": "results/benchmarks",
}  # fmt: skip
VARIANTS = {
    "Transformer-XL, memory of one segment": {"memory": True},
    "Transformer-XL, no memory": {"memory": False},
    "Transformer-XL, memory, fused attention": {"memory": True, "fused_attention": True},
}


class Yardstick(nn.Module):
    """Embedding, torch's encoder layers under a causal mask, the same tied softmax."""

    def __init__(self, size: dict[str, int], cutoffs: tuple[int, ...]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size["words"], size["width"])
        layer = nn.TransformerEncoderLayer(size["width"], size["heads"], size["inner"], dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, size["layers"], enable_nested_tensor=False)
        self.softmax = TiedAdaptiveSoftmax(size["words"], size["width"], cutoffs)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(size["length"]))

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        hidden = self.layers(self.embedding(inputs), mask=self.mask, is_causal=True)
        loss: Tensor = self.softmax(hidden.flatten(0, 1), targets.flatten(), self.embedding.weight)
        return loss


def stepper(size: dict[str, int], text: Tensor, variant: dict[str, bool] | None) -> Callable[[], None]:
    """Return a function that makes one training step (forward and backward) of a variant, or of the yardstick."""
    torch.manual_seed(0)
    cutoffs = (2000, 6000) if size["words"] > 6000 else ()
    inputs, targets = text[:, :-1], text[:, 1:]
    if variant is None:
        yardstick = Yardstick(size, cutoffs)

        def bare() -> None:
            yardstick.zero_grad()
            yardstick(inputs, targets).mean().backward()

        return bare
    model = TransformerXL(
        size["words"], layers=size["layers"], width=size["width"], heads=size["heads"],
        head_width=size["width"] // size["heads"], inner_width=size["inner"], cutoffs=cutoffs,
        memory=size["length"] if variant["memory"] else 0, fused_attention=variant.get("fused_attention", False),
    )  # fmt: skip
    kept: list[list[Tensor] | None] = [None]

    def step() -> None:
        model.zero_grad()
        losses, kept[0], _ = model(inputs, targets, kept[0])
        losses.mean().backward()

    return step


def seconds(step: Callable[[], None], steps: int) -> float:
    start = time.process_time()
    for _ in range(steps):
        step()
    return (time.process_time() - start) / steps


def growth(step: Callable[[], None], steps: int) -> float:
    """Return by how many MiB the process's highest memory grew over the steps, after a warm-up of a tenth."""
    for _ in range(max(1, steps // 10)):
        step()
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(steps):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main(argv: list[str]) -> int:
    values = parse(argv, options=OPTIONS)
    size = {key: int(value) for key, value in values.items() if key != "out"}
    torch.set_num_threads(size["threads"])
    text = torch.randint(size["words"], (size["columns"], size["length"] + 1))
    steps = {"torch.nn.TransformerEncoderLayer": stepper(size, text, None)}
    steps |= {name: stepper(size, text, variant) for name, variant in VARIANTS.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(size["rounds"] + 1):
        for name, step in steps.items():
            time_taken = seconds(step, size["steps"])
            if number:  # the first round warms up
                taken[name].append(time_taken)
    base = taken["torch.nn.TransformerEncoderLayer"]
    tokens = size["columns"] * size["length"]
    rows = []
    for name, times in taken.items():
        ratios = sorted(own / other for own, other in zip(times, base, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        rate = tokens / statistics.median(times)
        rows.append([name, f"{rate:.0f}", f"{statistics.median(ratios):.3f}", f"{low:.3f}", f"{high:.3f}"])
    grown = growth(steps["Transformer-XL, memory of one segment"], size["memory_steps"])
    write(Path(values["out"]), rows, grown, values)
    return 0


def write(out: Path, rows: list[list[str]], grown: float, values: dict[str, str]) -> None:
    header = ["network", "tokens a second", "time / yardstick", "lower quartile", "upper quartile"]
    given = " ".join(f"{key}={value}" for key, value in values.items() if value != OPTIONS[key])
    git = git_state(ROOT)
    layers, width, columns, length, words, threads, rounds, steps = (
        values[key] for key in ("layers", "width", "columns", "length", "words", "threads", "rounds", "steps")
    )
    lines = [
        "# Transformer-XL beside torch's encoder layers",
        "",
        f"{layers} layers of width {width}, {columns} columns of {length} tokens, {words} words, {threads} thread(s); "
        f"{rounds} rounds of {steps} training steps, interleaved; CPU time.",
        "",
        *("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)),
        "",
        f"Highest memory of the process grew by {grown:.1f} MiB over {values['memory_steps']} further steps.",
        "",
        f"{now()}, commit {git['commit']}{'+' if git['dirty'] else ''}, {hardware(1)['machine']}, torch "
        f"{torch.__version__}. Command: `{f'python benchmarks/language.py {given}'.strip()}`",
        "",
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / "language.md").write_text("\n".join(lines), encoding="utf-8")
    with (out / "language.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(command(main, __doc__))
