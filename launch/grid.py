"""The sweeper: all blocks of a sweep, or all recorded cells, in one launch, so that a launcher sees them together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from evidence import sweeps as grids
from launch.train import Command


@dataclass
class GridConf:
    """Options of the sweeper.

    Attributes:
        params: Key -> values; every combination is a cell. What is typed wins.
        cells: A JSON file, a list of lists of overrides, each a cell. Nothing is multiplied then.
    """

    _target_: str = "hydra_plugins.cells.GridSweeper"
    params: dict[str, Any] | None = field(default_factory=dict)
    cells: str | None = None


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridConf, provider="adamp")


class GridSweeper(BasicSweeper):
    """Hydra's grid of `params`, once for each block of the sweep (`evidence/tables/sweeps.py`), without repetitions."""

    def __init__(self, params: Mapping[str, Any] | None = None, cells: str | None = None) -> None:
        super().__init__(max_batch_size=None, params=dict(params or {}))
        self.file = cells

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra hands every sweeper."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.command = task_function

    def sweep(self, arguments: list[str]) -> list[int]:
        """Launch every cell and return their exit codes; the command's `outcomes` are all of them then."""
        assert self.launcher is not None
        cells = self._recorded(Path(self.file)) if self.file else self._grid(arguments)
        if not cells:
            return []
        outcomes = [done.return_value for done in self.launcher.launch(cells, initial_job_idx=0)]
        if isinstance(self.command, Command):
            self.command.outcomes[:] = outcomes
        return [outcome.code for outcome in outcomes]

    def _grid(self, arguments: Sequence[str]) -> list[list[str]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        cells: dict[tuple[str, ...], None] = {}
        for words in grids.runs(arguments):
            (block,) = self.split_arguments(parser.parse_overrides([*self._parse_config(), *words]), None)
            cells |= dict.fromkeys(map(tuple, block))
        return [list(cell) for cell in cells]

    @staticmethod
    def _recorded(path: Path) -> list[list[str]]:
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise HydraException(f"hydra.sweeper.cells={path}: cannot be read ({error})") from None
        if not isinstance(cells, list) or not all(isinstance(cell, list) for cell in cells):
            raise HydraException(f"hydra.sweeper.cells={path}: must hold a list of lists of overrides")
        return [[str(word) for word in cell] for cell in cells]
