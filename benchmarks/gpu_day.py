"""One call on a machine with a CUDA device: its tests, optimizer steps, training steps, many networks; in minutes.

`ADAMP_COMMIT=... make gpu-day` or `python -m benchmarks.gpu_day [minutes=8] [out=results/gpu] [device=cuda] [size=full]
[workers=8]`. It needs torch and triton, for parts of it timm and pytest, but no network, no git and none of the suite's
other packages. Every result is a line of `day.jsonl` as soon as it is there, a failure as well; `day.md` shows them at
the end. Contenders take turns within one process, and ratios are taken to the first of the same round. `device=cpu
size=tiny` rehearses the same code.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adamp import SGDP, AdamP
from benchmarks import gpu_networks
from benchmarks.gpu_optimizers import graph_of, idle_clock, launches
from benchmarks.optimizers import ADAM, SGD, TINY, attached, compared, take_turns
from benchmarks.peers import Make
from evidence.runs.run import ReadError
from launch.checkout import ROOT
from scripts.options import command, parse, results

OPTIONS = {"minutes": "8", "out": results("gpu"), "device": "cuda", "size": "full", "workers": "8"}
TESTS = ("tests/adamp/test_triton_gpu.py", "tests/engine/test_gpu.py")
# Bytes that a float32 step has to move per weight: the states' and weight's reading and writing, and for ours the test
TRAFFIC = {"torch AdamW fused": 28, "torch SGD fused": 20, "AdamP fused": 36, "SGDP fused": 28}
LARGE = 100_000_000  # weights from which one contender at a time has memory


class Day:
    """The results so far, written as they come, and the time that is left.

    Args:
        out: Folder of the results.
        minutes: How long it all may take.
        device: The device that measures.
    """

    def __init__(self, out: Path, *, minutes: float, device: torch.device) -> None:
        self.device, self.begun, self.limit = device, time.monotonic(), 60 * minutes
        self.records: list[dict[str, Any]] = []
        out.mkdir(parents=True, exist_ok=True)
        self.file, self.page = out / "day.jsonl", out / "day.md"
        self.file.write_text("")

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (time.monotonic() - self.begun)

    def write(self, part: str, name: str, **values: Any) -> None:
        """Append one result."""
        self.records.append({"part": part, "name": name, **values})
        with self.file.open("a") as file:
            file.write(json.dumps(self.records[-1]) + "\n")

    def attempt(self, part: str, name: str, act: Callable[[], Iterator[dict[str, Any]]], *, needs: float = 10) -> None:
        """Write what an action yields; of a failure its error, and of one there is no time for that."""
        if self.left() < needs:
            self.write(part, name, skipped=f"{self.left():.0f} s were left")
            return
        begun = time.monotonic()
        try:
            for values in act():
                self.write(part, **{"name": name, **values})
        except Exception as error:
            lines = traceback.format_exc().splitlines()
            self.write(part, name, error=f"{type(error).__name__}: {error}"[:500], trace=lines[-12:])
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        print(f"{part}: {name}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)


def machine(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield commit, versions, device and the bandwidth of a copy, to which steps are compared."""
    packages = ("torch", "triton", "timm", "pytorch-optimizer", "torch-optimi", "pytest", "pytest-xdist")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    source = torch.empty(2**28 if device.type == "cuda" else 2**20, device=device)
    target, read = torch.empty_like(source), idle_clock(device)
    seconds = take_turns({"copy": lambda: target.copy_(source)}, read, rounds=5)["copy"]
    commit = os.environ.get("ADAMP_COMMIT")
    yield {
        "commit": commit, "versions": versions, "device": kind, "python": platform.python_version(),
        "copy_bytes_per_s": 2 * source.nbytes / min(seconds),
    }  # fmt: skip


def device_tests(day: Day, path: str, workers: int) -> Iterator[dict[str, Any]]:
    """Run one file of tests that need the device."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        path,
    ]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(workers)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=max(10, min(180, day.left() - 60)),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    yield {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "output": lines[-60:]}


def transformer(layers: int, width: int, vocabulary: int = 50_304) -> list[tuple[int, ...]]:
    """Return the shapes of a decoder's parameters, embedding and output tied."""
    block: list[tuple[int, ...]] = [
        (width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,),
        (4 * width, width), (4 * width,), (width, 4 * width), (width,),
    ]  # fmt: skip
    return [(vocabulary, width), (1024, width), *(block * layers), (width,), (width,)]


def network(name: str) -> list[tuple[int, ...]]:
    """Return the shapes of a network of timm."""
    import timm

    with torch.device("meta"):
        return [tuple(p.shape) for p in timm.create_model(name).parameters()]


