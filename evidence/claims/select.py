"""Which runs a claim's words name, among those that are recorded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.records.metrics import PUBLISHED
from evidence.records.store import Row
from evidence.runs.run import Run, number

BESIDE = ("experiment", "opt", "scale")  # words of a selection that are columns of the records


@dataclass(frozen=True)
class Records:
    """What claims are judged by: recorded runs with their rows, the published numbers, and where results lie."""

    runs: Sequence[tuple[Row, Run]]
    paper: Sequence[Row]
    folder: Path


def words_of(row: Row) -> dict[str, str]:
    """Return what was asked for beside optimizer, rate, decay, scale and seed, as the run's name says it."""
    _, _, rest = row["name"].partition(",seed=")
    return {key: value for word in rest.split(",")[1:] for key, _, value in [word.partition("=")]}


def _same(one: str, other: object) -> bool:
    a, b = number(one), number(other)
    return a == b if a is not None and b is not None else one == str(other)


def fits(row: Row, words: Mapping[str, Any]) -> bool:
    """Whether a run is the one that an experiment's command with these words, and no others, makes.

    Rate and decay that are not among the words are those of the recipe.
    """
    if not all(_same(row[key], words[key]) for key in BESIDE if key in words):
        return False
    given = {"lr": words.get("opt.lr"), "weight_decay": words.get("opt.weight_decay")}
    off_recipe = {"yes": "", "": ""}.get(row.get("recipe", ""), row.get("recipe", "")).split()
    for key, value in given.items():
        if (value is None and key in off_recipe) or (value is not None and not _same(row[key], value)):
            return False
    others = {key: value for key, value in words.items() if key not in (*BESIDE, "opt.lr", "opt.weight_decay")}
    found = words_of(row)
    return found.keys() == others.keys() and all(_same(found[key], value) for key, value in others.items())


def select(records: Records, words: Mapping[str, Any]) -> list[Run]:
    """Return the runs that words name, those of the latest code where one seed has several."""
    chosen: dict[str, tuple[Row, Run]] = {}
    for row, run in sorted(records.runs, key=lambda pair: (pair[0]["date"], pair[0]["name"])):
        if fits(row, words):
            chosen[row["seed"]] = row, run
    return [run for _, run in chosen.values()]


def value_of(run: Run, names: Sequence[str]) -> float | None:
    """Return the first of some scores or measures that a run has."""
    for name in names:
        value = PUBLISHED[name](run) if name in PUBLISHED else growth(run) if name == "growth" else run.scores.get(name)
        if value is not None and math.isfinite(value):
            return value
    return None


def growth(run: Run) -> float | None:
    """Return n_last^2 - n_first^2 of the mean filter norm."""
    return run.growth


def by_seed(runs: Sequence[Run], names: Sequence[str]) -> dict[str, float]:
    """Return seed -> score of the runs that finished and have it."""
    found = {str(run.seed): value_of(run, names) for run in runs if run.finished}
    return {seed: value for seed, value in found.items() if value is not None}


def sides(records: Records, rule: Mapping[str, Any], scale: str, names: Sequence[str]) -> list[list[Run]]:
    """Return the runs of the rule's `of`, and of its `to` where it has one, at a scale."""
    more = rule.get(scale) or {}
    found = []
    for side in ("of", "to"):
        if side not in rule:
            continue
        words = {"scale": scale, **rule[side], **{k: v for k, v in more.items() if k not in ("of", "to")}}
        words |= more.get(side) or {}
        grid = str(rule.get("best_over", ""))
        runs = select(records, words) if not grid else _best(records, words, grid, names, rule)
        found.append(runs)
    return found


def _best(
    records: Records, words: Mapping[str, Any], key: str, names: Sequence[str], rule: Mapping[str, Any]
) -> list[Run]:
    """Return the runs of the best mean over all recorded values of one key, as the paper's search would."""
    column = key.rpartition(".")[2]
    values = {row[column] for row, _ in records.runs if row["experiment"] == words["experiment"]}
    sign = -1 if rule["expect"] == "lower" else 1  # the side that is asked about says what is better
    found = [runs for value in sorted(values) if by_seed(runs := select(records, {**words, key: value}), names)]
    return max(found, key=lambda runs: sign * statistics.fmean(by_seed(runs, names).values()), default=[])
