"""Verdicts in words: one optimizer against another on each workload, over seeds, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evidence.contrasts import holm
from evidence.scorecard.battery import Battery
from evidence.scorecard.card import Card
from evidence.stats import NONE, Difference, mean_and_deviation, mean_text, paired

LEVEL = 0.05
AHEAD, BEHIND, SAME, UNCLEAR, FAILS, MISSING = "ahead", "behind", "the same", "cannot tell", "fails", "not run"
CORRECTION = "Holm's correction over all comparisons of this table, {count} of them, at the level 0.05"


@dataclass(frozen=True)
class Verdict:
    """One comparison.

    Attributes:
        workload: Key.
        baseline: The other side's name.
        choice: Of which trials: all, or those without decay.
        word: Ahead, behind, the same, cannot tell, fails or not run.
        ours: Seed -> score.
        theirs: The same of the other side.
        difference: Ours - theirs, paired by seed; lower is better.
        p: Of the paired t test, corrected; None where there is no interval.
        reason: Of "fails" and "not run".
    """

    workload: str
    baseline: str
    choice: str
    word: str
    ours: Mapping[int, float]
    theirs: Mapping[int, float]
    difference: Difference | None = None
    p: float | None = None
    reason: str = ""

    def sentence(self, digits: int = 4) -> str:
        """Return the verdict in words with its interval."""
        if self.difference is None or self.word in (FAILS, MISSING):
            return f"{self.word} of {self.baseline}: {self.reason}" if self.word == MISSING else f"fails: {self.reason}"
        relative = 100 * self.difference.mean / mean_and_deviation(list(self.theirs.values()))[0]
        joined = {AHEAD: "ahead of", BEHIND: "behind", SAME: "the same as", UNCLEAR: "cannot tell from"}[self.word]
        p = "" if self.p is None else f", p {self.p:.2g}"
        return f"{joined} {self.baseline}: {self.difference.text(digits)}, {relative:+.1f} %{p}"


def compare(card: Card, baselines: Sequence[Card], battery: Battery, choice: str) -> list[Verdict]:
    """Return the verdicts on all workloads against all baselines, corrected for their number.

    A difference is real where the corrected p is below 0.05. Else the two are the same where the 95 % interval lies
    within the battery's tolerance, and the seeds cannot tell where it does not.

    Raises:
        ReadError: Cards of unequal budgets or rules.
    """
    for each in (card, *baselines):
        each.check_comparable(battery)
    raw = [
        _compared(card, baseline, workload, choice)
        for workload in battery.workloads
        for baseline in baselines
        if baseline.name != card.name
    ]
    tested = [k for k, verdict in enumerate(raw) if verdict.p is not None]
    for k, p in zip(tested, holm([raw[k].p or 0.0 for k in tested]), strict=True):
        raw[k] = replace(raw[k], p=p)
    return [_worded(verdict, float(battery.data["tolerance"])) for verdict in raw]


def _compared(card: Card, baseline: Card, workload: str, choice: str) -> Verdict:
    ours, theirs = card.scores(workload, choice), baseline.scores(workload, choice)
    verdict = Verdict(workload, baseline.name, choice, "", ours, theirs)
    for each in (card, baseline):
        if reason := each.refusal(workload):
            return replace(verdict, word=MISSING, reason=f"{each.name} cannot run: {reason}")
    trials = card.points(workload)
    if card.has_failed(workload):
        return replace(verdict, word=FAILS, reason=f"all {len(trials)} trials diverged")
    if not card.is_complete(workload, choice) or not baseline.is_complete(workload, choice):
        return replace(verdict, word=MISSING, reason="not all seeds have run")
    if failed := card.failed(workload, choice):
        return replace(verdict, word=FAILS, reason=f"{failed} of {len(card.runs(workload, choice))} seeds diverged")
    if baseline.failed(workload, choice):
        return replace(verdict, word=MISSING, reason=f"{baseline.name} diverged")
    difference = paired(ours, theirs)
    return replace(verdict, difference=difference, p=None if difference is None else difference.p_value())


def _worded(verdict: Verdict, tolerance: float) -> Verdict:
    difference = verdict.difference
    if verdict.word or difference is None:
        return verdict
    margin = tolerance * abs(mean_and_deviation(list(verdict.theirs.values()))[0])
    if difference.low is None or difference.high is None:  # all seeds differ by the same amount
        return replace(verdict, word=SAME if abs(difference.mean) <= margin else UNCLEAR)
    if verdict.p is not None and verdict.p < LEVEL:
        return replace(verdict, word=AHEAD if difference.mean < 0 else BEHIND)
    inside = -margin < difference.low and difference.high < margin
    return replace(verdict, word=SAME if inside else UNCLEAR)


def summary(card: Card, workload: str, choice: str, score: str = "score", form: str = ".4f") -> str:
    """Return mean ± deviation over the seeds, and how many diverged."""
    text = mean_text(list(card.scores(workload, choice, score).values()), form)
    failed = card.failed(workload, choice)
    return f"{text}, {failed} diverged" if failed else text if text != NONE else card.refusal(workload) or NONE
