"""The row type of all tables, figures and claims: one recorded run with its setting, metrics, curves and provenance.

A row is the same whether it is made from a run folder or read from the committed records: numbers keep ten digits and
curves are thinned, so what is made from a run can be made from its record again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from evidence import metrics
from evidence.records.metrics import MEASURES
from evidence.runs.run import CUT_SHORT, Run, is_cut_short, number, planned_epochs
from tasks.engine.neutral_keys import NAMED, is_neutral_override

DRAWN = (
    "train/loss", "train/top1", "norm/mean", "effective_step/mean", "oscillation/mean", "oscillation/median",
    "oscillation/ratio", "projected/share",
)  # fmt: skip
PROBES = ("train/", "lr", "norm/", "effective_step/", "cosine/", "margin/", "projected/", "variant/", "oscillation/")
POINTS, SCORE_POINTS, SCORES = 48, 200, 12  # of a curve; of a score's curve; scores a run keeps a curve of
PLACES = re.compile(
    r"\s+(?:'(?:paths\.|data_root)[^']*'|(?:paths\.\w+|data_root)=\S*)"
)  # words that name folders of one machine
COUNTED = ("val_examples", "test_examples")  # entries of a record's `data`
NOT_CONFIGURED = ("optimizer", "scale", "data set")  # what `Run.setting` adds to the configuration
Curve = tuple[Sequence[int], Sequence[float], Sequence[float | None]]  # steps, epochs, values


def _fact(column: str = "", default: Any = None) -> Any:
    """A fixed column of records.csv, named like the field unless `column` is given."""
    return field(default=default, metadata={"column": column})


@dataclass(frozen=True)
class ResultRow:
    """One run that finished or diverged. The first fields are the fixed columns of records.csv, in their order."""

    experiment: str = _fact(default="")
    name: str = _fact(default="")
    opt_name: str = _fact("opt", "")
    lr: float | None = _fact()
    weight_decay: float | None = _fact()
    seed: int | None = _fact()
    scale: str = _fact(default="")
    data: str = _fact(default="")
    epochs_done: float | None = _fact("epochs")
    setting_key: str = _fact("setting", "")  # names what decides the outcome but the seed: repetitions share it
    norm_first: float | None = _fact()  # mean filter norm before the first step
    norm_last: float | None = _fact()
    commit_hash: str = _fact("commit", "")
    dirty: bool | None = _fact()  # whether the working tree had changes; None where unknown
    machine: str = _fact(default="")
    wall_time_s: float | None = _fact()
    date: str = _fact(default="")
    best: float | None = _fact()
    best_epoch: float | None = _fact()
    monitor: str = _fact(default="")
    better: str = _fact(default="")  # "higher" or "lower", of the monitored score
    status: str = _fact(default="finished")
    steps: float | None = _fact()
    off_recipe: tuple[str, ...] | None = _fact("recipe")  # options that are not the recipe's; None without a recipe
    torch: str = _fact(default="")
    config_hash: str = _fact(default="")
    command: str = _fact(default="")
    scores: Mapping[str, float] = field(default_factory=dict)  # last scores, e.g. val/top1
    curves: Mapping[str, Curve] = field(default_factory=dict, repr=False)  # metric -> thinned curve
    measures: Mapping[str, float] = field(default_factory=dict)  # over the full curves
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # the setting, flat
    overrides: Mapping[str, str] | None = None  # words that no column states; None in older records
    diverged_at: int | None = None  # the step whose loss was not finite
    examples: Mapping[str, int] = field(default_factory=dict)  # split -> examples; empty in older records
    platform: Mapping[str, Any] = field(default_factory=dict)  # what decides rounding; empty in older records

    @property
    def key(self) -> tuple[str, str]:
        """The run's identity: experiment and name."""
        return self.experiment, self.name

    @property
    def finished(self) -> bool:
        """Whether the run reached its end; else it diverged."""
        return self.status != "diverged"

    @property
    def outcome(self) -> str:
        """One of finished, failed and cut short, as `Run.outcome`."""
        if not self.finished:
            return "failed"
        return CUT_SHORT if is_cut_short(self.epochs_done, planned_epochs(self.config)) else "finished"

    @property
    def commit(self) -> str:
        """Short commit, with a `+` where the working tree had changes."""
        return f"{self.commit_hash}+" if self.dirty else self.commit_hash

    @property
    def setting(self) -> dict[str, Any]:
        """What decides the outcome apart from the seed, flat, as `Run.setting`."""
        return {"optimizer": self.opt_name, "scale": self.scale, "data set": self.data, **self.config}

    @property
    def words(self) -> Mapping[str, str]:
        """The overrides, of records that did not keep them as the run's name has them."""
        return overrides_from_name(self.name) if self.overrides is None else self.overrides

    def series(self, key: str) -> tuple[list[int], list[float], list[float]]:
        """Return (steps, epochs, values) of a thinned curve; null is NaN."""
        steps, epochs, values = self.curves.get(key, ((), (), ()))
        return list(steps), list(epochs), [math.nan if value is None else value for value in values]

    def value(self, name: str) -> float | None:
        """Return a metric of `evidence.metrics` or a score, None where the run has none or it is not finite."""
        if name in COMPUTED:
            value = COMPUTED[name](self)
        elif name in self.measures:
            value = self.measures[name]
        else:
            keys = metrics.METRICS[name].scores if name in metrics.METRICS else (name,)
            value = next((self.scores[key] for key in keys if key in self.scores), None)
        return value if value is not None and math.isfinite(value) else None


