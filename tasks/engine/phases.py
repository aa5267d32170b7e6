"""The stretches a run is made of, and where in them it stands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.base import InputError
from tasks.engine.optim import OptimizerFactory
from tasks.engine.schedules import Schedule


@dataclass
class Phase:
    """A stretch of training with one optimizer and one schedule; most runs have one.

    Attributes:
        epochs: Passes over the training set.
        opt: Makes the optimizer of each network from its parameter groups; None goes on with those at hand.
        schedule: Parameter-group entry -> schedule, e.g. {"lr": cosine}; AdaRem's "lam" can be scheduled too.
        trainable: Regular expression over "network.parameter"; the rest is frozen. "" trains everything.
        start_from: "best" starts from the best checkpoint so far, as the second phase of Adam -> SGD does.
    """

    epochs: int
    opt: OptimizerFactory | None = None
    schedule: Mapping[str, Schedule] | None = None
    trainable: str = ""
    start_from: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, int) or isinstance(self.epochs, bool) or not self.epochs >= 0:
            raise InputError(f"phases: epochs={self.epochs!r} must be a whole number, at least 0")
        try:
            re.compile(self.trainable)
        except (re.error, TypeError) as error:
            raise InputError(f"phases: trainable={self.trainable!r} is not a regular expression ({error})") from None


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        phase: Index of the phase.
        epoch: Epochs of this phase that are trained and evaluated.
        batch: Steps taken in the epoch after those; equal to the epoch's length while it waits for its evaluation.
        step: Steps taken in all: global batches, each of which a task may turn into several updates.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0


@dataclass
class Best:
    """The best score so far and the epoch that reached it (counted from 1, over all phases)."""

    score: float | None = None
    epoch: int = 0

    def beaten_by(self, score: float, *, monitor: str) -> bool:
        """Return whether a score is better: greater, or lower where the monitor starts with a minus. NaN never is."""
        if self.score is None:
            return not math.isnan(score)
        return score < self.score if monitor.startswith("-") else score > self.score
