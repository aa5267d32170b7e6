"""What a run needs before anything is made, and whether it has been run before.

Free of torch: a finished run is answered in the time that reading a file takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import Task
from tasks.engine.config import Train, differing_keys

if TYPE_CHECKING:
    from tasks.engine.optim import Rule
    from tasks.engine.phases import Phase
    from tasks.engine.records import Sink


# Entries of run.json that are read back, and what they must be.
KINDS: Mapping[str, tuple[type, ...]] = {
    "status": (str,), "config": (dict,), "scores": (dict,), "model": (dict,), "data": (dict,), "resumed_from": (list,),
    "wall_time_s": (int, float), "best": (dict, type(None)), "peak_memory_mib": (int, float, type(None)),
    "error": (str, type(None)),
}  # fmt: skip


def wrong_entry(record: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a record read from run.json, e.g. by hand or by a disk; None if nothing is."""
    for key, kinds in KINDS.items():
        if key in record and (not isinstance(record[key], kinds) or isinstance(record[key], bool)):
            return f"its {key} is {record[key]!r}"[:80]
    if not 0 <= float(record.get("wall_time_s", 0)) < float("inf"):
        return f"its wall_time_s is {record['wall_time_s']}"
    if not all(isinstance(value, int | float) for value in record.get("scores", {}).values()):
        return "a score is no number"
    return None


@dataclass
class Plan:
    """Everything a run needs, with nothing made yet: a finished run must cost neither data nor networks.

    Attributes:
        experiment: Name of the experiment.
        name: Name of the run, unique within the experiment, from the configuration alone.
        folder: Where the run lives.
        config: The resolved configuration as plain containers.
        train: The engine's options.
        rules: Parameter rules.
        make_task: Builds data and networks.
        make_phases: Builds the phases.
        make_sinks: Builds the loggers, on process 0.
        draw: Draws the pictures of a run's folder and returns the page; None draws nothing.
        marks: What parameters with a property are marked with, see `tasks.engine.marks.marked_rules`.
        normalise: "wn" or "ws" weight-normalises or -standardises the networks' convolutions.
        normalise_eps: Added to each filter's norm or deviation there.
        argv: Words after `scripts/train.py` that run this very run again, whatever started it.
    """

    experiment: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    train: Train
    rules: Sequence[Rule]
    make_task: Callable[[], Task]
    make_phases: Callable[[], Sequence[Phase]]
    make_sinks: Callable[[], Sequence[Sink]]
    draw: Callable[[Path], Path] | None = None
    marks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    normalise: str | None = None
    normalise_eps: float = 1e-5
    argv: Sequence[str] = ()

    def finished(self) -> dict[str, Any] | None:
        """Return the record of this very configuration if it has been run to its end, else None.

        A run that diverged has reached its end too: resuming is exact, so it would only diverge again.
        Whatever else the folder holds, broken files too, is for `RunRecord` to judge.
        """
        try:
            record = json.loads((self.folder / "run.json").read_text())
            ended = record["status"] == "finished" or record.get("diverged_at") is not None
            done = ended and not differing_keys(dict(self.config), record["config"]) and wrong_entry(record) is None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, ArithmeticError, MemoryError):
            return None
        return record if done else None

    def say_end(self, record: Mapping[str, Any], how: str) -> None:
        """Print the last lines of a run: its scores, and where its checkpoint and pictures are."""
        scores = ", ".join(f"{key} {value:.4g}" for key, value in record.get("scores", {}).items())
        best = record.get("best") or {}
        kept = f" (best {best['score']:.4g} at epoch {best['epoch']})" if best.get("score") is not None else ""
        print(f"{self.experiment}/{self.name} {how} on {record['data'].get('name', '?')}: {scores}{kept}")
        print(f"checkpoint  {self.folder / 'checkpoints' / 'last.pt'}")
        figures, page = self.folder / "figures", self.folder / "report.html"
        if page.exists():
            print(f"pictures    {figures}")
            print(f"page        {page}", flush=True)