def norm_at_first_epoch(row: ResultRow) -> float | None:
    """Return the mean filter norm after the first epoch."""
    _, epochs, values = row.series("norm/mean")
    return next((value for epoch, value in zip(epochs, values, strict=True) if epoch >= 1), None)


def norm_growth(row: ResultRow) -> float | None:
    """Return n_last^2 - n_0^2 of the mean filter norm n."""
    return None if row.norm_first is None or row.norm_last is None else row.norm_last**2 - row.norm_first**2


COMPUTED: dict[str, Callable[[ResultRow], float | None]] = {
    "weight_norm_first_epoch": norm_at_first_epoch,
    "weight_norm_last_epoch": lambda row: row.norm_last,
    "growth": norm_growth,
}


def overrides_from_name(name: str) -> dict[str, str]:
    """Return a run's overrides as its name has them, for records written before overrides were kept."""
    _, _, rest = name.partition(",seed=")
    return {key: value for word in rest.split(",")[1:] for key, _, value in [word.partition("=")]}


# ------------------------------------------------------------------------------------------------------ from a run


def off_recipe(run: Run) -> tuple[str, ...] | None:
    """Return which options differ from the experiment's recipe for the optimizer, None where there is no recipe."""
    recipes = run.section("config").get("recipe")
    recipe = recipes.get(run.opt_name) if isinstance(recipes, dict) else None
    if not isinstance(recipe, dict):
        return None
    return tuple(key for key, value in recipe.items() if key in run.opt and number(run.opt[key]) != number(value))


def thinned(steps: Sequence[int], epochs: Sequence[float], values: Sequence[float], *, points: int) -> Curve:
    """Return [steps, epochs, values] of about so many points; the first, the last and that of epoch 1 stay.

    Thinning twice is thinning once. Numbers keep ten digits, as in records.csv; NaN becomes None.
    """
    chosen = set(range(len(steps)))
    if len(steps) > points + 3:
        first_epoch = next((k for k, epoch in enumerate(epochs) if epoch >= 1), 0)
        chosen = {0, first_epoch, len(steps) - 1, *range(0, len(steps), math.ceil(len(steps) / points))}
    kept = sorted(chosen)
    rounded = [_ten_digits(values[k]) if math.isfinite(values[k]) else None for k in kept]
    return [steps[k] for k in kept], [_ten_digits(epochs[k]) for k in kept], rounded


