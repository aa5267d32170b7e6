"""Optimizers that respect scale invariance, and probes of what a step does to weight norms.

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    ICLR 2021. https://arxiv.org/abs/2006.08217
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay" (AWS).
    "Adaptive Gradient Method with Resilience and Momentum" (AdaRem).
"""

from adamp import layers
from adamp.adamp import AdamP
from adamp.adarem import AdaRem, AdaRemS
from adamp.aws import shrink_weights
from adamp.invariance import scale_invariant_parameters
from adamp.probes import NormProbe
from adamp.projected import project_updates
from adamp.sgdp import SGDP

__version__ = "0.1.0"

__all__ = [
    "SGDP",
    "AdaRem",
    "AdaRemS",
    "AdamP",
    "NormProbe",
    "__version__",
    "layers",
    "project_updates",
    "scale_invariant_parameters",
    "shrink_weights",
]
