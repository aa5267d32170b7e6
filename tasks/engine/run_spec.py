"""The specification of a run, before anything is built.

Free of torch: a run that is finished is reported as fast as its record is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.base import Task
from tasks.engine.config import Train, differing_keys
from tasks.engine.loggers import RunLogger
from tasks.engine.record_schema import RunEntries, wrong_entry

if TYPE_CHECKING:  # they load torch
    from tasks.engine.optim import Rule
    from tasks.engine.phases import Phase


@dataclass
class RunSpec:
    """Everything a run needs, with nothing built yet: a finished run must cost neither data nor networks.

    Attributes:
        experiment: Name of the experiment.
        name: Name of the run, unique within the experiment, from the configuration alone.
        folder: Where the run lives.
        config: The resolved configuration as plain containers.
        train: The engine's options.
        rules: Parameter rules.
        make_task: Builds data and networks.
        make_phases: Builds the phases.
        make_loggers: Builds the loggers, on process 0.
        write_report: Draws the figures of a run's folder and returns the page; None draws nothing.
        overrides_by_property: The option `marks`, see `tasks.engine.group_overrides.expand_overrides`.
        normalise: "wn" or "ws": weight normalisation or standardisation of the networks' convolutions.
        normalise_eps: Added to each filter's norm or deviation there.
        argv: Arguments of `scripts/train.py` that repeat this run, however it was started.
    """

    experiment: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    train: Train
    rules: Sequence[Rule]
    make_task: Callable[[], Task]
    make_phases: Callable[[], Sequence[Phase]]
    make_loggers: Callable[[], Sequence[RunLogger]]
    write_report: Callable[[Path], Path] | None = None
    overrides_by_property: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    normalise: str | None = None
    normalise_eps: float = 1e-5
    argv: Sequence[str] = ()

    def finished(self) -> RunEntries | None:
        """Return the record of this configuration if its run has ended, else None.

        A diverged run has ended too: resuming is exact, so it would diverge again. All other contents of the folder,
        broken files too, are left to `RunRecord`.
        """
        try:
            record = json.loads((self.folder / "run.json").read_text())
            ended = record["status"] == "finished" or record.get("diverged_at") is not None
            done = ended and not differing_keys(dict(self.config), record["config"]) and wrong_entry(record) is None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError, MemoryError):
            return None
        return cast(RunEntries, record) if done else None

    def print_summary(self, record: Mapping[str, Any], outcome: str) -> None:
        """Print the last lines of a run: its scores, and the paths of its checkpoint and figures."""
        scores = ", ".join(f"{key} {value:.4g}" for key, value in record.get("scores", {}).items())
        best = record.get("best") or {}
        best_text = f" (best {best['score']:.4g} at epoch {best['epoch']})" if best.get("score") is not None else ""
        print(f"{self.experiment}/{self.name} {outcome} on {record['data'].get('name', '?')}: {scores}{best_text}")
        print(f"checkpoint  {self.folder / 'checkpoints' / 'last.pt'}")
        figures, page = self.folder / "figures", self.folder / "report.html"
        if page.exists():
            print(f"pictures    {figures}")
            print(f"page        {page}", flush=True)