def points_of(metric: str) -> int:
    """Return about how many points of a metric's curve are kept: more of a score, which says when a target is met."""
    return POINTS if metric.startswith(PROBES) else SCORE_POINTS


def kept_points(metric: str, curve: tuple[list[int], list[float], list[float]]) -> Curve:
    """Return a curve as the records keep it.

    Of effective rates and weights the first epoch is thinned apart from the rest: rates warm up there, which a run of a
    hundred epochs would show in one point.
    """
    if not metric.startswith(("lr/", "weight/")):
        return thinned(*curve, points=points_of(metric))
    count = sum(epoch <= 1 for epoch in curve[1])
    first = thinned(*(values[:count] for values in curve), points=POINTS)  # type: ignore[arg-type]
    rest = thinned(*(values[count:] for values in curve), points=POINTS)  # type: ignore[arg-type]
    return [*first[0], *rest[0]], [*first[1], *rest[1]], [*first[2], *rest[2]]


def result_row(run: Run, *, figures: Sequence[str] = ()) -> ResultRow:
    """Return the row of a run.

    Args:
        run: The run, or one made from the records.
        figures: Metrics whose curves are kept beside those of every run.
    """
    best = run.section("best")
    first, last = run.first_and_last("norm/mean")
    setting = run.setting
    measured = {name: measure(run) for name, measure in MEASURES.items()}
    argv = [str(word).lstrip("+").partition("=") for word in run.record.get("argv") or ()]
    numbers: dict[str, Any] = {
        "lr": run.lr, "weight_decay": run.weight_decay, "epochs_done": run.epochs_done, "norm_first": first,
        "norm_last": last, "wall_time_s": number(run.record.get("wall_time_s")), "best": number(best.get("score")),
        "best_epoch": number(best.get("epoch")), "steps": number(run.record.get("steps")),
    }  # fmt: skip
    return ResultRow(
        experiment=run.experiment, name=run.name, opt_name=run.opt_name, seed=run.seed, scale=run.scale, data=run.data,
        setting_key=run.setting_key, commit_hash=run.commit_hash,
        dirty=run.dirty, machine=run.machine,
        date=run.text("ended")[:10], monitor=run.monitor, better="lower" if run.lower_is_better else "higher",
        status="finished" if run.finished else "diverged", off_recipe=off_recipe(run),
        torch=run.torch, config_hash=run.text("config_hash"),
        command=PLACES.sub("", run.text("command")),
        scores={key: _ten_digits(value) for key, value in run.scores.items()},
        curves=_curves(run, figures),
        measures={k: _ten_digits(v) for k, v in measured.items() if v is not None and math.isfinite(v)},
        config={key: value for key, value in setting.items() if key not in NOT_CONFIGURED},
        overrides={k: v for k, _, v in argv if _is_kept(k)} if argv else None,
        diverged_at=run.record.get("diverged_at"), platform=dict(run.section("hardware").get("platform") or {}),
        examples={k.removesuffix("_examples"): v for k, v in run.section("data").items() if k in COUNTED and v},
        **{key: None if value is None else _ten_digits(value) for key, value in numbers.items()},
    )  # fmt: skip


def _is_kept(key: str) -> bool:
    return (key not in NAMED or key == "tag") and not is_neutral_override(key) and not key.startswith("--")


def _ten_digits(value: float) -> float:
    return float(f"{value:.10g}")


def _curves(run: Run, figures: Sequence[str]) -> dict[str, Curve]:
    logged = dict.fromkeys(key for line in run.metrics for key in line)
    scores = [key for key in logged if key.startswith("val") and key.count("/") == 1]
    scores = list(dict.fromkeys([*([run.monitor] if run.monitor in logged else []), *scores]))[:SCORES]
    series = {key: run.series(key) for key in dict.fromkeys([*scores, *DRAWN, *figures])}
    return {key: kept_points(key, points) for key, points in series.items() if points[0]}


