"""Detection of the scale-invariant parameters of a model, by rescaling them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_EPS = 1e-20  # for the normalisation layers; smaller values amplify the rounding of constant channels
_TOLERANCE = 1e-6  # of the outputs' largest magnitude; rounding stays below 1e-9, a change of a weight does not
_COSINE = 1e-4  # of a weight and its gradient; rounding reached 1e-5 where batch norm sees 8 values, else 1e-16
_FACTOR = 3.0  # weights are multiplied by factors between 1 / 3 and 3


def scale_invariant_parameters(
    model: nn.Module, example_batch: Any, *, per_filter: bool = False, seed: int = 0
) -> set[str]:
    """Find the parameters whose scale does not change what the model computes in training mode.

    This is the structural truth that the optimizers' test estimates from gradients (§2.1 of the paper): a
    float64 copy of the model, on the CPU and with a negligible `eps` in every module that has this attribute,
    is run with parameters multiplied by random factors. Entries that are exactly zero, such as batch norm's biases, are
    first moved to random values, so that zero is not taken for invariant. A parameter without any effect on
    the outputs is not invariant. Neither the model nor the global random state is touched.

    Args:
        model: The model.
        example_batch: A tensor, or a tuple of the positional arguments of the model. Batch norm must see more
            than two values per channel: from two values it keeps only their order, and everything before it
            seems invariant.
        per_filter: Use one factor per output channel instead of one for the whole parameter. Batch norm
            after a convolution makes each filter invariant, layer norm only the whole.
        seed: Of the random values and of dropout.

    Returns:
        The names of the scale-invariant parameters, never of those with fewer than two dimensions, since
        the optimizers never project vectors.

    Raises:
        ValueError: If batch norm sees two values per channel or fewer, or the outputs hold no floating-point
            numbers that depend on the parameters.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> scale_invariant_parameters(model, torch.randn(16, 4))
        {'0.weight'}
    """
    probe = _Rescaling(model, example_batch, per_filter=per_filter, seed=seed)
    candidates = [name for name, p in probe.parameters.items() if p.ndim > 1 and p.numel() > 0]
    return set(probe.confirm_by_rescaling(probe.first_order_candidates(candidates)))


class _Rescaling:
    """A float64 copy of a model and the outputs it gives when some parameters are multiplied."""

    def __init__(self, model: nn.Module, example_batch: Any, *, per_filter: bool, seed: int) -> None:
        self.model = copy.deepcopy(model).to(device="cpu", dtype=torch.float64).train()
        arguments = example_batch if isinstance(example_batch, tuple) else (example_batch,)
        self.arguments = tuple(_to_double(argument) for argument in arguments)
        self.per_filter, self.seed = per_filter, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters = dict(self.model.named_parameters())
        for module in self.model.modules():
            if isinstance(getattr(module, "eps", None), float):
                module.eps = _EPS  # type: ignore[assignment]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(_refuse_two_values)
        with torch.no_grad():
            for p in self.parameters.values():
                p.requires_grad_()
                p.copy_(torch.where(p == 0, 0.1 * self._normal(p.shape), p))
        with torch.no_grad():
            self.outputs = self._forward()

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.generator, dtype=torch.float64)

    def _forward(self) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)  # the same dropout masks every time
            outputs = list(_floating_tensors(self.model(*self.arguments)))
        if not any(output.numel() for output in outputs):
            raise ValueError("example_batch: the model's outputs hold no floating-point numbers to compare")
        return outputs

    def first_order_candidates(self, names: list[str]) -> list[str]:
        """Return the parameters that affect the outputs, but not to first order by their scale.

        A random sum of the outputs must have a gradient, and one orthogonal to the parameter (eq. 4). Its angle does
        not depend on how strong the effect is: attention's biases at their initial size move a language model's
        losses by less than any tolerance on the losses themselves, and are not invariant.
        """
        outputs = self._forward()
        total = sum((output * self._normal(output.shape)).sum() for output in outputs if output.requires_grad)
        if not isinstance(total, Tensor):
            raise ValueError("example_batch: the model's outputs do not depend on its parameters")
        params = [self.parameters[name] for name in names]
        grads = torch.autograd.grad(total, params, allow_unused=True) if params else ()
        return [
            name
            for name, p, grad in zip(names, params, grads, strict=True)
            if grad is not None
            and bool(grad.any())
            and float((grad * p.detach()).sum().abs()) <= _COSINE * float(grad.norm() * p.detach().norm())
        ]

    def confirm_by_rescaling(self, names: list[str]) -> list[str]:
        """Return the invariant parameters by bisection: a group that may be rescaled at once is invariant."""
        if not names or self._unchanged(names):
            return names
        if len(names) == 1:
            return []
        middle = len(names) // 2
        return self.confirm_by_rescaling(names[:middle]) + self.confirm_by_rescaling(names[middle:])

    @torch.no_grad()
    def _unchanged(self, names: list[str]) -> bool:
        originals = {name: self.parameters[name].clone() for name in names}
        try:
            for name, original in originals.items():
                rows = original.shape[0] if self.per_filter else 1
                # Away from 1 on both sides: factors in [1/3, 1/sqrt(3)] or [sqrt(3), 3].
                exponent = (torch.rand(rows, generator=self.generator, dtype=torch.float64) + 1) / 2
                sign = torch.randint(2, (rows,), generator=self.generator) * 2 - 1
                factor = torch.exp(math.log(_FACTOR) * exponent * sign)
                self.parameters[name].mul_(factor.reshape(-1, *[1] * (original.ndim - 1)))
            outputs = self._forward()
        finally:
            for name, original in originals.items():
                self.parameters[name].copy_(original)
        return all(
            a.shape == b.shape and float((a - b).abs().max()) <= _TOLERANCE * float(b.abs().max())
            for a, b in zip(outputs, self.outputs, strict=True)
            if b.numel()
        )


def _refuse_two_values(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    x = arguments[0]
    values = x.numel() // max(x.shape[1], 1)
    if values <= 2:
        raise ValueError(
            f"example_batch gives batch norm an input of shape {tuple(x.shape)}, {values} values a channel: "
            "it must see more than two; give more or larger examples"
        )


def _to_double(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().to("cpu", torch.float64) if x.is_floating_point() else x.detach().cpu()
    if isinstance(x, Mapping):
        return {key: _to_double(value) for key, value in x.items()}
    if isinstance(x, list):
        return [_to_double(value) for value in x]
    if isinstance(x, tuple):
        values = [_to_double(value) for value in x]
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)  # a named tuple or a plain one
    return x


def _floating_tensors(x: Any) -> Iterable[Tensor]:
    if isinstance(x, Tensor):
        if x.is_floating_point():
            yield x
        elif x.is_complex():
            yield torch.view_as_real(x)
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from _floating_tensors(value)
    elif isinstance(x, list | tuple):
        for value in x:
            yield from _floating_tensors(value)
