"""Shows the suite's sweeper and launchers to Hydra, which takes them only from the package `hydra_plugins`.

Hydra executes this file at each start, so it holds names alone; what they do stands in `scripts/launch`.
"""

from scripts.launch import grid, local


class GridSweeper(grid.GridSweeper):  # noqa: D101
    pass


class LocalLauncher(local.LocalLauncher):  # noqa: D101
    pass
