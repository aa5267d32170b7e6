"""The AdamP paper's claims about weight norms on our runs: projection slows their growth.

The growth of a run is G = n_last^2 - n_0^2, n being the mean L2 norm over the filters of all scale-invariant weights.
Without weight decay, G(SGD) / G(SGDP) must be at least 3 and G(AdamW) / G(AdamP) at least 5, in every seed. The paper's
ResNet-18 on ImageNet has 6.0 (Table 1) to 6.3 (the curves of its project page) and 14.1 (Table 1).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evidence.records.row import ResultRow, norm_growth
from evidence.runs.run import ReadError, digest, number
from evidence.stats import NONE, mean_text

NOTE = """\
G = n_last² − n_0², n the mean L2 norm over the filters of all scale-invariant weights, weight decay 0. The paper's
numbers are of ResNet-18 on ImageNet, 100 epochs (Table 1; 6.3 from its project page's curves); ours are of the data
set named above. Paper, effective step SGDP / SGD after the first quarter: 2.6 to 3.3 (project page). The ratio of
effective steps is information, no claim."""


@dataclass(frozen=True)
class Claim:
    """Growth of `plain` over growth of `projected` is at least `least`."""

    plain: str
    projected: str
    least: float
    paper: str


CLAIMS = (Claim("sgd", "sgdp", 3.0, "6.0 to 6.3"), Claim("adamw", "adamp", 5.0, "14.1"))
OPTIMIZERS = tuple(name for claim in CLAIMS for name in (claim.plain, claim.projected))
# First epoch -> last epoch, ResNet-18 on ImageNet, weight decay 0 (Table 1).
PAPER_NORMS = {"sgd": "1.35 → 4.34", "sgdp": "1.25 → 2.10", "adamw": "1.70 → 10.41", "adamp": "1.29 → 3.02"}
Runs = dict[tuple[str, int], ResultRow]  # (optimizer, seed) -> run


def common(run: ResultRow) -> dict[str, object]:
    """Return what all twelve runs must agree in: everything but the optimizer and its options."""
    return {k: v for k, v in run.setting.items() if k != "optimizer" and k.split(".")[0] != "opt"}


def select_runs(
    runs: Sequence[ResultRow], seeds: Sequence[int], wanted: Mapping[str, str], *, experiment: str
) -> tuple[Runs, list[str]]:
    """Return the one complete set of runs, and the names of runs that fit the claim but belong to other settings.

    Args:
        runs: All runs of the experiment.
        seeds: Seeds of which every optimizer must have a finished run.
        wanted: Configuration keys and values to narrow the choice.
        experiment: For the commands that make missing runs.

    Raises:
        ReadError: No set is complete (names the commands), or more than one is (names what differs).
    """
    usable = [run for run in runs if run.opt_name in OPTIMIZERS and run.weight_decay == 0.0 and run.seed in seeds]
    usable = [run for run in usable if run.finished and _matches(run, wanted)]
    sets: dict[str, Runs] = {}
    doubled: dict[str, list[str]] = {}
    for run in usable:
        key, place = digest(common(run)), (run.opt_name, run.seed or 0)
        if place in sets.setdefault(key, {}):
            doubled.setdefault(key, []).append(f"{sets[key][place].name} and {run.name}")
        sets[key][place] = run
    complete = [key for key, by_place in sets.items() if len(by_place) == len(OPTIMIZERS) * len(seeds)]
    if not complete:
        raise ReadError(_missing(sets, seeds, wanted, experiment=experiment))
    if len(complete) > 1:
        differences = _differences(sets, complete)
        raise ReadError(f"several settings have all runs; choose one with KEY=VALUE; they differ in {differences}")
    if complete[0] in doubled:
        pairs = "; ".join(doubled[complete[0]])
        raise ReadError(f"runs differ in their optimizer's options alone; choose with OPT.KEY=VALUE between {pairs}")
    chosen = sets[complete[0]]
    _check_pairs(chosen)
    taken = {run.name for run in chosen.values()}
    return chosen, sorted(f"{run.name} [{digest(common(run))}]" for run in usable if run.name not in taken)


def _matches(run: ResultRow, wanted: Mapping[str, str]) -> bool:
    flat = {**run.config, "scale": run.scale, "data": run.data}
    for key, value in wanted.items():
        opt, _, option = key.partition(".")
        if opt in OPTIMIZERS and opt != run.opt_name:
            continue
        if not _same(flat.get(f"opt.{option}" if opt in OPTIMIZERS else key), value):
            return False
    return True


def _same(ours: object, asked: str) -> bool:
    a, b = number(ours), number(asked)
    return a == b if a is not None and b is not None else str(ours).lower() == asked.lower()


def _missing(sets: Mapping[str, Runs], seeds: Sequence[int], wanted: Mapping[str, str], *, experiment: str) -> str:
    """Return the text that names each missing run's command, for the setting that has most runs."""
    best: Runs = max(sets.values(), key=len, default={})
    scale = next(iter(best.values())).scale if best else wanted.get("scale", "mini")
    places = [(opt, seed) for opt in OPTIMIZERS for seed in seeds if (opt, seed) not in best]
    lines = [
        f"  make {experiment} opt={opt} opt.weight_decay=0 train.seed={seed} scale={scale}{_overrides(wanted, opt)}"
        for opt, seed in places
    ]
    settings = f" in the fullest of {len(sets)} settings" if len(sets) > 1 else ""
    return f"{len(lines)} finished runs are missing{settings}; make them with:\n" + "\n".join(lines)


def _overrides(wanted: Mapping[str, str], opt: str) -> str:
    """Return what a run of `opt` needs on its command line to fit; scale and data set are chosen otherwise."""
    words = []
    for key, value in wanted.items():
        owner, _, option = key.partition(".")
        if owner == opt:
            words.append(f" opt.{option}={value}")
        elif owner not in OPTIMIZERS and key not in ("scale", "data"):
            words.append(f" {key}={value}")
    return "".join(words)


def _differences(sets: Mapping[str, Runs], keys: Sequence[str]) -> str:
    """Return "train.epochs (4, 12)" for each key in which complete sets differ."""
    settings = [common(next(iter(sets[key].values()))) for key in keys]
    names = sorted({name for values in settings for name in values})
    values = {name: sorted({str(setting.get(name, "absent")) for setting in settings}) for name in names}
    return ", ".join(f"{name} ({', '.join(options)})" for name, options in values.items() if len(options) > 1)


def _check_pairs(chosen: Runs) -> None:
    """Refuse pairs whose shared options differ: a ratio of growths at unequal learning rates means nothing."""
    for opt in OPTIMIZERS:
        ours = {digest(_options(run)) for (name, _), run in chosen.items() if name == opt}
        if len(ours) > 1:
            raise ReadError(f"the runs of opt={opt} differ in their options between seeds; run them anew alike")
    seed = min(seed for _, seed in chosen)
    for claim in CLAIMS:
        a, b = _options(chosen[claim.plain, seed]), _options(chosen[claim.projected, seed])
        unequal = [f"opt.{key}: {a[key]} and {b[key]}" for key in sorted(a.keys() & b.keys()) if a[key] != b[key]]
        if unequal:
            raise ReadError(
                f"{claim.plain} and {claim.projected} must have equal options; they differ in {'; '.join(unequal)}"
            )


def _options(run: ResultRow) -> dict[str, object]:
    options = {key.removeprefix("opt."): value for key, value in run.config.items() if key.startswith("opt.")}
    kept = {key: value for key, value in options.items() if key not in ("_target_", "_partial_", "name")}
    return {k: v if number(v) is None else number(v) for k, v in kept.items()}  # 0 and 0.0 are the same value


def growth_ratio(plain: ResultRow, projected: ResultRow) -> float:
    """Return G(plain) / G(projected), NaN where a growth is missing or not positive."""
    above, below = norm_growth(plain), norm_growth(projected)
    return above / below if above is not None and below is not None and below > 0 else math.nan


def step_ratio(plain: ResultRow, projected: ResultRow) -> str:
    """Return the effective steps of `projected` over those of `plain` after the first quarter: median (min to max)."""
    _, _, top = projected.series("effective_step/mean")
    points = {step: (epoch, value) for step, epoch, value in zip(*plain.series("effective_step/mean"), strict=True)}
    last = max((epoch for epoch, _ in points.values()), default=0.0)
    ratios = [
        value / points[step][1]
        for step, epoch, value in zip(*projected.series("effective_step/mean"), strict=True)
        if step in points and epoch > last / 4 and points[step][1] > 0 and value > 0
    ]
    if not top or not ratios:
        return NONE
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def pass_or_fail(value: float, least: float) -> str:
    """Return PASS or FAIL; NaN fails."""
    return "PASS" if value >= least else "FAIL"


def tabulate(chosen: Runs, seeds: Sequence[int]) -> tuple[str, bool]:
    """Return the tables as Markdown, and whether every claim holds in every seed."""
    lines = ["| optimizer | seed | norm, first → last | G | paper, ImageNet, norm, first → last epoch |"]
    lines.append("| --- | ---: | --- | ---: | --- |")
    for opt in OPTIMIZERS:
        for seed in seeds:
            run = chosen[opt, seed]
            first, last, growth = run.norm_first, run.norm_last, norm_growth(run)
            norms = NONE if first is None or last is None else f"{first:.3f} → {last:.3f}"
            lines.append(f"| {opt} | {seed} | {norms} | {mean_text([growth], '.3f')} | {PAPER_NORMS[opt]} |")
    lines += [
        "",
        "| claim | seed | ratio | | paper, ImageNet | effective step, projected / plain, after the first quarter |",
    ]
    lines.append("| --- | --- | ---: | --- | --- | --- |")
    holds = True
    for claim in CLAIMS:
        name = f"G({claim.plain}) / G({claim.projected}) ≥ {claim.least:g}"
        pairs = [(chosen[claim.plain, seed], chosen[claim.projected, seed]) for seed in seeds]
        ratios = [growth_ratio(*pair) for pair in pairs]
        for seed, ratio, pair in zip(seeds, ratios, pairs, strict=True):
            mark = pass_or_fail(ratio, claim.least)
            lines.append(f"| {name} | {seed} | {ratio:.2f} | {mark} | {claim.paper} | {step_ratio(*pair)} |")
        fine = all(pass_or_fail(ratio, claim.least) == "PASS" for ratio in ratios)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if not any(map(math.isnan, ratios)) else NONE
        lines.append(f"| **{name}** | **all** | **{spread}** | **{'PASS' if fine else 'FAIL'}** | {claim.paper} | |")
        holds = holds and fine
    return "\n".join(lines), holds


def provenance(chosen: Runs, left_out: Sequence[str], *, words: Sequence[str]) -> str:
    """Return where the numbers come from, as a Markdown list."""
    runs = list(chosen.values())
    run = runs[0]

    def joined(values: Sequence[object]) -> str:
        return ", ".join(sorted({str(value) for value in values}))

    facts = {
        "experiment": run.experiment,
        "data set, scale": f"{run.data}, {run.scale}",
        "epochs": joined([f"{run.epochs_done:g}" for run in runs if run.epochs_done is not None]),
        "learning rates": ", ".join(f"{opt} {chosen[opt, min(s for _, s in chosen)].lr:g}" for opt in OPTIMIZERS),
        "seeds": joined([run.seed for run in runs]),
        "commit (+: with uncommitted changes)": joined([run.commit for run in runs]),
        "machine": joined([run.machine for run in runs]),
        "torch": joined([run.torch or "unknown" for run in runs]),
        "runs": ", ".join(f"`{run.name}`" for run in runs),
        "left out, another setting": ", ".join(f"`{name}`" for name in left_out) or "none",
        "command": f"`python scripts/claims_norms.py {' '.join(words)}`".replace(" `", "`"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def page(chosen: Runs, left_out: Sequence[str], seeds: Sequence[int], *, words: Sequence[str]) -> tuple[str, bool]:
    """Return the page, and whether every claim holds in every seed.

    Args:
        chosen: The runs.
        left_out: Names of those that belong to other settings.
        seeds: Which seeds.
        words: The command line, without places: these decide no number.
    """
    table, holds = tabulate(chosen, seeds)
    first = next(iter(chosen.values()))
    title = f"# Norm growth: claims of the AdamP paper on {first.experiment}, {first.data}"
    return f"{title}\n\n{table}\n\n{NOTE}\n\n{provenance(chosen, left_out, words=words)}\n", holds
