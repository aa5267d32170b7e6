"""Claims in closed form: a formula, the optimizers' deviation from it, and wrong formulas that must fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """A version of the claim that is false: its deviation must exceed the claim's tolerance.

    Attributes:
        words: What is wrong in it.
        measure: Its deviation.
    """

    words: str
    measure: Callable[[], float]


@dataclass(frozen=True)
class Claim:
    """A statement of a paper that a computation can refute.

    Attributes:
        key: Short name for the command line, e.g. "lemma-2.1".
        paper: "AdamP", "AWS" or "AdaRem".
        name: Number in the paper, or what it says.
        formula: The statement in symbols.
        unit: What the deviation is.
        tolerance: Largest deviation at which it holds.
        measure: The deviation.
        controls: At least one.
    """

    key: str
    paper: str
    name: str
    formula: str
    unit: str
    tolerance: float
    measure: Callable[[], float]
    controls: tuple[Control, ...]


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        claim: The claim.
        deviation: Its deviation.
        controls: The deviation of each control.
    """

    claim: Claim
    deviation: float
    controls: tuple[float, ...]

    @property
    def caught(self) -> tuple[bool, ...]:
        """Whether each control fails, as it must; NaN is a failure."""
        return tuple(not value <= self.claim.tolerance for value in self.controls)

    @property
    def holds(self) -> bool:
        """Whether the claim passes and all of its controls fail; a claim without controls does not hold."""
        return self.deviation <= self.claim.tolerance and bool(self.caught) and all(self.caught)


def check(claim: Claim) -> Verdict:
    """Measure a claim and its controls."""
    return Verdict(claim, claim.measure(), tuple(control.measure() for control in claim.controls))
