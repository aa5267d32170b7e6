"""Losses, gradients and weights that are not finite: detection, and skipping of updates by `train.nonfinite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from tasks.base import LoopState
from tasks.engine.distributed import World
from tasks.engine.meters import Meter
from tasks.engine.nested import map_tensors

MAX_CONSECUTIVE_SKIPS = 20  # then the run has diverged: skipping for ever would look like training
GROWTH_STEPS = 2000  # good updates after which a reduced loss scale is doubled, as torch's GradScaler does
NEVER = 2**62  # "no step so far" in an int64


class NonFinitePolicy:
    """The treatment of an update whose loss or gradient is not finite.

    Without a mode, the default, the run ends as diverged: the first non-finite loss is noted on the device, without a
    transfer per step, and `first_non_finite_step` reads it. "skip" leaves the update out. "scale" also halves a factor
    on the loss and doubles it again, up to 1, after `GROWTH_STEPS` good updates; factors are powers of 2, so they
    change no bit of a gradient that needs none. A step with a skipped update leaves buffers and loop states as they
    were. All processes decide alike, which costs one collective and one device-to-host transfer per update.

    With fp16 torch's GradScaler skips updates whose gradients overflow, in every mode; they are counted here too.

    Attributes:
        mode: `train.nonfinite`.
        loss_scaling: Whether a GradScaler is at work.
        skipped: Updates skipped so far, by this policy or by the GradScaler.
        taken: Updates taken so far; counted with loss scaling alone.
        consecutive_skips: Skipped updates since the last good one.
        good_steps: Good updates since the last skipped one.
        factor: On the loss.
    """

    def __init__(self, mode: str | None, world: World, *, loss_scaling: bool = False) -> None:
        self.mode, self.world, self.loss_scaling = mode, world, loss_scaling
        self.skipped = self.consecutive_skips = self.good_steps = self.taken = 0
        self.factor = 1.0
        self._first_step = torch.tensor(NEVER, device=world.device)
        self._buffered_metrics: list[tuple[str, Tensor]] = []
        self._buffers: dict[str, dict[str, Tensor]] = {}
        self._loop_states: list[LoopState] = []
        self._skipped_before = self._noted_skips = 0

    @property
    def has_diverged(self) -> bool:
        """Whether too many updates in a row were skipped; of the GradScaler's, only where none was ever taken."""
        is_hopeless = self.mode is not None or (self.loss_scaling and not self.taken)
        return is_hopeless and self.consecutive_skips >= MAX_CONSECUTIVE_SKIPS

    @property
    def counts_skips(self) -> bool:
        """Whether updates may be skipped at all, so that their number is logged."""
        return self.mode is not None or self.loss_scaling

    @property
    def took_none(self) -> bool:
        """Whether loss scaling skipped every update there was."""
        return self.loss_scaling and self.skipped > 0 and not self.taken

    def note_scaler_skips(self, scale: float) -> str | None:
        """Return a warning about the updates that fp16's loss scaling skipped since the last call, if there are any."""
        num, self._noted_skips = self.skipped - self._noted_skips, self.skipped
        if not (self.loss_scaling and num):
            return None
        updates = "update" if num == 1 else "updates"
        return f"{num} {updates} skipped: fp16 gradients overflowed; the loss scale is now {scale:g}"

    def count_scaled_step(self, *, is_taken: bool) -> None:
        """Count an update that the GradScaler took or skipped."""
        if not self.loss_scaling:
            return
        if is_taken:
            self.taken, self.consecutive_skips = self.taken + 1, 0
        else:
            self.skipped, self.consecutive_skips = self.skipped + 1, self.consecutive_skips + 1

    def begin_step(self, modules: Mapping[str, nn.Module], loop_states: Sequence[LoopState]) -> None:
        """Copy what a step must leave unchanged if one of its updates is skipped."""
        if self.mode is None:
            return
        self._skipped_before = self.skipped
        self._buffers = {role: {k: v.clone() for k, v in net.named_buffers()} for role, net in modules.items()}
        self._loop_states = map_tensors(Tensor.clone, [dict(state) for state in loop_states])

    def end_step(self, modules: Mapping[str, nn.Module], loop_states: list[LoopState]) -> list[LoopState]:
        """Return the loop states to go on with; after a skipped update restore the buffers too."""
        if self.mode is None or self.skipped == self._skipped_before:
            return loop_states
        for role, net in modules.items():
            for name, buffer in net.named_buffers():
                buffer.copy_(self._buffers[role][name])
        return self._loop_states

    def add_loss(self, name: str, loss: Tensor, meter: Meter, *, step: int) -> None:
        """Take one loss for the meter, 0-d; without a mode, note the step if it is the first non-finite one."""
        if self.mode is None:
            finite = torch.isfinite(loss.detach())
            self._first_step = torch.where(finite, self._first_step, self._first_step.clamp(max=step))
        self.add_metric(name, loss, meter)

    def add_metric(self, name: str, value: Tensor, meter: Meter) -> None:
        """Take one scalar for the meter; with a mode it is buffered until its update is accepted."""
        if self.mode is None:
            meter.add(name, value)
        else:
            self._buffered_metrics.append((name, value.detach()))

    def first_non_finite_step(self) -> int | None:
        """Return the first step of any process with a non-finite loss. Collective; reads from the device."""
        first = self.world.all_reduce_min(int(self._first_step))
        return None if first == NEVER else first

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss times the factor."""
        return loss if self.factor == 1 else loss * self.factor

    @torch.no_grad()
    def accepts(self, net: nn.Module, meter: Meter) -> bool:
        """Return whether losses and gradients are finite on every process, and count. Collective with a mode."""
        if self.mode is None:
            return True
        # Undo the factor on the loss
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        if self.factor != 1:
            torch._foreach_mul_(grads, 1 / self.factor)
        # One flag for all losses and gradients, agreed between processes
        values = [value.double().reshape(()) for _, value in self._buffered_metrics]
        values += [torch.linalg.vector_norm(grad, float("inf")).double() for grad in grads]
        is_bad = bool(values) and not bool(torch.isfinite(torch.stack(values)).all())
        metrics, self._buffered_metrics = self._buffered_metrics, []
        if self.world.all_reduce_max(int(is_bad)):
            self.skipped, self.consecutive_skips, self.good_steps = self.skipped + 1, self.consecutive_skips + 1, 0
            if self.mode == "scale":
                self.factor /= 2
            return False
        for name, value in metrics:
            meter.add(name, value)
        if not self.loss_scaling:  # else the GradScaler may still skip it
            self.consecutive_skips = 0
        self.good_steps += 1
        if self.good_steps % GROWTH_STEPS == 0:
            self.factor = min(1.0, 2 * self.factor)
        return True

    def state_dict(self) -> dict[str, float]:
        """Return counts and factor, under the keys of the checkpoint format."""
        return {
            "refused": self.skipped, "row": self.consecutive_skips, "good": self.good_steps, "factor": self.factor,
            **({"taken": self.taken} if self.loss_scaling else {}),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restore what `state_dict` returned."""
        counts = (int(state[key]) for key in ("refused", "row", "good"))
        self.skipped, self.consecutive_skips, self.good_steps = counts
        self.factor = float(state["factor"])
        self.taken = int(state.get("taken", 0))
        self._noted_skips = self.skipped


def first_non_finite_parameter(modules: Mapping[str, nn.Module], world: World) -> str | None:
    """Return the first parameter that is not finite on some process, None when all are. Collective."""
    named = [(f"{role}.{name}", p) for role, net in modules.items() for name, p in net.named_parameters()]
    with torch.no_grad():
        flags = [torch.isfinite(p).all() for _, p in named]
        finite = torch.stack(flags).cpu() if flags else torch.ones(0, dtype=torch.bool)
    first = len(named) if bool(finite.all()) else int((~finite).nonzero()[0])
    first = world.all_reduce_min(first)
    return None if first == len(named) else named[first][0]
