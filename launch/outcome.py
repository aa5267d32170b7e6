"""What a run leaves to the command that asked for it, in this process or in a launcher's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig


class ComparisonPage(NamedTuple):
    """The page that compares all runs of an experiment: folder of runs, experiment, folder of reports."""

    runs: Path
    experiment: str
    reports: Path

    @classmethod
    def of(cls, cfg: DictConfig) -> ComparisonPage:
        """Return the page of a configuration's experiment."""
        return cls(Path(cfg.paths.runs), cfg.experiment_name, Path(cfg.paths.reports))


@dataclass
class RunOutcome:
    """What became of one run.

    Attributes:
        code: Exit code.
        page: The comparison page to draw again, None where the run changed none.
    """

    code: int = 0
    page: ComparisonPage | None = None
