"""Views of runs for the pages, as plain text: the templates only place it."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from evidence.figures.style import colour
from evidence.records.settings import Group, short
from evidence.runs.run import CUT_SHORT, Run, number, primary_score
from evidence.stats import NONE, mean_and_deviation, mean_text, paired, select_best
from tasks.engine.record_schema import segment_changes


def plain_number(value: Any, *, digits: int = 4) -> str:
    """Return a number with so many significant digits, a dash where there is none."""
    parsed = number(value)
    if parsed is None:
        return NONE
    if parsed.is_integer() and abs(parsed) < 1e6:
        return str(int(parsed))
    return f"{parsed:.2f}" if 10 <= abs(parsed) < 1000 else f"{parsed:.{digits}g}"


def duration(seconds: Any) -> str:
    """Return seconds as "48 s", "12 min 5 s" or "3 h 20 min"."""
    value = number(seconds)
    if value is None or not math.isfinite(value):
        return NONE
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{value:.1f} s"


def mebibytes(value: Any) -> str:
    """Return MiB as text, from 1024 on in GiB."""
    mib = number(value)
    if mib is None or not math.isfinite(mib):
        return NONE
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def plural(count: int, noun: str) -> str:
    """Return "1 run" or "2 runs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def repeat(run: Run) -> str:
    """Return the command that runs it again."""
    words = run.record.get("argv")
    if isinstance(words, list) and words:
        return "python scripts/train.py " + shlex.join(str(word) for word in words)
    command = run.text("command")
    return f"python {command}" if command.startswith("scripts/") else command or NONE


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class RunView:
    """Everything the page of one run shows."""

    name: str
    experiment: str
    data: str
    scale: str
    status: str
    colour: str
    summary: str
    notes: list[tuple[str, str]]
    tiles: list[tuple[str, str, str]]
    scores: list[tuple[str, str]]
    provenance: list[tuple[str, str]]
    config: str

    @classmethod
    def of(cls, run: Run) -> RunView:
        """Gather the view of a run."""
        rates = f"lr {short(run.lr)}, weight decay {short(run.weight_decay)}"
        return cls(
            name=run.name,
            experiment=run.experiment,
            data=run.data,
            scale=run.scale,
            status=run.outcome,
            colour=colour(run.opt_name),
            summary=f"{run.opt_name}, {rates}, seed {short(run.seed)}",
            notes=_notes(run),
            tiles=_tiles(run),
            scores=[(key, plain_number(value)) for key, value in run.scores.items()],
            provenance=_provenance(run),
            config=_pretty(run.section("config")),
        )


def _notes(run: Run) -> list[tuple[str, str]]:
    notes = []
    if run.text("error"):
        notes.append((f"This run failed: {run.text('error')}", "bad"))
    if run.status in ("running", "interrupted"):
        notes.append((f"This run is {run.status}: numbers are those of its last whole line of metrics.", ""))
    if run.outcome == CUT_SHORT:
        done = f"{plain_number(run.epochs_done)} of {plain_number(run.epochs)} epochs"
        notes.append((f"This run was cut short after {done}: its scores stand in no table.", ""))
    counts = run.section("notices")
    if counts:
        notes.append(("Noticed: " + ", ".join(f"{name} {count}" for name, count in counts.items()), ""))
    for before, after in pairwise(run.segments):
        if changes := segment_changes(before, after):
            notes.append((f"From step {after.get('from_step')} on it was trained with {'; '.join(changes)}.", ""))
    if run.dirty:
        notes.append(("The working tree had changes that are not in the commit below.", ""))
    return notes


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """Return (name, value, detail) of the few numbers that matter most."""
    tiles = []
    score = primary_score([run])
    if score is not None:
        last = run.first_and_last(score)[1] if run.first_and_last(score)[1] is not None else run.scores.get(score)
        best = run.section("best")
        detail = f"best {plain_number(best.get('score'))} at epoch {plain_number(best.get('epoch'))}" if best else ""
        tiles.append((f"{score}, last", plain_number(last), detail))
    first, last = run.first_and_last("norm/mean")
    if last is not None:
        tiles.append(
            (
                "mean filter norm",
                f"{plain_number(first, digits=3)} → {plain_number(last, digits=3)}",
                "first → last",
            )
        )
        tiles.append(("norm growth", plain_number(run.growth, digits=3), "n² last − n² first"))
    if (loss := run.first_and_last("train/loss")[1]) is not None:
        tiles.append(("training loss, last", plain_number(loss), ""))
    tiles.append(("epochs done", plain_number(run.epochs_done), f"of {plain_number(run.epochs)}"))
    rate = run.throughput()
    speed = "" if rate is None else f"{plain_number(rate)} examples/s"
    tiles.append(("wall time", duration(run.record.get("wall_time_s")), speed))
    tiles.append(("peak memory", mebibytes(run.record.get("peak_memory_mib")), ""))
    return tiles


