"""What a run must not lie about: rounding, repeatability, what is not finite, processes that drift apart."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasks.base import LoopState
from tasks.engine.config import Train
from tasks.engine.distributed import World
from tasks.engine.meters import Meter, map_tensors
from tasks.engine.outcomes import RunFailed

if TYPE_CHECKING:
    from tasks.engine.loop import Trainer

MOST_IN_A_ROW = 20  # refused updates after which a run has diverged: skipping for ever would look like training
GROWTH_STEPS = 2000  # good updates after which a lowered loss scale is doubled again, as torch's GradScaler does
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bytes an entry -> a type to add bits in


def set_policy(train: Train) -> None:
    """Set rounding and determinism for this process; before CUDA is used, which reads one of them only once."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = train.tf32
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is otherwise refused as not deterministic
        torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = train.deterministic
    torch.use_deterministic_algorithms(train.deterministic)


def policy(train: Train, device: torch.device) -> dict[str, Any]:
    """Return how this run rounds, for its record: what was asked for, and what torch says is in force."""
    cuda = torch.backends.cuda.matmul
    return {
        "precision": train.precision,
        "weights": "float32",
        "device": device.type,
        "tf32": {"matmul": cuda.allow_tf32, "convolution": torch.backends.cudnn.allow_tf32},
        "reduced_precision_sums": {
            "bf16": cuda.allow_bf16_reduced_precision_reduction, "fp16": cuda.allow_fp16_reduced_precision_reduction,
        },
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "loss_scaling": train.precision == "fp16" or train.nonfinite == "scale",
        "nonfinite": train.nonfinite or "stop",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def checksums(networks: Mapping[str, nn.Module]) -> tuple[list[str], Tensor]:
    """Return the parameters' names and a sum over the bits of each, int64 (number of parameters,).

    Sums of integers do not depend on their order, so equal bits give equal sums on every device.
    """
    named = [(f"{role}.{name}", p) for role, net in networks.items() for name, p in net.named_parameters()]
    sums = [_bits(p.detach()).sum(dtype=torch.int64) for _, p in named]
    return [name for name, _ in named], torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)


def _bits(values: Tensor) -> Tensor:
    return values.reshape(-1).view(INTEGERS[values.element_size()])


def check_same_weights(networks: Mapping[str, nn.Module], world: World, *, step: int) -> None:
    """Compare the weights of all processes bit by bit. Collective; free for a single one.

    Raises:
        RunFailed: They differ: a process drifted away without anything else having noticed.
    """
    if world.size == 1:
        return
    names, sums = checksums(networks)
    if (index := world.first_difference(sums)) is not None:
        raise RunFailed(
            f"the processes' weights differ at step {step}, first in {names[index]}: their updates were not the same\n"
            "Nothing was saved since they agreed; run again to resume. Is one machine or library unlike the others?"
        )


class Guard:
    """What happens to an update whose loss or gradient is not finite, by `train.nonfinite`.

    None is the default: the run ends as diverged. "skip" leaves such an update out, "scale" also halves the factor on
    the loss, and doubles it again, up to 1, after `GROWTH_STEPS` good ones; factors are powers of 2, so they change no
    bit of a gradient that needs none. A step in which an update was left out leaves buffers and carried state as they
    were. All processes decide alike: it costs a collective and a transfer from the device an update.

    Attributes:
        refused: Updates left out so far.
        row: Those of them since the last good one.
        factor: On the loss.
    """

    def __init__(self, policy: str | None, world: World) -> None:
        self.policy, self.world = policy, world
        self.refused = self.row = self.good = 0
        self.factor = 1.0
        self._held: list[tuple[str, Tensor]] = []
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._loop_states: list[LoopState] = []
        self._refused_before = 0

    def begin(self, trainer: Trainer) -> None:
        """Remember what a step must leave alone if it is refused."""
        if self.policy is None:
            return
        self._refused_before = self.refused
        self._buffers = {role: {k: v.clone() for k, v in net.named_buffers()} for role, net in trainer.bare.items()}
        self._loop_states = map_tensors(Tensor.clone, [dict(state) for state in trainer.loop_states])

    def end(self, trainer: Trainer) -> None:
        """Put it back if an update was refused.

        Raises:
            Diverged: `MOST_IN_A_ROW` updates in a row were refused.
        """
        if self.policy is None or self.refused == self._refused_before:
            return
        for role, net in trainer.bare.items():
            for name, buffer in net.named_buffers():
                buffer.copy_(self._buffers[role][name])
        trainer.loop_states = self._loop_states
        if self.row >= MOST_IN_A_ROW:
            raise trainer.diverged(trainer.at.step + 1, f"{self.row} updates in a row were not finite, the last")

    def hold(self, name: str, value: Tensor) -> None:
        """Keep a scalar for the meter until its update is accepted: one that is not finite would spoil the mean."""
        self._held.append((name, value.detach()))

    def scaled(self, loss: Tensor) -> Tensor:
        """Return the loss times the factor."""
        return loss if self.factor == 1 else loss * self.factor

    @torch.no_grad()
    def accepts(self, net: nn.Module, meter: Meter) -> bool:
        """Return whether losses and gradients are finite on every process, and count. Collective."""
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        if self.factor != 1:
            torch._foreach_mul_(grads, 1 / self.factor)
        values = [value.double().reshape(()) for _, value in self._held]
        values += [torch.linalg.vector_norm(grad, float("inf")).double() for grad in grads]
        bad = bool(values) and not bool(torch.isfinite(torch.stack(values)).all())
        held, self._held = self._held, []
        if self.world.highest(int(bad)):
            self.refused, self.row, self.good = self.refused + 1, self.row + 1, 0
            if self.policy == "scale":
                self.factor /= 2
            return False
        for name, value in held:
            meter.add(name, value)
        self.row, self.good = 0, self.good + 1
        if self.good % GROWTH_STEPS == 0:
            self.factor = min(1.0, 2 * self.factor)
        return True

    def state(self) -> dict[str, float]:
        """Return what a checkpoint keeps of it."""
        return {"refused": self.refused, "row": self.row, "good": self.good, "factor": self.factor}

    def restore(self, state: Mapping[str, float]) -> None:
        """Put back what `state` returned."""
        self.refused, self.row, self.good = (int(state[key]) for key in ("refused", "row", "good"))
        self.factor = float(state["factor"])


def finite_weights(networks: Mapping[str, nn.Module], world: World) -> str | None:
    """Return the first parameter that is not finite on some process, None when all are. Collective."""
    named = [(f"{role}.{name}", p) for role, net in networks.items() for name, p in net.named_parameters()]
    with torch.no_grad():
        flags = [torch.isfinite(p).all() for _, p in named]
        finite = torch.stack(flags).cpu() if flags else torch.ones(0, dtype=torch.bool)
    first = len(named) if bool(finite.all()) else int((~finite).nonzero()[0])
    first = world.lowest(first)
    return None if first == len(named) else named[first][0]
