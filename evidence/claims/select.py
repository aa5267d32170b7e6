"""Selection of the recorded runs that a claim names by the words of their command."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.claims.ledger import Rule
from evidence.metrics import METRICS
from evidence.paper import PaperNumber, read_paper
from evidence.records.row import ResultRow
from evidence.records.store import read_rows
from evidence.runs.run import number


@dataclass(frozen=True)
class Records:
    """What claims are judged by: recorded runs, the published numbers, and the folder of results."""

    rows: Sequence[ResultRow]
    paper: Sequence[PaperNumber]
    folder: Path


def load(records: Path, paper: Path) -> Records:
    """Return all that claims are judged by."""
    return Records(read_rows(records), read_paper(paper), records.parent)


def _same(one: object, other: object) -> bool:
    a, b = number(one), number(other)
    return a == b if a is not None and b is not None else str(one) == str(other)


def matches(row: ResultRow, words: Mapping[str, Any]) -> bool:
    """Whether a run is the one that an experiment's command with these words, and no others, makes.

    Rate and decay that are not among the words are those of the recipe.
    """
    facts = {"experiment": row.experiment, "opt": row.opt_name, "scale": row.scale}
    options = {"opt.lr": row.lr, "opt.weight_decay": row.weight_decay}
    if not all(_same(value, words[key]) for key, value in (facts | options).items() if key in words):
        return False
    if any(f"opt.{key}" in options and f"opt.{key}" not in words for key in row.off_recipe or ()):
        return False
    others = {key: value for key, value in words.items() if key not in facts | options}
    return row.words.keys() == others.keys() and all(_same(row.words[key], others[key]) for key in others)


def select(records: Records, words: Mapping[str, Any]) -> list[ResultRow]:
    """Return the runs that words name, those of the latest code where one seed has several."""
    latest = {
        row.seed: row for row in sorted(records.rows, key=lambda row: (row.date, row.name)) if matches(row, words)
    }
    return list(latest.values())


def value_of(row: ResultRow, name: str) -> float | None:
    """Return a run's metric or score, or of a curve such as lr/std/conv1.weight the last value."""
    value = row.value(name)
    if value is None:
        value = next((v for v in reversed(row.series(name)[2]) if math.isfinite(v)), None)
    return value


def score_key(row: ResultRow, scores: Sequence[str]) -> str:
    """Return the key of the first of these scores that a run has, as it stands in its record; "" for none."""
    name = next((name for name in scores if value_of(row, name) is not None), "")
    keys = METRICS[name].scores if name in METRICS else (name,)
    return next((key for key in keys if key in row.scores), "")


def by_seed(rows: Sequence[ResultRow], scores: Sequence[str]) -> dict[int | None, float]:
    """Return seed -> the first of these scores that a run has, of the runs that finished and have one."""
    values = {}
    for row in rows:
        value = next((v for name in scores if (v := value_of(row, name)) is not None), None) if row.finished else None
        if value is not None:
            values[row.seed] = value
    return values


def select_pair(records: Records, rule: Rule, scale: str, scores: Sequence[str]) -> list[list[ResultRow]]:
    """Return the runs of the rule's `of`, and of its `to` where it has one, at a scale."""
    at_scale: Mapping[str, Any] = (rule.get("full") if scale == "full" else rule.get("mini")) or {}
    shared = {key: value for key, value in at_scale.items() if key not in ("of", "to")}
    pair = []
    for words, more in ((rule.get("of"), at_scale.get("of")), (rule.get("to"), at_scale.get("to"))):
        if words is not None:
            wanted = {"scale": scale, **words, **shared, **(more or {})}
            pair.append(_best(records, wanted, rule, scores) if "best_over" in rule else select(records, wanted))
    return pair


def _best(records: Records, words: Mapping[str, Any], rule: Rule, scores: Sequence[str]) -> list[ResultRow]:
    """Return the runs of the best mean over all recorded values of one key, as the paper's search would."""
    key = rule["best_over"]
    values = {getattr(row, key.removeprefix("opt.")) for row in records.rows if row.experiment == words["experiment"]}
    sign = -1 if rule["expect"] == "lower" else 1  # the side that is asked about says what is better
    grid = (select(records, {**words, key: value}) for value in sorted(values, key=str))
    scored = [rows for rows in grid if by_seed(rows, scores)]
    return max(scored, key=lambda rows: sign * statistics.fmean(by_seed(rows, scores).values()), default=[])
