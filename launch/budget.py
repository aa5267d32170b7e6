"""What runs will cost: cells of equal cost, and the hours that a GPU of known speed takes for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evidence import sweeps as grids
from evidence.runs.run import ReadError

if TYPE_CHECKING:
    from launch.costs import Cost

# What decides a result and not what it costs: cells that differ in these alone are counted once.
FREE = ("train.seed", "opt.lr", "opt.weight_decay", "opt.delta", "opt.alpha", "opt.wd_ratio", "tag")


@dataclass(frozen=True)
class Gpu:
    """A GPU: ResNet50 training speed in images a second by precision, memory in GiB and its bandwidth in GB/s."""

    speed: Mapping[str, float]
    memory: float
    bandwidth: float
    source: str


NVIDIA = "NVIDIA DeepLearningExamples, PyTorch ResNet50 v1.5, one GPU of a"
GPUS = {
    "v100": Gpu({"fp32": 367, "mixed": 1200}, 16, 900, f"{NVIDIA} DGX-1 16 GB: 367 (fp32), 1200 (mixed) images/s"),
    "a100": Gpu(
        {"fp32": 367 * 19.5 / 15.7, "tf32": 938, "mixed": 2470}, 80, 2039,
        f"{NVIDIA} DGX A100: 938 (tf32), 2470 (mixed) images/s; fp32 without tf32 is the V100's 367 x 19.5/15.7, the "
        "ratio of their peaks",
    ),
}  # fmt: skip


@dataclass
class Line:
    """Cells of equal cost: what they are called, how many there are, what one costs."""

    label: str
    runs: int
    cost: Cost
    hours: float  # of one run, on all its GPUs together


def lines_of(options: Mapping[str, str], others: Sequence[str]) -> dict[str, tuple[list[str], int]]:
    """Return label -> overrides of one cell and how many cells cost the same."""
    typed = dict(word.partition("=")[::2] for word in others)
    if not options["sweep"]:
        return {
            options["experiment"] + "".join(f" {word}" for word in others): (
                [f"experiment={options['experiment']}", *others],
                1,
            )
        }
    found: dict[str, tuple[list[str], int]] = {}
    for _, cell in grids.cells(options["sweep"], options["scale"], typed):
        told = [f"{key}={value}" for key, value in {**cell, **typed}.items()]
        label = " ".join(word for word in told if word.partition("=")[0] not in FREE).replace("experiment=", "")
        words, runs = found.get(label, ([f"sweep={options['sweep']}", *told], 0))
        found[label] = (words, runs + 1)
    if not found:
        raise ReadError(f"sweep={options['sweep']} has no cells at scale={options['scale']}")
    return found


def precision_on(gpu: Gpu, cost: Cost) -> float:
    """Return ResNet50's speed at the run's precision."""
    if cost.precision != "fp32":
        return gpu.speed["mixed"]
    return gpu.speed["tf32"] if cost.tf32 and "tf32" in gpu.speed else gpu.speed["fp32"]


def stated_hours(cost: Cost, speed: float, bandwidth: float | None) -> float:
    """Return the hours of one run from ResNet50's speed: the slower of what FLOPs and what activations ask for."""
    from launch.costs import RESNET50_ACTIVATIONS, RESNET50_FLOPS

    train = (
        max(cost.train_flops / RESNET50_FLOPS, cost.activations / (RESNET50_ACTIVATIONS * cost.activation_share))
        / speed
    )
    seconds = cost.steps * cost.batch_size * train + cost.evaluations * cost.val_examples * train / 3
    if bandwidth:  # a step reads weight, gradient and state, and writes weight and state
        seconds += cost.steps * (3 * cost.weight_bytes + 2 * cost.state_bytes) / (bandwidth * 1e9)
    return seconds / 3600


def assumptions(options: Mapping[str, str], lines: Sequence[Line], here: str) -> list[str]:
    """Return what the numbers rest on."""
    gpu = options["gpu"]
    found = [
        "FLOPs: two a multiply-add, of matrix products and convolutions alone (torch.utils.flop_counter), none of LSTM "
        "layers.",
        "Memory: what autograd keeps for the backward pass, weights, gradients and optimizer state; no workspace of "
        "cuDNN and no fragmentation of the allocator, so leave a fifth free.",
        f"{options['gpus']} GPU(s) a run; averaging gradients is taken to cost nothing.",
        "The data is taken to arrive in time; the column images/s says what the loader must deliver.",
        "An evaluation pass costs a third of a training pass a picture.",
    ]
    if options["rate"]:
        found.append(f"Speed: ResNet50 at {options['rate']} images/s, as you said; "
                     "another network by its FLOPs or its activations over ResNet50's, whichever is more.")  # fmt: skip
    elif gpu == "here":
        found.append(f"Speed: {options['calibration']} steps timed on {here}, by the wall clock, other work included.")
    else:
        found.append(f"Speed: {GPUS[gpu].source}; another network by its FLOPs or its activations over "
                     "ResNet50's, whichever is more; the optimizer by the memory's bandwidth.")  # fmt: skip
        found += [
            f"{line.label}: needs {line.cost.memory / 2**30:.1f} GiB, more than the {GPUS[gpu].memory} GiB of a {gpu}: "
            "raise train.accumulation or gpus" for line in lines if line.cost.memory > GPUS[gpu].memory * 2**30
        ]  # fmt: skip
    notes = dict.fromkeys(note for line in lines for note in line.cost.notes)
    return [*found, *notes]


def table(lines: Sequence[Line], *, price: float = 0.0) -> str:
    """Return the Markdown table of costs, one line a kind of cell; `price` is dollars of a GPU hour, 0 for unknown."""
    text = "| run | runs | steps | parameters | GFLOP an example | EFLOP | GiB of memory | GiB of activations "
    text += "| MB a checkpoint | TB read | images/s | GPU hours a run | GPU hours |\n"
    text += "| --- |" + " ---: |" * 12 + "\n"
    for line in lines:
        cost = line.cost
        read = f"{cost.bytes_read / 1e12:.2f}" if cost.bytes_read is not None else "?"
        rate = cost.steps * cost.batch_size / max(line.hours * 3600, 1e-9)
        text += (
            f"| {line.label} | {line.runs} | {cost.steps:,} | {cost.parameters:,} | {cost.train_flops / 1e9:.2f} "
            f"| {cost.total_flops / 1e18:.3g} | {cost.memory / 2**30:.2f} | {cost.activation_memory / 2**30:.2f} "
            f"| {cost.checkpoint / 1e6:.0f} | {read} | {rate:.0f} | {line.hours:.3g} | {line.hours * line.runs:.4g} |\n"
        )
    total = sum(line.hours * line.runs for line in lines)
    money = f", {total * price:,.0f} dollars at {price:g} a GPU hour" if price else ""
    return text + f"\n**{sum(line.runs for line in lines)} runs, {total:.4g} GPU hours{money}.**\n"