SETS: dict[str, dict[str, Callable[[], list[tuple[int, ...]]]]] = {
    "tiny": {"tiny": lambda: list(TINY)},
    "full": {
        "resnet50": lambda: network("resnet50"),
        "vit_s16": lambda: network("vit_small_patch16_224"),
        "resnet18": lambda: network("resnet18"),
        "transformer 350M": lambda: transformer(24, 1024),
        "transformer 1B": lambda: transformer(24, 1792),
    },
}


def contenders(family: str, *, graphs: bool) -> dict[str, tuple[Make, bool]]:
    """Return name -> constructor and whether its step is captured; the baseline first."""
    is_adam = family == "adam"
    options, ours = (ADAM, AdamP) if is_adam else (SGD, SGDP)
    theirs: Make = torch.optim.AdamW if is_adam else torch.optim.SGD
    base = f"torch {'AdamW' if is_adam else 'SGD'} fused"
    capturable = {"capturable": True} if is_adam else {}
    made: dict[str, tuple[Make, bool]] = {
        base: (lambda p: theirs(p, **options, fused=True), False),
        f"{ours.__name__} fused": (lambda p: ours(p, **options, fused=True), False),
        f"{ours.__name__} foreach": (lambda p: ours(p, **options, foreach=True), False),
    }
    if graphs:
        made[f"{base}, in a graph"] = (lambda p: theirs(p, **options, fused=True, **capturable), True)
        made[f"{ours.__name__} fused, in a graph"] = (lambda p: ours(p, **options, fused=True, capturable=True), True)
    for package, module, kind in (
        ("timm", "timm.optim", ours.__name__), ("pytorch_optimizer", "pytorch_optimizer", ours.__name__),
        ("optimi", "optimi", "AdamW" if is_adam else "SGD"),
    ):  # fmt: skip
        try:
            cls = getattr(importlib.import_module(module), kind)
        except ImportError:  # not there, or without what it needs itself
            continue
        accepted = {k: v for k, v in options.items() if package != "optimi" or k != "nesterov"}
        made[f"{kind} of {package}"] = (lambda p, cls=cls, accepted=accepted: cls(p, **accepted), False)
    return made


