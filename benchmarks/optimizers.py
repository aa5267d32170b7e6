"""Steps of AdamP and SGDP beside torch's fused AdamW and SGD, and other packages' AdamP and SGDP.

`make benchmark-optimizers` or `python benchmarks/optimizers.py [rounds=9] [sets=resnet18,resnet50,mobilenet_v2,vit_s16]
[gradients=orthogonal,random] [threads=1,2] [training=20] [fetch=true] [out=results/benchmarks]`.
Every optimizer has parameters of the real shapes and takes turns with the others within one process; the order turns
round by round, and the ratio to the baseline of the same round is taken first, then its median and quartiles over
rounds. At 1 thread CPU time counts, which other work on the machine does not disturb much; at more, wall time.
"orthogonal" gradients are what batch norm gives: every row is orthogonal to its weight's, and the update is projected;
"random" ones take both tests and are not. The learning rate is 1e-8, so that weights and decisions stay.
`training` is the number of rounds of whole training steps (ResNet18, 64 images of 32 x 32, one network that all
optimizers take turns on); 0 leaves them out. `fetch=false` does not download the published package.
"""

from __future__ import annotations

import csv
import inspect
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Threads that wait sleep: where they spin, wall time on a shared machine is that of the other work. Before torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from adamp import SGDP, AdamP
from benchmarks.peers import Make, peers
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from launch.interleaved import clock, take_turns
from scripts.options import command, parse, results
from tasks.engine.provenance import git_state, hardware, now, versions

OPTIONS = {
    "rounds": "9", "sets": "resnet18,resnet50,mobilenet_v2,vit_s16", "gradients": "orthogonal,random",
    "threads": "1,2", "training": "20", "fetch": "true", "out": results("benchmarks"),
}  # fmt: skip
ADAM = {"lr": 1e-8, "weight_decay": 1e-2}
SGD = {"lr": 1e-8, "weight_decay": 1e-4, "momentum": 0.9, "nesterov": True}
TINY = ((8, 1, 3, 3), (8,), (16, 8, 3, 3), (16,), (10, 64), (10,))


@dataclass
class Result:
    """One optimizer's time in one setting: median milliseconds a step, and the ratio to the baseline with quartiles."""

    threads: int
    clock: str
    setting: str
    gradients: str
    family: str
    optimizer: str
    ms: float
    ratio: float
    low: float
    high: float


def shapes(name: str) -> list[tuple[int, ...]]:
    """Return the shapes of a network's parameters."""
    if name == "tiny":
        return list(TINY)
    with torch.device("meta"):
        if name == "vit_s16":
            import timm

            model: nn.Module = timm.create_model("vit_small_patch16_224")
        else:
            import torchvision

            model = getattr(torchvision.models, name)()
    return [tuple(p.shape) for p in model.parameters()]


