"""Probes of an optimizer's steps: weight norms, effective steps, cosines, projections and oscillation."""

from adamp.probes.cap import predicted_cap
from adamp.probes.norm_probe import NormProbe, ProbeHandle, _Mean  # noqa: F401  (older pickles name it here)

__all__ = ["NormProbe", "ProbeHandle", "predicted_cap"]
