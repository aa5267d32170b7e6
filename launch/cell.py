"""One cell of a sweep: its overrides, the run that they stand for, and the note that says who was asked to run it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from tasks.engine.run_spec import RunSpec

ROOT = Path(__file__).resolve().parents[1]
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
        """Write into the run's folder who was asked to run it, so that `make status` knows of it before it starts."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        known = {
            "argv": list(self.plan.argv), "asked": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(), "pid": os.getpid(), **facts,
        }  # fmt: skip
        temporary = self.plan.folder / f"{NOTE}.tmp"
        temporary.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.plan.folder / NOTE)

    def noted(self) -> dict[str, Any]:
        """Return the note of an earlier launch, empty where there is none."""
        try:
            found = json.loads((self.plan.folder / NOTE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def python_path() -> str:
    """Return PYTHONPATH with this repository first: nodes import it, from wherever a sweep was started."""
    known = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT)]
    return os.pathsep.join([str(ROOT), *known])


def unfinished(launcher: Launcher, job_overrides: Sequence[Sequence[str]]) -> list[Cell]:
    """Return the cells that still have to run, each composed, so that a mistake in one shows before the first starts.

    Two cells that stand for one run are one cell.

    Raises:
        InputError: A cell's values are out of their range.
        HydraException: A cell cannot be composed.
    """
    from scripts import train  # it imports Hydra's decorators, and Hydra imports this

    assert launcher.hydra_context is not None
    assert launcher.config is not None
    loader, before = launcher.hydra_context.config_loader, HydraConfig.instance().cfg
    found: dict[Path, Cell] = {}
    done = 0
    try:
        for place, overrides in enumerate(job_overrides):
            cfg = loader.load_sweep_config(launcher.config, list(overrides))
            HydraConfig.instance().set_config(cfg)
            own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
            plan = train.plan(own, list(overrides))
            if plan.write_report is not None:
                train.DRAWN.add((Path(cfg.paths.runs), plan.experiment, Path(cfg.paths.reports)))
            if plan.finished() is None:
                found.setdefault(plan.folder, Cell(place, tuple(overrides), plan))
            else:
                done += 1
    finally:
        HydraConfig.instance().cfg = before
    if done:
        print(f"{done} of {len(job_overrides)} cells were finished before", flush=True)
    return list(found.values())


def returned(code: int, overrides: Sequence[str]) -> JobReturn:
    """Return an exit code as Hydra hands it on."""
    made = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    made.return_value = code
    return made


def returns(job_overrides: Sequence[Sequence[str]], codes: dict[int, int]) -> list[JobReturn]:
    """Return the codes of a launch by the cells' places; a cell that was not started has been finished before."""
    return [returned(codes.get(place, 0), overrides) for place, overrides in enumerate(job_overrides)]
