"""Steps of AdamP and SGDP on a CUDA device beside torch's fused optimizers and other packages.

`python benchmarks/gpu_optimizers.py [rounds=25] [sets=resnet50,resnet18,mobilenet_v2,vit_s16]
[gradients=orthogonal,random] [training=25] [batch=256] [pixels=224] [precision=bfloat16]
[layout=channels_last] [fetch=true] [out=results/gpu]`.
Every optimizer has parameters of the real shapes and takes turns with the others within one process; the order turns
round by round, and the ratio to the baseline of the same round is taken first, then its median and quartiles over
rounds. Wall time counts, from an idle device to an idle device over some 20 ms of steps: it is the host's time where
launching takes longer than computing. "in a graph" is the same step replayed from a CUDA graph, the device's time.
"orthogonal" gradients are what batch norm gives: every update is projected; "random" ones take both tests and few are.
`training` is the number of rounds of whole training steps of ResNet18 (under autocast to `precision`, or float32; the
published package needs layout=contiguous); 0 leaves them out. `fetch=false` does not download the published package.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from adamp import SGDP, AdamP
from benchmarks.optimizers import ADAM, SGD, Result, attached, compared, contenders, take_turns, tensors, write
from benchmarks.peers import Make
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results
from tasks.engine.provenance import git_state, hardware, now, versions

OPTIONS = {
    "rounds": "25", "sets": "resnet50,resnet18,mobilenet_v2,vit_s16", "gradients": "orthogonal,random",
    "training": "25", "batch": "256", "pixels": "224", "precision": "bfloat16",
    "layout": "channels_last", "fetch": "true", "out": results("gpu"),
}  # fmt: skip
CHOICES = {
    "sets": ("resnet18", "resnet50", "mobilenet_v2", "vit_s16", "tiny"), "gradients": ("orthogonal", "random"),
    "precision": ("bfloat16", "float16", "float32"),
    "layout": ("channels_last", "contiguous"), "fetch": ("true", "false"),
}  # fmt: skip
ALONE = "forward and backward alone"


def idle_clock(device: torch.device) -> Callable[[], float]:
    """Return what reads the wall clock once the device has nothing left to do."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def usable(made: Mapping[str, Make], notes: list[str], *, device: torch.device) -> dict[str, Make]:
    """Return those that take a step there; the others go into the notes with what they say."""
    kept = {}
    for name, make in made.items():
        try:
            attached(make, [torch.ones(2, 3, device=device)], [torch.ones(2, 3, device=device)]).step()
        except (RuntimeError, NotImplementedError) as error:
            notes.append(f"{name}: {str(error).splitlines()[0]}")
        else:
            kept[name] = make
    return kept


@dataclass(frozen=True)
class CapturedStep:
    """A step in a CUDA graph; it keeps the optimizer, as the graph uses the memory of its weights and states."""

    graph: torch.cuda.CUDAGraph
    optimizer: Optimizer

    def __call__(self) -> None:
        """Replay the step."""
        self.graph.replay()


def graph_of(make: Callable[..., Optimizer], weights: Sequence[Tensor], grads: Sequence[Tensor]) -> CapturedStep:
    """Capture a step."""
    optimizer = attached(make, weights, grads)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return CapturedStep(graph, optimizer)


def captured(family: str, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Callable[[], None]]:
    """Return name -> replay of the fused optimizers."""
    adam = family == "adam"
    options, ours = (ADAM, AdamP) if adam else (SGD, SGDP)
    theirs: Make = torch.optim.AdamW if adam else torch.optim.SGD
    more = {"fused": True, "capturable": True}
    names = {
        f"torch {'AdamW' if adam else 'SGD'} fused, in a graph": lambda p: theirs(
            p, **options, **(more if adam else {"fused": True})
        ),
        f"{ours.__name__} fused, in a graph": lambda p: ours(p, **options, **more),
    }
    return {name: graph_of(make, weights, grads) for name, make in names.items()}


def launches(act: Callable[[], None]) -> int:
    """Return how many kernels and copies a step starts on the device."""
    act()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        act()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def steps(
    options: Mapping[str, Any], notes: list[str], counts: dict[str, int], *, device: torch.device
) -> Iterator[Result]:
    """Time the optimizers' steps alone, and count their launches on the first set."""
    for family in ("adam", "sgd"):
        made, absent = contenders(family, fetch=options["fetch"])
        notes += absent
        made = usable(made, notes, device=device)
        for setting in options["sets"]:
            for gradients in options["gradients"]:
                weights, grads = ([x.to(device) for x in xs] for xs in tensors(setting, gradients))
                acts: dict[str, Callable[[], Any]] = {
                    name: attached(make, weights, grads).step for name, make in made.items()
                }
                if device.type == "cuda":
                    for name in acts.keys() - counts.keys():
                        counts[name] = launches(acts[name])
                    acts |= captured(family, weights, grads)
                seconds = take_turns(acts, idle_clock(device), rounds=options["rounds"])
                yield from compared(
                    seconds, threads=1, clock="wall", setting=setting, gradients=gradients, family=family
                )


