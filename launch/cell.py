"""One cell of a sweep: its overrides, the run that they stand for, and the note that says who was asked to run it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from evidence.runs import progress
from launch.compose import plan
from launch.outcome import ComparisonPage, RunOutcome
from launch.schema import check_arguments, check_data_root
from tasks.engine.run_spec import RunSpec

log = logging.getLogger(__name__)

NOTE = "launch.json"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep that is to be started.

    Attributes:
        place: Its position among the cells that the launcher was given.
        overrides: Its words of the command line.
        plan: Its name, folder and configuration.
    """

    place: int
    overrides: tuple[str, ...]
    plan: RunSpec

    @property
    def title(self) -> str:
        """Experiment and name."""
        return f"{self.plan.experiment}/{self.plan.name}"

    def note(self, **facts: Any) -> None:
        """Write into the run's folder who was asked to run it, so that `make status` knows of it before it starts.

        Where it cannot be written, the cell runs all the same.
        """
        known = {
            "argv": list(self.plan.argv), "asked": datetime.now(UTC).isoformat(timespec="seconds"),
            **progress.this_process(), "config": dict(self.plan.config), **facts,
        }  # fmt: skip
        temporary = self.plan.folder / f"{NOTE}.tmp"
        try:
            self.plan.folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(known, indent=2, default=str) + "\n", encoding="utf-8")
            temporary.replace(self.plan.folder / NOTE)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            log.warning("%s: its launcher's note cannot be written: %s", self.title, error.strerror)

    def noted(self) -> dict[str, Any]:
        """Return the note of an earlier launch, empty where there is none."""
        try:
            found = json.loads((self.plan.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Launch:
    """The cells that a launcher was given.

    Attributes:
        overrides: Words of every cell.
        pages: The comparison page of every cell, None where it draws nothing.
        cells: Those that still have to run.
    """

    overrides: Sequence[Sequence[str]]
    pages: Sequence[ComparisonPage | None]
    cells: list[Cell]

    def returns(self, codes: Mapping[int, int]) -> list[JobReturn]:
        """Return the outcomes by the cells' places; a cell that was not started has been finished before."""
        return [
            returned(RunOutcome(codes.get(place, 0), page), overrides)
            for place, (overrides, page) in enumerate(zip(self.overrides, self.pages, strict=True))
        ]


def unfinished(launcher: Launcher, job_overrides: Sequence[Sequence[str]]) -> Launch:
    """Compose every cell, so that a mistake in one shows before the first starts, and find those that have to run.

    Two cells that stand for one run are one cell.

    Raises:
        InputError: A cell's values are out of their range.
        HydraException: A cell cannot be composed.
    """
    assert launcher.hydra_context is not None
    assert launcher.config is not None
    before = HydraConfig.instance().cfg
    cells: dict[Path, Cell] = {}
    pages: list[ComparisonPage | None] = []
    done = 0
    try:
        composed: dict[tuple[str, ...], DictConfig] = {}
        for place, overrides in enumerate(job_overrides):
            cfg = _composed_once(launcher, overrides, composed)
            planned = plan(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), list(overrides))
            pages.append(ComparisonPage.of(cfg) if planned.write_report is not None else None)
            if planned.finished() is None:
                check_data_root(cfg)
                check_arguments(planned.config)
                cells.setdefault(planned.folder, Cell(place, tuple(overrides), planned))
            else:
                done += 1
    finally:
        HydraConfig.instance().cfg = before
    if done:
        print(f"{done} of {len(job_overrides)} cells were finished before", flush=True)
    return Launch(job_overrides, pages, list(cells.values()))


def _composed_once(
    launcher: Launcher, overrides: Sequence[str], composed: dict[tuple[str, ...], DictConfig]
) -> DictConfig:
    """Return a cell's configuration; of cells that differ in their seed alone the first is composed, which takes long.

    Args:
        launcher: Knows how to compose.
        overrides: Of the cell.
        composed: Overrides without the seed -> configuration; added to.
    """
    assert launcher.hydra_context is not None
    assert launcher.config is not None
    seeds = [word.partition("=")[2] for word in overrides if word.startswith("train.seed=")]
    others = tuple(word for word in overrides if not word.startswith("train.seed="))
    is_plain = len(seeds) == 1 and seeds[0].isdecimal()
    if is_plain and others in composed:
        cfg = composed[others]
        cfg.train.seed = int(seeds[0])
    else:
        cfg = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
        if is_plain:
            composed[others] = cfg
    HydraConfig.instance().set_config(cfg)
    return cfg


def returned(outcome: RunOutcome, overrides: Sequence[str]) -> JobReturn:
    """Return an outcome as Hydra hands it on."""
    made = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    made.return_value = outcome
    return made
