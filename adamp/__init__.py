"""Optimizers that respect scale invariance, and probes of what a step does to weight norms.

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    ICLR 2021. https://arxiv.org/abs/2006.08217
"""

from adamp import layers
from adamp.adamp import AdamP
from adamp.invariance import scale_invariant_parameters
from adamp.probes import NormProbe
from adamp.sgdp import SGDP

__version__ = "0.1.0"

__all__ = ["SGDP", "AdamP", "NormProbe", "__version__", "layers", "scale_invariant_parameters"]
