"""Shows the suite's sweeper and launchers to Hydra, which takes them only from the package `hydra_plugins`.

Hydra executes this file at each start, so it holds names alone; what they do stands in `launch/`.
"""

from importlib.util import find_spec

from launch import grid, local, many, on_ray


class GridSweeper(grid.GridSweeper):  # noqa: D101
    pass


class LocalLauncher(local.LocalLauncher):  # noqa: D101
    pass


class ManyLauncher(many.ManyLauncher):  # noqa: D101
    pass


class RayLauncher(on_ray.RayLauncher):  # noqa: D101
    pass


if find_spec("hydra_plugins.hydra_submitit_launcher"):
    from launch import slurm

    class SlurmLauncher(slurm.SlurmLauncher):  # noqa: D101
        pass
