"""Norm probes on the optimizers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from adamp import NormProbe
from tasks.engine.config import Train


def attach(
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    train: Train,
    chosen: Mapping[str, Sequence[str]],
) -> dict[str, NormProbe]:
    """Attach a probe to each network's optimizer, at the cadence of the options.

    Args:
        networks: Role -> network, not wrapped.
        optimizers: Role -> its optimizer.
        train: Options; `probe_every=0` attaches none.
        chosen: Role -> names of the parameters to probe; a role left out probes every weight of two or more dimensions.

    Returns:
        Role -> probe; a network without any weight to probe is left out.
    """
    probes: dict[str, NormProbe] = {}
    for role, net in networks.items() if train.probe_every else ():
        named = dict(net.named_parameters())
        pairs = [(name, named[name]) for name in chosen.get(role) or [n for n, p in named.items() if p.ndim > 1]]
        if pairs:
            window = train.oscillation_window
            probes[role] = NormProbe(pairs, every=train.probe_every, oscillation_window=window)
            probes[role].attach(optimizers[role])
    return probes


def read(probes: Mapping[str, NormProbe], *, layers: bool) -> dict[str, float]:
    """Return what the probes measured since they were last read; with several networks under "<role>/..." names."""
    values: dict[str, float] = {}
    for role, probe in probes.items():
        prefix = f"{role}/" if len(probes) > 1 else ""
        values |= {prefix + key: value for key, value in probe.read(layers=layers).items()}
    return values