def training(
    options: Mapping[str, Any], family: str, *, device: torch.device
) -> tuple[list[Result], dict[str, tuple[float, float, float]]]:
    """Time whole training steps of one network with each optimizer in turn.

    Returns:
        The results, and name -> share of the training step in percent that is the optimizer's, median and quartiles.
    """
    import torchvision

    torch.manual_seed(0)
    layout = torch.channels_last if options["layout"] == "channels_last" else torch.contiguous_format
    model = torchvision.models.resnet18().to(device, memory_format=layout)
    images = torch.randn(options["batch"], 3, options["pixels"], options["pixels"], device=device)
    images = images.to(memory_format=layout)
    labels = torch.randint(1000, (options["batch"],), device=device)
    dtype = getattr(torch, options["precision"])

    def step(optimizer: Optimizer | None) -> None:
        model.zero_grad()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images), labels)
        loss.backward()
        if optimizer is not None:
            optimizer.step()

    made, _ = contenders(family, fetch=options["fetch"])
    optimizers: dict[str, Optimizer] = {}
    acts: dict[str, Callable[[], None]] = {}
    for name, make in usable(made, [], device=device).items():
        optimizer = make(list(model.parameters()))
        try:
            step(optimizer)  # some take no channels-last weights
        except RuntimeError:
            continue
        optimizers[name] = optimizer
        acts[name] = lambda optimizer=optimizer: step(optimizer)  # type: ignore[misc]
    acts[ALONE] = lambda: step(None)
    seconds = take_turns(acts, idle_clock(device), rounds=options["training"])
    shares = {}
    for name in optimizers:
        pairs = zip(seconds[name], seconds[ALONE], strict=True)
        values = [100 * (whole - alone) / whole for whole, alone in pairs]
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        shares[name] = (middle, low, high)
    setting = f"resnet18 training step, batch {options['batch']}"
    return compared(
        seconds,
        threads=1,
        clock="wall",
        setting=setting,
        gradients=f"{options['precision']}, {options['layout']}",
        family=family,
    ), shares


def cells(found: Sequence[Result], family: str) -> str:
    """Return a Markdown table: one row an optimizer, one column a set and kind of gradients."""
    chosen = [r for r in found if r.family == family]
    columns = list(dict.fromkeys((r.setting, r.gradients) for r in chosen))
    by_cell = {(r.optimizer, r.setting, r.gradients): r for r in chosen}
    lines = ["| | " + " | ".join(", ".join(column) for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(r.optimizer for r in chosen):
        row = [by_cell.get((name, *column)) for column in columns]
        shown = ["" if r is None else f"{r.ms:.3g} ms, {r.ratio:.2f} ({r.low:.2f} to {r.high:.2f})" for r in row]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def page(
    found: Sequence[Result],
    shares: Mapping[str, tuple[float, float, float]],
    counts: Mapping[str, int],
    notes: Sequence[str],
    words: Sequence[str],
) -> str:
    """Return the whole page."""
    parts = [
        "# Time of an optimizer step on a GPU\n",
        "Milliseconds a step (median), and the time as a multiple of torch's fused optimizer in the same round, median "
        "(quartiles). Wall time between idle states of the device; float32 weights.\n",
    ]
    for family, kind in (("adam", "AdamP"), ("sgd", "SGDP")):
        if any(r.family == family for r in found):
            parts += [f"## {kind}\n", cells(found, family)]
    if shares:
        rows = [f"| {name} | {m:.1f} % ({low:.1f} to {high:.1f}) |" for name, (m, low, high) in shares.items()]
        parts += ["## Share of the training step\n", "| optimizer | share |\n|---|---|\n" + "\n".join(rows) + "\n"]
    if counts:
        rows = [f"| {name} | {count} |" for name, count in counts.items()]
        parts += ["## Launches a step\n", "| optimizer | launches |\n|---|---|\n" + "\n".join(rows) + "\n"]
    if notes:
        parts += ["Left out:\n", "".join(f"- {note}\n" for note in dict.fromkeys(notes))]
    state = git_state(ROOT)
    listed = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts.append(
        f"{now()}, commit {state['commit']}{' with changes' if state['dirty'] else ''}, {hardware(1)['machine']}, "
        f"{listed}. Command: `{' '.join(['python benchmarks/gpu_optimizers.py', *words])}`\n"
    )
    return "\n".join(parts)


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Return the options, typed.

    Raises:
        ReadError: A value is not of its kind.
    """
    given: dict[str, Any] = dict(parse(words, options=OPTIONS))
    for key, least in (("rounds", 1), ("training", 0), ("batch", 2), ("pixels", 32)):
        if not (given[key].isdecimal() and int(given[key]) >= least):
            raise ReadError(f"{key}={given[key]} is not valid; it must be a whole number of at least {least}")
        given[key] = int(given[key])
    for key, known in CHOICES.items():
        values = given[key].split(",")
        if wrong := [value for value in values if value not in known]:
            raise ReadError(f"{key}={wrong[0]} is not known; choose among {', '.join(known)}")
        given[key] = values if key in ("sets", "gradients") else values[0]
    given["fetch"] = given["fetch"] == "true"
    return given


def measure(options: Mapping[str, Any], words: Sequence[str], *, device: torch.device) -> str:
    """Measure, write the table and the page, and return the page."""
    notes: list[str] = []
    counts: dict[str, int] = {}
    found: list[Result] = []
    shares: dict[str, tuple[float, float, float]] = {}
    for result in steps(options, notes, counts, device=device):
        found.append(result)
        print(f"\r{result.setting}, {result.gradients}, {result.optimizer}   ", end="", file=sys.stderr, flush=True)
    for family in ("adam", "sgd") if options["training"] else ():
        timed, own = training(options, family, device=device)
        found, shares = found + timed, shares | own
    print(file=sys.stderr)
    text = page(found, shares, counts, notes, words)
    write(text, found, Path(options["out"]))
    return text


def main(words: Sequence[str]) -> int:
    """Measure on the CUDA device, print the page and write it with its provenance."""
    options = read_options(words)
    if not torch.cuda.is_available():
        raise ReadError("this benchmark measures on a CUDA device, and torch finds none here")
    print(measure(options, words, device=torch.device("cuda")))
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
