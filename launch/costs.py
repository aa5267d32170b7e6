"""What one planned run costs: counted on a few examples and multiplied up, and timed on this machine's device."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from launch.stepping import Stepper, batch_length, prepare
from tasks.data import ImageFolderSet, Synthetic
from tasks.engine.run_spec import RunSpec

# torchvision's ResNet50 at 224 pixels, fp32, measured by `count`: what training speeds of other networks scale with.
RESNET50_FLOPS = 24.30e9  # forward and backward, an example
RESNET50_ACTIVATIONS = 86.0e6  # bytes kept for the backward pass, an example
# ILSVRC 2012's archives over their numbers of pictures: 147,897,477,120 / 1,281,167 and 6,744,924,160 / 50,000.
IMAGENET_BYTES = {"train": 115_440.0, "val": 134_898.0}
SAMPLED = 200  # files whose sizes stand for all
CPU_EXAMPLES = 8  # in a timed step on a CPU


@dataclass
class Cost:
    """A run's counts. Bytes are of one process; FLOPs and examples of all.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a step.
        evaluations: Passes over the validation set, each of `val_examples`.
        val_examples: Its length.
        parameters: Numbers trained.
        train_flops: Forward and backward, an example.
        activations: Bytes kept for the backward pass, an example, at the run's precision.
        activation_share: Bytes of an activation at this precision over those in fp32, about.
        micro_batch: Examples in memory at once.
        weight_bytes: Weights and buffers.
        state_bytes: Optimizer state.
        checkpoint: Bytes of checkpoints/last.pt, about.
        bytes_read: Stored bytes that the data is read from over the run; None where not known.
        precision: "fp32", "bf16" or "fp16".
        tf32: Whether TF32 is allowed.
        notes: Assumptions that belong to this run.
    """

    steps: int
    batch_size: int
    evaluations: int
    val_examples: int
    parameters: int
    train_flops: float
    activations: float
    activation_share: float
    micro_batch: int
    weight_bytes: int
    state_bytes: int
    checkpoint: int
    bytes_read: float | None
    precision: str
    tf32: bool
    notes: list[str] = field(default_factory=list)

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole run; an evaluation pass is a third of a training pass."""
        return self.train_flops * (self.steps * self.batch_size + self.evaluations * self.val_examples / 3)

    @property
    def activation_memory(self) -> float:
        """Bytes of activations of a micro-batch."""
        return self.activations * self.micro_batch

    @property
    def memory(self) -> float:
        """Bytes of a process at the end of a forward pass: activations, weights, gradients, optimizer state."""
        return self.activation_memory + 2 * self.weight_bytes + self.state_bytes


def with_noise(words: Sequence[str]) -> list[str]:
    """Return overrides in which full-scale ImageNet without a folder is noise of its sizes."""
    given = {word.partition("=")[0] for word in words}
    full = "scale=full" in words
    if full and not given & {"data_root", "data"} and _is_imagenet(words):
        return [*words, "data=synthetic"]
    return list(words)


def _is_imagenet(words: Sequence[str]) -> bool:
    from launch import compose

    return str(compose.composed(words).config["task"].get("_target_", "")) == "tasks.imagenet.ImageNet"


