"""Optimizers that respect scale invariance, and probes of what a step does to weight norms.

Reference:
    Heo et al., "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
    ICLR 2021. https://arxiv.org/abs/2006.08217
    Li et al., "Understanding the Disharmony between Weight Normalization Family and Weight Decay" (AWS).
    "Adaptive Gradient Method with Resilience and Momentum" (AdaRem).
"""

import importlib
from typing import Any

from adamp import layers, moved_modules
from adamp.adamp import AdamP
from adamp.adarem import AdaRem, AdaRemS
from adamp.factory import create, register_with_timm
from adamp.hooks.project_updates import project_updates
from adamp.hooks.weight_shrink import shrink_weights
from adamp.probes import NormProbe
from adamp.scale_invariance import mark_groups, scale_invariant_parameters
from adamp.sgdp import SGDP

__version__ = "0.4.0"

__all__ = [
    "SGDP",
    "AdaRem",
    "AdaRemS",
    "AdamP",
    "NormProbe",
    "__version__",
    "create",
    "layers",
    "mark_groups",
    "project_updates",
    "register_with_timm",
    "scale_invariant_parameters",
    "shrink_weights",
]

moved_modules.install()


def __getattr__(name: str) -> Any:
    """Return a module by its former name, such as `adamp.invariance`."""
    if f"adamp.{name}" in moved_modules.MOVED_MODULES:
        return importlib.import_module(f"adamp.{name}")
    raise AttributeError(f"module 'adamp' has no attribute {name!r}")
