"""The page of a scorecard: verdicts, profile, steps to target, sensitivity, cost and mechanism, as text and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evidence.scorecard.battery import Battery
from evidence.scorecard.card import TUNED, UNDECAYED, Card
from evidence.scorecard.profile import profiles, steps_to_target, target
from evidence.scorecard.verdicts import AHEAD, BEHIND, CORRECTION, MISSING, SAME, UNCLEAR, Verdict, compare, summary
from evidence.site.inline import inline
from evidence.site.pages import environment
from evidence.stats import NONE, times_text
from evidence.tuning import edges, good

CHOICES = {TUNED: "Tuned rate and decay", UNDECAYED: "Tuned rate, no weight decay"}
BADGES = {AHEAD: "finished", BEHIND: "failed", SAME: "", UNCLEAR: "", MISSING: "interrupted"}


def compared(card: Card, others: Sequence[Card], battery: Battery) -> list[dict[str, Any]]:
    """Return, for each choice of rate and decay, its title, a row per workload and what was corrected for."""
    tables = []
    for choice, title in CHOICES.items():
        verdicts = compare(card, others, battery, choice)
        tested = sum(verdict.p is not None for verdict in verdicts)
        tables.append(
            {
                "title": title, "rows": verdict_rows(verdicts, card, battery, choice),
                "correction": CORRECTION.format(count=tested) if tested else "",
            }
        )  # fmt: skip
    return tables


def verdict_rows(verdicts: Sequence[Verdict], card: Card, battery: Battery, choice: str) -> list[dict[str, Any]]:
    """Return a row per workload: its scores, and the verdict against each baseline."""
    rows = []
    for key, workload in battery.workloads.items():
        own = [verdict for verdict in verdicts if verdict.workload == key]
        rows.append(
            {
                "workload": workload.title, "invariant": workload.invariant, "score": summary(card, key, choice),
                "also": summary(card, key, choice, "also", ".2f"), "chosen": _chosen(card, key, choice),
                "verdicts": own,
            }
        )  # fmt: skip
    return rows


def _chosen(card: Card, key: str, choice: str) -> str:
    point = card.chosen(key, choice)
    if point is None:
        return NONE
    text = f"lr {point.lr:g}" + (f", decay {point.weight_decay:g}" if point.weight_decay else ", no decay")
    ends = [end for end in edges(point) if end.endswith("lr") or point.weight_decay]
    return f"{text}; at the {' and '.join(ends)} searched" if ends else text


def detail_rows(card: Card, baselines: Sequence[Card], battery: Battery) -> list[dict[str, str]]:
    """Return a row per workload: its target, the steps to it, and how much the choice of rate and decay matters."""
    rows = []
    for key, workload in battery.workloads.items():
        goal, points = target(baselines, battery, key), card.points(key)
        diverged = sum(point.status == "diverged" for point in points)
        steps = list(steps_to_target(card, key, goal).values()) if goal is not None else []
        rows.append(
            {
                "workload": workload.title, "target": NONE if goal is None else f"{goal:.4f}",
                "steps": times_text(steps) if steps else NONE,
                "theirs": ", ".join(
                    f"{each.name} {times_text(list(steps_to_target(each, key, goal).values()))}" for each in baselines
                ) if goal is not None else NONE,
                "near": f"{100 * len(good(points, '-')) / len(points):.0f} %" if points else NONE,
                "diverged": f"{diverged} of {len(points)}" if points else NONE,
            }
        )  # fmt: skip
    return rows


def cost_lines(card: Card) -> list[str]:
    """Return the cost in words; a whole training step is that of the small convolutional network."""
    cost = card.data["cost"]
    if not cost:
        return []
    lines = [
        f"{title}: {cost[key]['ratio']:.3g} times ({cost[key]['low']:.3g} to {cost[key]['high']:.3g}) that of "
        f"{cost['baseline']} ({cost[key]['baseline_ms']:.3g} ms; {cost['clock']}, in turns)"
        for key, title in (("step", "Optimizer step"), ("training_step", "Whole training step"))
    ]
    own, theirs = cost["bytes_per_parameter"], cost["baseline_bytes_per_parameter"]
    return [*lines, f"State: {own:.3g} bytes per parameter, {own / theirs:.2f} times AdamW's"]


def budget_line(card: Card, battery: Battery) -> str:
    """Return the budget in words."""
    data, space = battery.data, card.data["optimizer"]["space"]
    searched = ", ".join(f"{key} {low:g} to {high:g}" for key, (low, high) in space.items())
    return (
        f"Budget, the same for all: {data['budget']} trials per workload at the same quasi-random points of rate x "
        f"decay, a third without decay, chosen by the loss on {100 * data['validation']:g} % of the training pictures; "
        f"the choice is scored on the test pictures with {len(data['seeds'])} fresh seeds. Searched here as "
        f"{card.data['optimizer']['family']}: {searched}."
    )


def text(card: Card, baselines: Sequence[Card], battery: Battery) -> str:
    """Return the page as Markdown, from the cards alone."""
    own, made = card.data["optimizer"], card.data["provenance"]
    lines = [f"# Scorecard: {card.name}", "", f"`{own['class']}` of {own['package']}. {budget_line(card, battery)}", ""]
    others = [each for each in baselines if each.name != card.name]
    for table in compared(card, others, battery):
        lines += [f"## {table['title']}", "", "| workload | loss | accuracy | chosen | verdicts |", "|" + " --- |" * 5]
        for row in table["rows"]:
            said = "; ".join(verdict.sentence() for verdict in row["verdicts"]) or NONE
            lines.append(f"| {row['workload']} | {row['score']} | {row['also']} | {row['chosen']} | {said} |")
        lines += ["", f"{table['correction']}." if table["correction"] else "No comparison yet.", ""]
    lines += ["## Steps to the target, sensitivity, failures", ""]
    lines += ["| workload | target | steps | baselines | trials within 1 % | diverged |", "|" + " --- |" * 6]
    lines += [f"| {' | '.join(row.values())} |" for row in detail_rows(card, baselines, battery)]
    lines += ["", *[f"- {line}" for line in cost_lines(card)]]
    found = profiles([card, *others], baselines, battery)
    if found:
        scores = ", ".join(f"{name} {profile.score:.2f}" for name, profile in found.items())
        lines.append(f"- Area under the performance profile, 1 where always the fastest: {scores}")
    dirty = " with changes" if made.get("dirty") else ""
    lines += ["", f"`{made['command']}`, commit {made['commit'][:10]}{dirty}, {made['machine']}, "
              f"torch {made['versions']['torch']}, {made['cpu_seconds']:.0f} CPU seconds.", ""]  # fmt: skip
    return "\n".join(lines)


def write_page(card: Card, baselines: Sequence[Card], battery: Battery, folder: Path) -> Path:
    """Draw the figures and write the page, one file that loads nothing; its pictures also lie beside it as PNG."""
    from evidence.scorecard.figures import draw

    others = [each for each in baselines if each.name != card.name]
    ended = sum(card.has_ended(key) for key in battery.workloads)
    values: Mapping[str, Any] = {
        "title": f"Scorecard: {card.name}", "card": card.data, "tables": compared(card, others, battery),
        "budget": budget_line(card, battery),
        "details": detail_rows(card, baselines, battery), "costs": cost_lines(card), "badges": BADGES,
        "progress": f"{ended} of {len(battery.workloads)} workloads have run" * (ended < len(battery.workloads)),
        "figures": [inline(figure) for figure in draw(card, others, battery, folder / card.name)],
    }  # fmt: skip
    path = folder / f"{card.name}.html"
    path.write_text(environment().get_template("scorecard.html.j2").render(**values), encoding="utf-8")
    return path