def count(plan: RunSpec, *, examples: int, gpus: int) -> Cost:
    """Take one real training step of a few examples on the CPU and multiply up.

    Args:
        plan: The run.
        examples: Examples to count on, about.
        gpus: Processes of the run.

    Raises:
        InputError: What the task or the optimizer refuses.
    """
    train = plan.train
    stepper = prepare(plan, device=torch.device("cpu"), examples=examples)
    kept = _Kept(stepper)
    with kept, flop_counter() as flops:
        stepper.step()
    num = batch_length(stepper.last)
    nets = stepper.task.networks
    parameters = [p for net in nets.values() for p in net.parameters()]
    weight_bytes = sum(_size(t) for net in nets.values() for t in net.state_dict().values())
    state_bytes = sum(_size(t) for optimizer in stepper.optimizers.values() for t in _tensors(optimizer.state.values()))
    facts = stepper.task.describe()
    epochs = sum(phase.epochs for phase in plan.make_phases())
    epoch_steps = len(stepper.task.train_batches(0, stepper.shard)) // stepper.shard.accumulation_steps
    steps = min(epochs * epoch_steps, train.max_steps or epochs * epoch_steps)
    read, notes = _bytes_read(stepper, epochs=steps / epoch_steps, evaluations=-(-epochs // train.eval_epochs))
    return Cost(
        steps=steps, batch_size=train.batch_size, evaluations=-(-epochs // train.eval_epochs),
        val_examples=int(facts.get("val_examples", 0)), parameters=sum(p.numel() for p in parameters),
        train_flops=flops.get_total_flops() / num, activations=kept.bytes / num,
        activation_share=1.0 if train.precision == "fp32" else 0.5,
        micro_batch=train.batch_size // (train.accumulation * gpus), weight_bytes=weight_bytes, state_bytes=state_bytes,
        checkpoint=weight_bytes * (2 if train.ema_decay is not None else 1) + state_bytes, bytes_read=read,
        precision=train.precision, tf32=train.tf32, notes=notes,
    )  # fmt: skip


def flop_counter() -> FlopCounterMode:
    """Return torch's counter of FLOPs with two formulas of its own replaced or added.

    torch counts the gradient of a grouped convolution's weight as if it were not grouped, C times too much for a
    depthwise one, and deformable convolutions not at all. Each gradient of a convolution takes the multiplications of
    its forward pass.
    """
    ops = torch.ops.torchvision
    return FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.convolution_backward: _conv_backward,
            ops.deform_conv2d: _deform_conv,
            ops._deform_conv2d_backward: _deform_conv_backward,
        },
    )


def _conv_backward(
    grad_out: Any, x: Any, w: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, output_mask: Sequence[bool], **_: Any,
) -> int:  # fmt: skip
    return sum(output_mask[:2]) * conv_flop_count(x, w, grad_out, transposed=transposed)


def _deform_conv(x: Any, w: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x, w, out_shape)


def _deform_conv_backward(grad_out: Any, x: Any, w: Any, *_: Any, **__: Any) -> int:
    return 2 * conv_flop_count(x, w, grad_out)


def calibrated_hours(plan: RunSpec, cost: Cost, *, steps: int) -> float:
    """Return a run's GPU hours from timed steps here: CUDA at the run's micro-batch, a CPU at a few examples."""
    cuda = torch.cuda.is_available() and plan.train.device != "cpu"
    stepper = prepare(
        plan, device=torch.device("cuda" if cuda else "cpu"), examples=cost.micro_batch if cuda else CPU_EXAMPLES,
        wall=True,
    )  # fmt: skip
    stepper.step()
    found = [stepper.step() for _ in range(steps)]
    num = batch_length(stepper.last)
    forward, backward, optimizer = (
        statistics.median(each[part] for each in found) for part in ("forward", "backward", "optimizer")
    )
    probes = 0.0
    if plan.train.probe_every and stepper.probes:
        stepper.step(probed=True)
        probed = stepper.step(probed=True)["optimizer"]
        probes = max(probed - optimizer, 0.0) / plan.train.probe_every
    a_step = (forward + backward) / num * cost.batch_size + optimizer + probes
    return (cost.steps * a_step + cost.evaluations * cost.val_examples * forward / num) / 3600


class _Kept(torch.autograd.graph.saved_tensors_hooks):
    """Adds up the storages that autograd keeps for the backward pass, each once, without those of the weights."""

    def __init__(self, stepper: Stepper) -> None:
        weights = [t for net in stepper.task.networks.values() for t in (*net.parameters(), *net.buffers())]
        own = {t.untyped_storage().data_ptr() for t in weights}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        super().__init__(pack, lambda tensor: tensor)
        self._seen = seen

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return sum(self._seen.values())


def _bytes_read(stepper: Stepper, *, epochs: float, evaluations: int) -> tuple[float | None, list[str]]:
    data: Any = getattr(stepper.task, "data", None)
    if isinstance(data, Synthetic) and data.num_examples["train"] == 1_281_167:
        sizes, note = IMAGENET_BYTES, "Bytes read: the official archives over their numbers of pictures."
    elif isinstance(data, ImageFolderSet):
        sizes, note = {}, f"Bytes read: the mean of {SAMPLED} of your files."
        for split, listing in data._splits.items():
            numbers = range(0, data.num_examples[split], max(1, data.num_examples[split] // SAMPLED))
            sizes[split] = statistics.fmean(_stored(listing.open(i)) for i in numbers)
    else:
        return None, []
    num = data.num_examples
    return epochs * num["train"] * sizes["train"] + evaluations * num["val"] * sizes["val"], [note]


def _stored(source: Any) -> int:
    return int(source.stat().st_size) if isinstance(source, Path) else len(source.getbuffer())


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
