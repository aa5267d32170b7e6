"""Logging of weight norms and effective steps: norm probes on the optimizers of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adamp import NormProbe
from adamp.hooks.handle import groups_of
from adamp.layers import WNConv2d, WNLinear, WSConv2d, WSLinear
from tasks.engine.config import Train

VARIANT = ":variant"  # suffix of a role: the probe of its weights that are not scale-invariant


def attach_probes(
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    train: Train,
    probed: Mapping[str, Sequence[str]],
) -> dict[str, NormProbe]:
    """Attach a probe to each network's optimizer, sampling as the options say.

    Args:
        modules: Role -> network, not wrapped.
        optimizers: Role -> its optimizer.
        train: Options; `probe_every=0` attaches none.
        probed: Role -> names of the parameters to probe; a role left out probes every weight of two or more dimensions.

    Returns:
        Role -> probe; a network without any weight to probe is left out. With `probe_variant` a second probe
        per network follows the other weights, under the role and `VARIANT`.
    """
    probes: dict[str, NormProbe] = {}
    for role, net in modules.items() if train.probe_every else ():
        named = dict(net.named_parameters())
        pairs = [(name, named[name]) for name in probed.get(role) or [n for n, p in named.items() if p.ndim > 1]]
        if pairs:
            window = train.oscillation_window
            probes[role] = NormProbe(pairs, every=train.probe_every, oscillation_window=window)
            probes[role].attach(optimizers[role])
        others = [(name, p) for name, p in named.items() if p.ndim > 1 and name not in dict(pairs)]
        if train.probe_variant and others:
            probes[role + VARIANT] = NormProbe(others, every=train.probe_every)
            probes[role + VARIANT].attach(optimizers[role])
    return probes


def read_probes(probes: Mapping[str, NormProbe], *, layers: bool) -> dict[str, float]:
    """Return the measurements since the last read; with several networks under "<role>/..." names."""
    values: dict[str, float] = {}
    roles = {role.removesuffix(VARIANT) for role in probes}
    for key, probe in probes.items():
        role = key.removesuffix(VARIANT)
        prefix = (f"{role}/" if len(roles) > 1 else "") + ("variant/" if key != role else "")
        values |= {prefix + name: value for name, value in probe.read(layers=layers).items()}
    return values


@torch.no_grad()
def trace_weights(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> dict[str, float]:
    """Return what a line of `train.trace_every` holds: the weights and effective learning rates as they now are.

    - `lr/norm/<name>`: mean over a weight-normalised layer's filters of the rate over the filter's norm, `lr/‖W_f‖`;
    - `lr/std/<name>`: the same of a weight-standardised layer with the filter's standard deviation, `lr/std(W_f)`;
    - `weight/<name>`: the middle entry of each weight of two or more dimensions, as an example of a parameter's path.

    With several networks the names begin with "<role>/". A mean that is not finite, where a filter has come to 0, is
    left out.
    """
    scalars: dict[str, Tensor] = {}
    for role, net in modules.items():
        prefix = f"{role}/" if len(modules) > 1 else ""
        groups = groups_of(optimizers[role])
        for path, module in net.named_modules():
            if isinstance(module, WNConv2d | WNLinear | WSConv2d | WSLinear) and module.weight in groups:
                filters, lr = module.weight.flatten(1), groups[module.weight]["lr"]
                name = f"{path}.weight" if path else "weight"
                if module.kind == "wn":
                    scalars[f"{prefix}lr/norm/{name}"] = (lr / torch.linalg.vector_norm(filters, dim=1)).mean()
                else:
                    scalars[f"{prefix}lr/std/{name}"] = (lr / filters.std(dim=1)).mean()
        for name, p in net.named_parameters():
            if p.ndim > 1:
                scalars[f"{prefix}weight/{name}"] = p.flatten()[p.numel() // 2]
    values = torch.stack([value.double() for value in scalars.values()]).tolist() if scalars else []
    return {key: value for key, value in zip(scalars, values, strict=True) if math.isfinite(value)}
