"""Probe of an optimizer's steps: weight norms, effective steps, cosines, projections and oscillation.

Notation: `L` probed parameters, `R` rows (output filters), `F` filters of all probed parameters together, `w0`
and `w1` the weight before and after a step, `g` its gradient, `d = w1 - w0`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from adamp.hooks.handle import HookHandle, attach_step_hooks, find_hooked_optimizer, groups_of
from adamp.marks import ScaleInvariantMode, num_slices, slices_first
from adamp.probes.movement import Movement, StepGeometry, direction_change, row_norms
from adamp.probes.oscillation import OscillationWindow
from adamp.projection import NONE, RowSums, cosine, decide, forced_decision, threshold
from adamp.step.checked import is_state_initialisation
from adamp.step.dtensor import check_placement, gather_rows, is_sharded, local, local_grad
from adamp.step.precision import to_compute_dtype

_NORM = ("norm/mean", "norm/min", "norm/median", "norm/max")
_STEP = ("effective_step/mean", "effective_step/min", "effective_step/median", "effective_step/max")
_GRAD = ("cosine/mean", "cosine/max", "margin/max", "projected/share")
_LAYER_GRAD = ("cosine", "projected")


class ProbeHandle:
    """Detaches a probe from its optimizer; also a context manager that does so at its end."""

    def __init__(self, probe: NormProbe, hooks: HookHandle) -> None:
        self._probe, self._hooks = probe, hooks

    def remove(self) -> None:
        """Detach the probe, which keeps its records and can be attached again."""
        self._hooks.remove()
        if self._probe._handle is self:
            self._probe._handle = None

    def __enter__(self) -> ProbeHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@dataclass
class _Mean:
    """Running sums of a vector of values; each entry counts the steps at which it was present."""

    total: Tensor
    counts: list[int] = field(default_factory=list)

    def add(self, values: Tensor, present: list[bool]) -> None:
        """Add the values of the present entries: the whole vector, or these alone in order."""
        if len(values) == len(present):
            self.total = self.total + values
        else:
            indices = [index for index, is_present in enumerate(present) if is_present]
            self.total = self.total.index_add(0, torch.tensor(indices, device=self.total.device), values)
        self.counts = [count + is_present for count, is_present in zip(self.counts, present, strict=True)]

    def reset(self) -> None:
        self.total = torch.zeros_like(self.total)
        self.counts = [0] * len(self.counts)


class NormProbe:
    """Records around any torch optimizer's step how the direction and the norm of each filter change.

    On every k-th step (the first is one) the weights are copied before the step and compared after it. Per
    output filter, that is per index of the first dimension, or per slice where the optimizer's group marks a parameter
    otherwise (`adamp.marks`):

    - `norm`: `‖w1‖`, weight decay included.
    - `effective_step`: `‖w1/‖w1‖ - w0/‖w0‖‖`, the effective step size of §2.2 measured exactly, decay
      included; 0 for a filter that is zero before or after.
    - `cosine`: `|cos(g, w0)|` as in the scale-invariance test; `margin`: the greatest cosine of a parameter
      over the test's threshold `delta / sqrt(row length)`: the channel view fires below 1.
    - `projected`: the share of parameters that the optimizer projects, by its options `delta`, `eps` and
      `scale_invariant`; for an optimizer without the test, the share that the test would project.
    - `oscillation`: see `adamp.probes.oscillation.OscillationWindow`; only with `oscillation_window > 0`, one window
      between two reads.

    Nothing is read back from the device before `read`. The probe keeps one copy of the weights. A step that
    gradient scaling skips is not seen, unless a fused optimizer skips it on the device: then it counts as a
    step of length 0.

    Sharded weights (DTensor) give the values of the whole ones on every process, which all must call `read` and
    `state_dict`. The end of an oscillation window gathers all weights on each process.

    Args:
        named_parameters: Pairs (name, parameter), e.g. `model.named_parameters()`. Vectors and scalars have
            no filters and are left out.
        every: Sample every k-th step, at least 1.
        delta: Threshold of the test for optimizers without one.
        eps: Lower bound of the norms in the test for optimizers without one.
        oscillation_window: Steps over which oscillation is measured, once between two reads; 0 turns it off. While a
            window is open it takes the memory of three more copies of the weights.

    Raises:
        ValueError: If an option is out of range, a name comes twice or no parameter has two dimensions.

    Example:
        >>> layer = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> probe = NormProbe(layer.named_parameters(), every=1)
        >>> handle = probe.attach(optimizer)
        >>> sorted(probe.read())
        ['norm/max', 'norm/mean', 'norm/median', 'norm/min']
        >>> layer(torch.ones(2, 4)).sum().backward()
        >>> optimizer.step()
        >>> probe.read()["effective_step/mean"] > 0
        True
        >>> handle.remove()
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        *,
        every: int = 10,
        delta: float = 0.1,
        eps: float = 1e-8,
        oscillation_window: int = 0,
    ) -> None:
        if not every >= 1:
            raise ValueError(f"every={every!r} is not valid: it must be at least 1 step")
        if not 0 < delta < math.inf:
            raise ValueError(f"delta={delta!r} is not valid: it must be above 0 and finite")
        if not 0 <= eps < math.inf:
            raise ValueError(f"eps={eps!r} is not valid: it must be at least 0 and finite")
        if not oscillation_window >= 0:
            raise ValueError(f"oscillation_window={oscillation_window!r} is not valid: it must be at least 0 steps")
        pairs = [(name, p) for name, p in named_parameters if p.ndim > 1 and p.numel() > 0]
        self._parameters = dict(pairs)
        if len(self._parameters) < len(pairs):
            raise ValueError("named_parameters has the same name twice")
        for p in self._parameters.values():
            check_placement(p)
        if not pairs:
            raise ValueError("named_parameters has no parameter of two or more dimensions, so no filters to measure")
        self._every, self._delta, self._eps = every, delta, eps
        self._device = pairs[0][1].device
        wide = any(to_compute_dtype(p).dtype == torch.float64 for _, p in pairs)
        self._dtype = torch.float64 if wide else torch.float32
        self._step = 0
        self._handle: ProbeHandle | None = None
        self._before: dict[str, Tensor] = {}
        # The entry `scale_invariant` of each parameter's group
        self._modes: dict[str, ScaleInvariantMode] = dict.fromkeys(self._parameters, "auto")
        self._meter = StepGeometry()
        self._sampling = False
        self._is_real_step = True
        self._window = OscillationWindow(oscillation_window, list(self._parameters.values()))
        self._oscillation = self._mean(3)
        size = len(self._parameters)
        self._summary = self._mean(len(_STEP) + len(_GRAD))
        self._layers = {name: self._mean(size) for name in ("effective_step", *_LAYER_GRAD)}
        self._norms: Tensor | None = None  # (4 + L,) of the last sample since the last read

    def _mean(self, size: int) -> _Mean:
        return _Mean(torch.zeros(size, dtype=self._dtype, device=self._device), [0] * size)

    def attach(self, optimizer: Optimizer) -> ProbeHandle:
        """Measure the steps of an optimizer from now on; return a handle whose `remove` ends it.

        Raises:
            RuntimeError: If the probe is attached already.
            ValueError: If the optimizer runs no step hooks and holds none that does.
        """
        if self._handle is not None:
            raise RuntimeError("the probe is attached already; call remove() of its handle first")
        optimizer = find_hooked_optimizer(optimizer)
        hooks = attach_step_hooks(optimizer, self._before_step, self._after_step, undo=lambda: None)
        self._handle = ProbeHandle(self, hooks)
        self._read_modes(groups_of(optimizer))
        return self._handle

    def _read_modes(self, groups: dict[Tensor, dict[str, Any]]) -> None:
        self._modes = {name: groups.get(p, {}).get("scale_invariant", "auto") for name, p in self._parameters.items()}

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._is_real_step = not is_state_initialisation(optimizer)
        if not self._is_real_step:
            return
        self._sampling = self._step % self._every == 0
        if self._sampling:
            for name, p in self._parameters.items():
                if name not in self._before:
                    w = to_compute_dtype(local(p))
                    self._before[name] = torch.empty_like(w, memory_format=torch.preserve_format)
                self._before[name].copy_(to_compute_dtype(local(p)))
        # One window between two reads: a window touches every weight at every step of it.
        self._window.before_step(may_start=self._sampling and not self._oscillation.counts[0])

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_real_step:
            return
        if self._sampling:
            self._sample(optimizer)
            self._sampling = False
        values = self._window.after_step()
        if values is not None:
            self._oscillation.add(values.to(self._device, self._dtype), [True] * 3)
        self._step += 1

    def _sample(self, optimizer: Optimizer) -> None:
        groups = groups_of(optimizer)
        self._read_modes(groups)
        size = len(self._parameters)
        movements, cosines, margins, projected = [], [], [], []
        has_grad = [False] * size
        for index, (name, p) in enumerate(self._parameters.items()):
            grad, mode = p.grad if p.grad is not None and p.grad.layout is torch.strided else None, self._modes[name]
            g = None if grad is None else slices_first(to_compute_dtype(local_grad(grad, p)), mode)
            w0, w1 = slices_first(self._before[name], mode), slices_first(to_compute_dtype(local(p)), mode)
            rows = Movement(*gather_rows(self._meter(w0, w1, g), p, mode))
            movements.append(self._stack(list(rows)))
            if g is not None:
                has_grad[index] = True
                cos, margin, fired = self._test(rows, p.numel(), groups.get(p, {}))
                cosines.append(cos.to(self._device, self._dtype))
                margins.append(margin)
                projected.append(fired)

        every_filter = Movement(*torch.cat(movements, dim=1))
        steps, norms = direction_change(every_filter), every_filter.ww1.sqrt()
        summary = self._zeros(len(_STEP) + len(_GRAD))
        summary[: len(_STEP)] = _mean_min_median_max(steps)
        if cosines:
            cos, fired = torch.cat(cosines), self._stack(projected)
            summary[len(_STEP) :] = torch.stack([cos.mean(), cos.max(), self._stack(margins).max(), fired.mean()])
            self._layers["cosine"].add(torch.stack([x.mean() for x in cosines]), has_grad)
            self._layers["projected"].add(fired, has_grad)
        self._summary.add(summary, [True] * len(_STEP) + [bool(cosines)] * len(_GRAD))
        self._layers["effective_step"].add(self._layer_means(steps), [True] * size)
        self._norms = self._norm_values(norms)

    def _test(self, rows: Movement, num_weights: int, group: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        # The optimizer's rule, or AdamP's with this probe's delta and eps
        has_test = {"delta", "wd_ratio"} <= group.keys()
        delta, eps = (group["delta"], group.get("eps", self._eps)) if has_test else (self._delta, self._eps)
        mode = group.get("scale_invariant", "auto")
        sums = RowSums(wg=rows.wg, ww=rows.ww0, gg=rows.gg)
        cos = cosine(sums, eps=eps)
        limit = threshold(delta or self._delta, num_weights // cos.shape[0])
        if mode == "auto":
            decision = decide(sums, num_weights, delta=delta, eps=eps)
        else:
            decision = forced_decision(mode, cos.device)
        return cos, cos.max() / limit, decision > NONE

    def _zeros(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=self._dtype, device=self._device)

    def _stack(self, values: list[Tensor]) -> Tensor:
        return torch.stack([x.to(self._device, self._dtype) for x in values])

    def _current_norms(self) -> Tensor:
        with torch.no_grad():
            norms = [_slice_norms(p, self._modes[name]) for name, p in self._parameters.items()]
            return self._norm_values(torch.cat([x.to(self._device, self._dtype) for x in norms]))

    def _norm_values(self, norms: Tensor) -> Tensor:
        """Return mean, min, median and max over all filters, then each layer's mean, (4 + L,)."""
        return torch.cat([_mean_min_median_max(norms), self._layer_means(norms)])

    def _layer_means(self, values: Tensor) -> Tensor:
        rows = [num_slices(p.shape, self._modes[name]) for name, p in self._parameters.items()]
        return torch.stack([x.mean() for x in torch.split(values, rows)])

    def read(self, layers: bool = False) -> dict[str, float]:
        """Return the averages over the steps sampled since the last read, and start new ones.

        One transfer from the device. Norms are those of the last sample, or, if nothing was sampled since,
        the current ones; values that were not measured are left out.

        Args:
            layers: Also return `norm/<name>`, `effective_step/<name>`, `cosine/<name>` and `projected/<name>`
                of each parameter, averaged since the last read with `layers`.

        Returns:
            `norm/{mean,min,median,max}`, `effective_step/{mean,min,median,max}`, `cosine/{mean,max}`,
            `margin/max`, `projected/share` and `oscillation/{mean,median,ratio}`.
        """
        names = list(self._parameters)
        keys = [*_NORM, *(f"norm/{name}" for name in names)]
        counts = [1] * len(_NORM) + [int(layers)] * len(names)
        parts = [self._current_norms() if self._norms is None else self._norms]
        means = [(self._summary, [*_STEP, *_GRAD])]
        means.append((self._oscillation, ["oscillation/mean", "oscillation/median", "oscillation/ratio"]))
        if layers:
            means += [(mean, [f"{key}/{name}" for name in names]) for key, mean in self._layers.items()]
        for mean, mean_keys in means:
            keys += mean_keys
            counts += mean.counts
            parts.append(mean.total)
            mean.reset()
        self._norms = None
        values = torch.cat(parts).tolist()
        return {key: value / n for key, value, n in zip(keys, values, counts, strict=True) if n}

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state, so that a resumed run continues as if it had not stopped.

        It holds whole tensors: more or fewer processes can load it.
        """
        means = {"summary": self._summary, "oscillation": self._oscillation, **self._layers}
        return {
            "names": list(self._parameters),
            "step": self._step,
            "norms": self._norms,
            "totals": {key: mean.total for key, mean in means.items()},
            "counts": {key: list(mean.counts) for key, mean in means.items()},
            "window": self._window.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a probe of the same parameters.

        Raises:
            ValueError: If the state is of other parameters.
        """
        if state["names"] != list(self._parameters):
            raise ValueError(
                f"the probe's state is of {len(state['names'])} parameters with other names or order "
                f"than the {len(self._parameters)} of this probe"
            )
        self._step = state["step"]
        norms = state["norms"]
        self._norms = None if norms is None else norms.to(self._device, self._dtype, copy=True)
        means = {"summary": self._summary, "oscillation": self._oscillation, **self._layers}
        for key, mean in means.items():
            mean.total = state["totals"][key].to(self._device, self._dtype, copy=True)
            mean.counts = list(state["counts"][key])
        self._window.load_state_dict(state["window"])


def _slice_norms(param: Tensor, mode: ScaleInvariantMode) -> Tensor:
    norms = row_norms(slices_first(to_compute_dtype(local(param)), mode))
    return gather_rows([norms.square()], param, mode)[0].sqrt() if is_sharded(param) else norms


def _mean_min_median_max(x: Tensor) -> Tensor:
    return torch.stack([x.mean(), x.min(), x.median(), x.max()])
