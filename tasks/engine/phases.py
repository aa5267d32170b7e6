"""Training phases."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.base import InputError
from tasks.engine.optim import OptimizerFactory
from tasks.engine.schedules import Schedule


@dataclass
class Phase:
    """A part of training with one optimizer and one schedule; most runs have one.

    Attributes:
        epochs: Passes over the training set.
        opt: Makes the optimizer of each network from its parameter groups; None keeps those of the phase before.
        schedule: Parameter-group entry -> schedule, e.g. {"lr": cosine}; AdaRem's "lam" can be scheduled too.
        trainable: Regular expression over "network.parameter"; the rest is frozen. "" trains everything.
        start_from: "best" starts from the best checkpoint so far, as the second phase of Adam -> SGD.
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
