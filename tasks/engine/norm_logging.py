"""Logging of weight norms and effective steps: norm probes on the optimizers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from adamp import NormProbe
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
