"""The league: one row per committed scorecard."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from evidence.scorecard.battery import Battery
from evidence.scorecard.card import TUNED, Card
from evidence.scorecard.profile import profiles
from evidence.scorecard.verdicts import AHEAD, BEHIND, FAILS, MISSING, SAME, UNCLEAR, compare, summary
from evidence.stats import NONE
from evidence.tuning import good

WORDS = {AHEAD: "ahead", BEHIND: "behind", SAME: "same", UNCLEAR: "unclear", FAILS: "fails", MISSING: "not run"}


def league(cards: Sequence[Card], baselines: Sequence[Card], battery: Battery, *, reference: str = "adamw") -> str:
    """Return the table as Markdown, best area under the performance profile first.

    Raises:
        ReadError: Cards of unequal budgets or rules.
    """
    for card in (*cards, *baselines):
        card.check_comparable(battery)
    found = profiles(cards, baselines, battery)
    against = [card for card in baselines if card.name == reference]
    heads = [
        "optimizer", *(workload.title for workload in battery.workloads.values()), f"against {reference}",
        "profile [95 %]", "trials within 1 %", "diverged", "step", "bytes per parameter",
    ]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for card in sorted(cards, key=lambda card: (-found[card.name].score if card.name in found else 0.0, card.name)):
        trials = {key: card.points(key) for key in battery.workloads if card.points(key)}
        near = [len(good(points, "-")) / len(points) for points in trials.values()]
        lost = sum(point.status == "diverged" for points in trials.values() for point in points)
        words = [verdict.word for verdict in compare(card, against, battery, TUNED)]
        counted = [f"{words.count(word)} {shown}" for word, shown in WORDS.items() if word in words]
        cost, profile = card.data["cost"], found.get(card.name)
        cells = [
            card.name, *(summary(card, key, TUNED) for key in battery.workloads), ", ".join(counted) or NONE,
            f"{profile.score:.2f} [{fmean(profile.low):.2f}, {fmean(profile.high):.2f}]" if profile else NONE,
            f"{100 * fmean(near):.0f} %" if near else NONE, f"{lost} of {sum(map(len, trials.values()))}",
            f"{cost['step']['ratio']:.2g} x" if cost else NONE, f"{cost['bytes_per_parameter']:.3g}" if cost else NONE,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    notes = [
        "# Scorecards",
        "",
        "Test loss at the rate and decay that each optimizer's trials chose on held-out pictures, mean ± deviation "
        f"over {len(battery.data['seeds'])} fresh seeds; {battery.data['budget']} trials each. Against {reference}: "
        "workloads ahead, behind, the same within 1 %, or that the seeds cannot tell, after Holm's correction "
        "within the row. Profile: area under the performance profile of steps to a target, 1 for what is always the "
        "fastest. Step: time as a multiple of torch's fused AdamW.",
        "",
    ]
    return "\n".join([*notes, *lines, ""])