def tensors(name: str, gradients: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return random weights and gradients of a network's shapes."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in shapes(name)]
    grads = [torch.randn(w.shape, generator=generator) for w in weights]
    if gradients == "orthogonal":
        for w, g in zip(weights, grads, strict=True):
            if w.ndim > 1:
                rows, along = w.flatten(1), g.flatten(1)
                along -= (along * rows).sum(1, keepdim=True) / (rows * rows).sum(1, keepdim=True) * rows
    return weights, grads


def contenders(family: str, *, fetch: bool) -> tuple[dict[str, Make], list[str]]:
    """Return name -> constructor from parameters, the baseline first, and notes on what is left out."""
    ours, kind, options = (AdamP, "AdamP", ADAM) if family == "adam" else (SGDP, "SGDP", SGD)
    theirs, base = (torch.optim.AdamW, "AdamW") if family == "adam" else (torch.optim.SGD, "SGD")
    made: dict[str, Make] = {}
    notes: list[str] = []

    def add(name: str, cls: Make, **more: Any) -> None:
        made[name] = lambda params: cls(params, **options, **more)

    add(f"torch {base} fused", theirs, fused=True)
    add(f"torch {base} foreach", theirs, foreach=True)
    add(f"torch {base} single", theirs, foreach=False)
    known = inspect.signature(ours).parameters
    for path, chosen in (("fused", (None, True)), ("foreach", (True, False)), ("single", (False, False))):
        given = {k: v for k, v in zip(("foreach", "fused"), chosen, strict=True) if k in known}
        if path != "single" and path not in known:
            notes.append(f"{kind} {path}: not there yet")
        else:
            add(f"{kind} {path}", ours, **given)
    if {"foreach", "fused"} & known.keys():
        add(f"{kind} default", ours)
    others, absent = peers(kind, fetch=fetch)
    for name, cls in others.items():
        add(f"{kind} of {name}", cls)
        if "foreach" in inspect.signature(cls).parameters:
            add(f"{kind} of {name}, foreach", cls, foreach=True)
    return made, notes + absent


def compared(seconds: Mapping[str, Sequence[float]], **setting: Any) -> list[Result]:
    """Return every contender's result against the first."""
    baseline = next(iter(seconds.values()))
    found = []
    for name, values in seconds.items():
        ratios = [mine / base for mine, base in zip(values, baseline, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        found.append(
            Result(optimizer=name, ms=1000 * statistics.median(values), ratio=middle, low=low, high=high, **setting)
        )
    return found


def usable(made: Mapping[str, Make], notes: list[str]) -> dict[str, Make]:
    """Return those that take a step; the others go into the notes with what they say."""
    kept = {}
    for name, make in made.items():
        parameter = nn.Parameter(torch.ones(2, 3))
        parameter.grad = torch.ones(2, 3)
        try:
            make([parameter]).step()
        except (RuntimeError, NotImplementedError) as error:
            notes.append(f"{name}: {str(error).splitlines()[0]}")
        else:
            kept[name] = make
    return kept


def steps(options: Mapping[str, Any], notes: list[str]) -> Iterator[Result]:
    """Time the optimizers' steps alone."""
    for family in ("adam", "sgd"):
        made, absent = contenders(family, fetch=options["fetch"])
        notes += absent
        made = usable(made, notes)
        for setting in options["sets"]:
            for gradients in options["gradients"]:
                weights, grads = tensors(setting, gradients)
                optimizers = {name: attached(make, weights, grads) for name, make in made.items()}
                acts = {name: optimizer.step for name, optimizer in optimizers.items()}
                for threads in options["threads"]:
                    torch.set_num_threads(threads)
                    label, read = clock(threads)
                    seconds = take_turns(acts, read, rounds=options["rounds"])
                    yield from compared(
                        seconds, threads=threads, clock=label, setting=setting, gradients=gradients, family=family
                    )


def attached(make: Make, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> Optimizer:
    """Return an optimizer with weights of its own; the gradients, which are only read, are shared."""
    params = [nn.Parameter(w.clone()) for w in weights]
    for p, g in zip(params, grads, strict=True):
        p.grad = g
    return make(params)


def training(options: Mapping[str, Any], notes: list[str]) -> Iterator[Result]:
    """Time whole training steps of one network with each optimizer in turn."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    images, labels = torch.randn(64, 3, 32, 32), torch.randint(1000, (64,))

    def step(optimizer: Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    made, _ = contenders("adam", fetch=options["fetch"])
    kept = {name: make for name, make in usable(made, []).items() if not name.startswith("torch AdamW s")}
    optimizers = {name: make(list(model.parameters())) for name, make in kept.items()}
    acts = {name: lambda optimizer=optimizer: step(optimizer) for name, optimizer in optimizers.items()}
    for threads in options["threads"]:
        torch.set_num_threads(threads)
        label, read = clock(threads)
        seconds = take_turns(acts, read, rounds=options["training"])
        yield from compared(
            seconds, threads=threads, clock=label, setting="resnet18 training step", gradients="its own", family="adam"
        )


def table(found: Sequence[Result], threads: int, family: str) -> str:
    """Return a Markdown table: one row an optimizer, one column a set and kind of gradients."""
    chosen = [r for r in found if (r.threads, r.family) == (threads, family)]
    if not chosen:
        return ""
    columns = list(dict.fromkeys((r.setting, r.gradients) for r in chosen))
    cells = {(r.optimizer, r.setting, r.gradients): r for r in chosen}
    heads = [f"{setting}, {gradients}" for setting, gradients in columns]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(columns) + 1) + "|"]
    for i, name in enumerate(dict.fromkeys(r.optimizer for r in chosen)):
        row = [cells.get((name, *column)) for column in columns]
        shown = [
            "" if r is None else f"{r.ms:.3g} ms" if i == 0 else f"{r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})"
            for r in row
        ]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def page(found: Sequence[Result], notes: Sequence[str], options: Mapping[str, Any], words: Sequence[str]) -> str:
    """Return the whole page."""
    parts = [
        "# Time of an optimizer step\n",
        "First row of a table: milliseconds a step of torch's fused optimizer. All others: their time as a multiple of "
        f"it, median over {options['rounds']} rounds (quartiles). Gradients are orthogonal to the weights row by row, "
        "or random. The last column, where there is one, is a whole training step of ResNet18 with 64 images of "
        f"32 x 32, {options['training']} rounds. float32.\n",
    ]
    for threads in options["threads"]:
        for family in ("adam", "sgd"):
            title = f"## {'AdamP' if family == 'adam' else 'SGDP'}, {threads} thread{'s' if threads > 1 else ''}, "
            parts += [f"{title}{clock(threads)[0]} time\n", table(found, threads, family)]
    if notes:
        parts += ["Left out:\n", "".join(f"- {note}\n" for note in dict.fromkeys(notes))]
    state, dirty = git_state(ROOT), ""
    if state["dirty"]:
        dirty = " with changes"
    said = " ".join(["python benchmarks/optimizers.py", *words])
    parts.append(
        f"{now()}, commit {state['commit']}{dirty}, {hardware(1)['machine']}, torch {versions()['torch']}, "
        f"Python {versions()['python']}. Command: `{said}`\n"
    )
    return "\n".join(parts)


def write(text: str, found: Sequence[Result], out: Path) -> None:
    """Write the page, and every result as a line of CSV."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "optimizers.md").write_text(text)
    with (out / "optimizers.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result.__dataclass_fields__)
        for result in found:
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in vars(result).values()])


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Return the options, typed.

    Raises:
        ReadError: A value is not of its kind.
    """
    given: dict[str, Any] = dict(parse(words, options=OPTIONS))
    try:
        for key in ("rounds", "training"):
            given[key] = int(given[key])
        given["threads"] = [int(value) for value in given["threads"].split(",")]
    except ValueError as error:
        raise ReadError(f"rounds, training and threads take whole numbers: {error}") from None
    if not (given["rounds"] >= 1 and given["training"] >= 0 and min(given["threads"]) >= 1):
        raise ReadError("rounds and threads must be at least 1, training at least 0")
    for key, known in (
        ("sets", ("resnet18", "resnet50", "mobilenet_v2", "vit_s16", "tiny")), ("gradients", ("orthogonal", "random")),
        ("fetch", ("true", "false")),
    ):  # fmt: skip
        values = given[key].split(",")
        if wrong := [value for value in values if value not in known]:
            raise ReadError(f"{key}={wrong[0]} is not known; choose among {', '.join(known)}")
        given[key] = values
    given["fetch"] = given["fetch"] == ["true"]
    return given


def main(words: Sequence[str]) -> int:
    """Measure, print the tables and write them with hardware and versions."""
    options = read_options(words)
    notes: list[str] = []
    found: list[Result] = []
    before = torch.get_num_threads()
    try:
        for result in steps(options, notes):
            found.append(result)
            print(f"\r{result.setting}, {result.gradients}, {result.optimizer}   ", end="", file=sys.stderr, flush=True)
        if options["training"]:
            found += training(options, notes)
    finally:
        torch.set_num_threads(before)
    print(file=sys.stderr)
    text = page(found, notes, options, words)
    print(text)
    write(text, found, Path(options["out"]))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
