"""Former module paths, so that older pickles, checkpoints and configurations still load."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED_MODULES = {
    "adamp.aws": "adamp.hooks.weight_shrink",
    "adamp.base": "adamp.step.checked",
    "adamp.foreach": "adamp.step.foreach",
    "adamp.invariance": "adamp.scale_invariance",
    "adamp.kernels.library": "adamp.kernels.cpu_build",
    "adamp.kernels.triton": "adamp.kernels.triton_launch",
    "adamp.movement": "adamp.probes.movement",
    "adamp.oscillation": "adamp.probes.oscillation",
    "adamp.paths": "adamp.step.dispatch",
    "adamp.precision": "adamp.step.precision",
    "adamp.projected": "adamp.hooks.project_updates",
    "adamp.resilience": "adamp.adarem",
    "adamp.sharding": "adamp.step.dtensor",
    "adamp.shrinking": "adamp.hooks.weight_shrink",
}


class MovedModuleFinder(MetaPathFinder, Loader):
    """Imports a module under its former path: both paths then name one and the same module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for a former path, None for any other."""
        return ModuleSpec(fullname, self) if fullname in MOVED_MODULES else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module from its present path in place of the empty one."""
        sys.modules[module.__name__] = importlib.import_module(MOVED_MODULES[module.__name__])


def install() -> None:
    """Let the import system find former paths, before another finder does so in an older installation."""
    sys.meta_path.insert(0, MovedModuleFinder())