def as_run(row: ResultRow, root: Path) -> Run:
    """Return the run that a row stands for, as if its folder lay under `root`, with what the records know of it."""
    config = _nested(row.config)
    options = config.get("opt") if isinstance(config.get("opt"), dict) else {}
    config["opt"] = {**(options or {}), "lr": row.lr, "weight_decay": row.weight_decay}
    record: dict[str, Any] = {
        "experiment": row.experiment, "name": row.name, "status": "finished" if row.finished else "failed",
        "opt_name": row.opt_name, "seed": row.seed, "scale": row.scale, "config": config,
        "config_hash": row.config_hash, "command": row.command,
        "data": {"name": row.data, **{f"{split}_examples": count for split, count in row.examples.items()}},
        "git": {"commit": row.commit_hash, "dirty": row.dirty},
        "hardware": {"machine": row.machine, **({"platform": dict(row.platform)} if row.platform else {})},
        "versions": {"torch": row.torch or "unknown"}, "ended": row.date, "epochs": row.epochs_done,
        "steps": row.steps, "wall_time_s": row.wall_time_s, "best": {"score": row.best, "epoch": row.best_epoch},
        "scores": dict(row.scores), "measures": dict(row.measures),
    }  # fmt: skip
    if row.monitor:
        record["monitor"] = ("-" if row.better == "lower" else "") + row.monitor
    if not row.finished:
        record["diverged_at"] = row.diverged_at or 0
    if row.overrides is not None:
        record["argv"] = [f"{key}={value}" for key, value in row.overrides.items()] or [f"experiment={row.experiment}"]
    if row.off_recipe is not None:
        options = {key: value for key, value in config["opt"].items() if number(value) is not None}
        config["recipe"] = {row.opt_name: {k: "another" if k in row.off_recipe else v for k, v in options.items()}}
    lines: dict[int, dict[str, Any]] = {}
    for key, points in row.curves.items():
        for step, epoch, value in zip(*points, strict=True):
            lines.setdefault(step, {"step": step, "epoch": epoch})[key] = value
    return Run(root / row.experiment / row.name, record, [lines[step] for step in sorted(lines)])


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that `flatten` makes into `flat` again."""
    config: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node: Any = config
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict) and leaf not in node:
            node[leaf] = value
        else:  # a key that holds a value and others below it
            config[path] = value
    return config


# ------------------------------------------------------------------------------------------------- records.csv


def _recipe(text: str) -> tuple[str, ...] | None:
    return None if not text else () if text == "yes" else tuple(text.split())


def _whole(text: str) -> int | None:
    value = number(text)
    return None if value is None else int(value)


PARSERS: dict[str, Callable[[str], Any]] = {
    "str": str, "float | None": number, "int | None": _whole, "tuple[str, ...] | None": _recipe,
    "bool | None": {"yes": True, "no": False}.get,
}  # fmt: skip
FACTS = {(f.metadata["column"] or f.name): f for f in fields(ResultRow) if "column" in f.metadata}


def from_csv(cells: Mapping[str, str]) -> ResultRow:
    """Return the row of a line of records.csv; columns beside the fixed ones are scores."""
    facts = {fact.name: PARSERS[str(fact.type)](cells.get(column, "")) for column, fact in FACTS.items()}
    scores = {key: value for key, text in cells.items() if key not in FACTS and (value := number(text)) is not None}
    return ResultRow(**facts, scores=scores)


def to_csv(row: ResultRow) -> dict[str, str]:
    """Return a row's line of records.csv; numbers in a form that reads back unchanged."""
    cells = {column: _cell(fact.name, getattr(row, fact.name)) for column, fact in FACTS.items()}
    return cells | {key: f"{value:.10g}" for key, value in row.scores.items()}


def _cell(name: str, value: object) -> str:
    if name == "dirty":
        return "unknown" if value is None else "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(value) or "yes"
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)