def steps(day: Day, shapes: Sequence[tuple[int, ...]], family: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Yield the time, memory and share of the copy's bandwidth of each contender's step."""
    device, num_weights = day.device, sum(torch.Size(shape).numel() for shape in shapes)
    generator = torch.Generator(device).manual_seed(0)
    make_all = lambda: [torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes]  # noqa: E731
    weights, grads = make_all(), make_all()
    made = contenders(family, graphs=device.type == "cuda")
    copy = next((r["copy_bytes_per_s"] for r in day.records if "copy_bytes_per_s" in r), None)
    base = next(iter(made))

    def prepare(name: str) -> tuple[Callable[[], Any], float]:
        """Return the step and the bytes per parameter of weights, gradients and states."""
        make, is_captured = made[name]
        if is_captured:
            act: Any = graph_of(make, weights, grads)
            optimizer = act.optimizer
        else:
            optimizer = attached(make, weights, grads)
            optimizer.step()
            act = optimizer.step
        held = [*weights, *grads, *(x for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor))]
        return act, sum(x.nbytes for x in held) / num_weights

    def measured(names: Sequence[str]) -> Iterator[dict[str, Any]]:
        acts, sizes, failed = {}, {}, {}
        for name in names:
            try:
                acts[name], sizes[name] = prepare(name)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:300]
        seconds = take_turns(acts, idle_clock(device), rounds=3 if num_weights >= LARGE else 9)
        for result in compared(seconds, threads=1, clock="wall", setting="", gradients="random", family=family):
            traffic = TRAFFIC.get(result.optimizer.removesuffix(", in a graph"))
            rate = traffic and traffic * num_weights * dtype.itemsize / 4 / (result.ms / 1000)
            yield {
                "optimizer": result.optimizer, "ms": result.ms, "ratio": result.ratio, "low": result.low,
                "high": result.high, "bytes_per_weight": sizes[result.optimizer],
                "share_of_copy": rate / copy if rate and copy else None,
                "launches": launches(acts[result.optimizer]) if device.type == "cuda" else None,
            }  # fmt: skip
        for name, message in failed.items():
            yield {"optimizer": name, "error": message}

    if num_weights < LARGE:
        yield from measured(list(made))
    else:  # the baseline and one other at a time
        for name in list(made)[1:]:
            if day.left() < 20:
                yield {"optimizer": name, "skipped": f"{day.left():.0f} s were left"}
                continue
            yield from measured([base, name])


def training_step(day: Day, *, is_compiled: bool, tiny: bool) -> Iterator[dict[str, Any]]:
    """Yield the time of a whole training step of ResNet-50 with each optimizer, in bfloat16 and channels_last."""
    device = day.device
    torch.manual_seed(0)
    if tiny:
        model: nn.Module = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
        )
        images, labels = torch.randn(2, 3, 8, 8, device=device), torch.randint(10, (2,), device=device)
    else:
        import timm

        model = timm.create_model("resnet50")
        images, labels = torch.randn(256, 3, 224, 224, device=device), torch.randint(1000, (256,), device=device)
    model = model.to(device, memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    params = list(model.parameters())
    forward = torch.compile(model) if is_compiled else model
    made: dict[str, torch.optim.Optimizer] = {
        "torch SGD fused": torch.optim.SGD(params, **SGD, fused=True), "SGDP fused": SGDP(params, **SGD, fused=True),
        "torch AdamW fused": torch.optim.AdamW(params, **ADAM, fused=True),
        "AdamP fused": AdamP(params, **ADAM, fused=True), "AdamP foreach": AdamP(params, **ADAM, foreach=True),
    }  # fmt: skip

    def step(optimizer: torch.optim.Optimizer) -> None:
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()

    acts = {name: lambda optimizer=optimizer: step(optimizer) for name, optimizer in made.items()}
    seconds = take_turns(acts, idle_clock(device), rounds=7)
    for first, names in (("sgd", list(made)[:2]), ("adam", list(made)[2:])):
        for result in compared(
            {n: seconds[n] for n in names}, threads=1, clock="wall", setting="", gradients="", family=first
        ):
            yield {
                "optimizer": result.optimizer,
                "ms": result.ms,
                "ratio": result.ratio,
                "low": result.low,
                "high": result.high,
            }


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    first = records[0] if records else {}
    lines = [
        "# One day on a device\n",
        f"Commit {first.get('commit')}, {first.get('device')}, {first.get('versions')}.\n",
    ]
    for part in dict.fromkeys(record["part"] for record in records[1:]):
        chosen = [
            {k: v for k, v in r.items() if k not in ("part", "output", "trace")}
            for r in records[1:]
            if r["part"] == part
        ]
        columns = list(dict.fromkeys(key for record in chosen for key in record))
        lines += [f"## {part}\n", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        for record in chosen:
            cells = (record.get(column) for column in columns)
            shown = (
                "" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x).replace("|", "/") for x in cells
            )
            lines.append("| " + " | ".join(shown) + " |")
        lines.append("")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Measure all parts; exit code 1 if one of them failed."""
    options = parse(words, options=OPTIONS)
    for key in ("minutes", "workers"):
        if not (options[key].isdecimal() and int(options[key]) >= 1):
            raise ReadError(f"{key}={options[key]} is not valid; it must be a whole number of at least 1")
    for key, known in (("device", ("cuda", "cpu")), ("size", tuple(SETS))):
        if options[key] not in known:
            raise ReadError(f"{key}={options[key]} is not known; choose among {', '.join(known)}")
    device, tiny = torch.device(options["device"]), options["size"] == "tiny"
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ReadError("this benchmark measures on a CUDA device, and torch finds none here")
    day = Day(Path(options["out"]), minutes=int(options["minutes"]), device=device)
    try:
        day.attempt("machine", "machine", lambda: machine(device))
        for path in TESTS:
            day.attempt("tests", path, lambda path=path: device_tests(day, path, int(options["workers"])))  # type: ignore[misc]
        for name, shapes_of in SETS[options["size"]].items():
            for dtype in (torch.float32, torch.bfloat16):
                for family in ("adam", "sgd"):
                    title = f"{name}, {str(dtype).removeprefix('torch.')}, {family}"
                    day.attempt("steps", title, lambda f=family, s=shapes_of, d=dtype: steps(day, s(), f, d))  # type: ignore[misc]
            if name == "resnet50":  # what matters most before what takes longest
                day.attempt(
                    "training steps", "eager", lambda: training_step(day, is_compiled=False, tiny=tiny), needs=30
                )
        if tiny:
            day.attempt("training steps", "eager", lambda: training_step(day, is_compiled=False, tiny=tiny))
        day.attempt("training steps", "compiled", lambda: training_step(day, is_compiled=True, tiny=tiny), needs=60)
        experiment = gpu_networks.TINY if tiny else gpu_networks.FULL
        # Half a minute is left for the page, and for what a seed takes beyond those before it
        left = lambda: day.left() - 30  # noqa: E731
        day.attempt(
            "many networks", "projection-effect", lambda: gpu_networks.trainings(experiment, device, left), needs=60
        )
    finally:
        day.page.write_text(page(day.records))
    failed = [r for r in day.records if "error" in r or r.get("exit_code", 0) not in (0, 5)]
    print(f"{len(day.records)} results, {len(failed)} failures: {day.page}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(command(main, __doc__ or ""))