def _provenance(run: Run) -> list[tuple[str, str]]:
    git, hardware, model = run.section("git"), run.section("hardware"), run.section("model")
    state = "with uncommitted changes" if git.get("dirty") else "clean"
    if git.get("dirty") is None:
        state = "state of the tree unknown"
    listed = ("name", "train_examples", "val_examples", "classes", "image_size", "licence")
    facts = run.section("data")
    facts = {key: facts[key] for key in [*listed, *sorted(facts.keys() - set(listed))] if key in facts}
    rows = [
        ("command", run.text("command", NONE)),
        ("to repeat it", repeat(run)),
        ("commit", f"{git.get('commit') or 'unknown'} ({state})"),
        ("configuration hash", run.text("config_hash", NONE)),
        ("machine", run.machine),
        ("processes, cores", f"{hardware.get('processes', NONE)}, {hardware.get('cores', NONE)}"),
        ("versions", ", ".join(f"{name} {value}" for name, value in run.section("versions").items()) or NONE),
        ("data set", _scalars(facts)),
        ("model", _scalars(model)),
        ("seed", short(run.seed)),
        ("started, ended (UTC)", f"{run.text('started', NONE)}, {run.text('ended', NONE)}"),
        ("wall time", duration(run.record.get("wall_time_s"))),
        ("peak memory", mebibytes(run.record.get("peak_memory_mib"))),
        (
            "resumed from steps",
            ", ".join(str(step) for step in _listed(run.record.get("resumed_from"))) or "never resumed",
        ),
        ("last checkpoint", run.text("checkpoint", NONE)),
    ]
    return rows


def _scalars(facts: dict[str, Any]) -> str:
    """Return "classes 10, image size 64" of the entries that are one number or text."""
    simple = {key: value for key, value in facts.items() if not isinstance(value, dict | list)}
    return ", ".join(f"{key.replace('_', ' ')} {short_number(value)}" for key, value in simple.items()) or NONE


def short_number(value: Any) -> str:
    """Return a fraction with four digits, anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def count_outcomes(runs: Sequence[Run]) -> str:
    """Return "12 runs: 10 finished, 2 failed"."""
    counts = Counter(run.outcome for run in runs)
    return f"{plural(len(runs), 'run')}: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


SEEDS = 20  # of a setting that are listed with what became of them
SETTINGS = 300  # rows of a table of settings: more nobody reads, and the runs are below it


def section_view(title: str, groups: Sequence[Group[Run]], figures: Sequence[Any]) -> dict[str, Any]:
    """Return what the page shows of one data set and scale."""
    runs = [run for group in groups for run in group.runs]
    score = primary_score(runs)
    by_setting = {str(k): scores for k, group in enumerate(groups) if (scores := _scores(group, score))}
    lower = any(run.lower_is_better for run in runs)
    best, is_significant = select_best(by_setting, lower_is_better=lower) if by_setting else ("", False)
    rows = []
    for place, group in enumerate(groups[:SETTINGS]):
        key = str(place)
        diff = paired(by_setting[key], by_setting[best]) if key in by_setting and key != best else None
        to_best = "best mean" if key == best else NONE if diff is None else diff.text()
        rows.append({**_group_row(group, score, to_best), "best": is_significant and key == best})
    return {
        "title": title,
        "score_name": "score" if score is None else f"{score}, last",
        "groups": rows,
        "left_out": max(0, len(groups) - SETTINGS),
        "figures": figures,
    }


def _scores(group: Group[Run], score: str | None) -> dict[str, float]:
    """Return seed -> score of the complete runs, none where a seed failed: such a setting is never the best."""
    if score is None or any(run.outcome == "failed" for run in group.runs):
        return {}
    return {str(run.seed): run.scores[score] for run in group.complete if score in run.scores}


def _decimals(values: Sequence[float]) -> str:
    """Return the format of a mean: equally many decimals for it and its deviation."""
    mean = abs(mean_and_deviation(values)[0]) if values else 0.0
    return ".2f" if 10 <= mean < 1e4 else ".3f" if 0.01 <= mean < 10 or mean == 0 else ".2e"


def mean_cell(values: Sequence[float]) -> str:
    """Return "mean ± deviation" with the decimals that suit the mean."""
    return mean_text(values, _decimals(values))


def _group_row(group: Group[Run], score: str | None, to_best: str) -> dict[str, Any]:
    runs = group.complete
    norms = [run.first_and_last("norm/mean") for run in runs]
    growths = [growth for run in runs if (growth := run.growth) is not None]
    steps = [_last_epoch(run, "effective_step/mean") for run in runs]
    walls = [wall for run in runs if (wall := number(run.record.get("wall_time_s"))) is not None]
    cells = [
        to_best,
        mean_cell([first for first, _ in norms if first is not None]),
        mean_cell([last for _, last in norms if last is not None]),
        mean_cell(growths),
        mean_cell([step for step in steps if step is not None]),
        duration(mean_and_deviation(walls)[0]) if walls else NONE,
    ]
    others = [run for run in group.runs if run.outcome != "finished"]
    return {
        "label": group.label,
        "colour": colour(group.first.opt_name),
        "seeds": ", ".join(short(run.seed) for run in runs),
        "others": [(short(run.seed), run.outcome) for run in others[:SEEDS]],
        "more": f"({len(runs)} of {len(group.runs)})" if others else "",
        "score": mean_cell(list(_scores(group, score).values())),
        "cells": cells,
    }


def _last_epoch(run: Run, key: str) -> float | None:
    """Return a metric's mean over the last epoch."""
    _, epochs, values = run.series(key)
    last = [value for epoch, value in zip(epochs, values, strict=True) if epoch > epochs[-1] - 1]
    return sum(last) / len(last) if last else None
