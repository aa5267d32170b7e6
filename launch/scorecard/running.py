"""The runs of a scorecard: trials at once, the choice on the held-out pictures, fresh seeds on the test pictures."""

from __future__ import annotations

import copy
import json
import math
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from evidence.runs.run import ReadError, Run, load_run
from evidence.scorecard.battery import Battery, Workload
from evidence.scorecard.card import SCHEMA, TUNED, UNDECAYED, Card
from evidence.tuning import Point, best
from launch.cell import Cell
from launch.compose import CONFIG_ERRORS, CONFIGS, explain, plan, readable
from launch.many import Workers
from launch.scorecard.candidate import Candidate
from tasks.base import InputError, Task
from tasks.engine.many import OWN_KEYS, check_trainable_at_once
from tasks.engine.phases import Phase
from tasks.engine.run_spec import RunSpec
from tasks.small_images.data import AveragedImages

MECHANISM = ("norm/mean", "effective_step/mean", "projected/share", "cosine/mean", "oscillation/mean")


@dataclass
class Scoring:
    """One optimizer on its way through the battery; what has ended is not run again.

    Args:
        candidate: The optimizer.
        battery: Workloads and budget.
        only: Keys of the workloads that are run.
        space: Ends of rate and decay.
        family: Where they come from.
        runs: Folder of the runs.
        jobs: Processes at a time.
        provenance: Command, commit, machine and versions.
        on_change: Called with the card whenever there is more of it.
    """

    candidate: Candidate
    battery: Battery
    only: Sequence[str]
    space: Mapping[str, tuple[float, float]]
    family: str
    runs: Path
    jobs: int
    provenance: Mapping[str, Any]
    on_change: Callable[[Card], None]
    cost: Mapping[str, Any] = field(default_factory=dict)
    cpu_before: float = 0.0  # seconds that earlier calls took
    workloads: dict[str, Any] = field(default_factory=dict)  # what is there of others

    def __post_init__(self) -> None:
        """Take the points."""
        torch.set_num_threads(1)  # no pool of threads that processes forked from this one would lack
        self.points = self.battery.points(self.candidate.name, self.space)
        if not self.candidate.takes_decay:
            self.points = [replace(point, weight_decay=0.0) for point in self.points]
        self.data: dict[str, AveragedImages] = {}

    def run(self) -> Card:
        """Run all and return the card.

        Raises:
            ReadError: The optimizer cannot be scored.
            SystemExit: A signal stopped the runs; the same call goes on.
        """
        for key in self.only:
            self._workload(self.battery.workloads[key])
            self.on_change(self.card())
        return self.card()

    def example(self) -> dict[str, Any]:
        """Return the entry `opt` of a run in the middle of the search.

        Raises:
            ReadError: The optimizer's configuration cannot be composed.
        """
        point = self.points[len(self.points) // 2]
        workload = next(iter(self.battery.workloads.values()))
        try:
            (base,) = self._composed(workload, [0]).values()
        except InputError as error:
            raise ReadError(str(error)) from None
        return self.candidate.configured(base.config["opt"], lr=point.lr, weight_decay=point.weight_decay)

    def card(self) -> Card:
        """Return the card so far."""
        own, used = self.candidate, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        optimizer = {
            "spec": own.spec, "class": own.target, "package": own.package, "options": dict(own.options),
            "family": self.family, "space": {key: list(ends) for key, ends in self.space.items()},
            "takes_decay": own.takes_decay, "schedule": "constant" if own.is_schedule_free else "cosine",
        }  # fmt: skip
        provenance = {**self.provenance, "cpu_seconds": round(self.cpu_before + used, 1)}
        workloads = {key: self.workloads[key] for key in self.battery.workloads if key in self.workloads}
        return Card(
            {
                "schema": SCHEMA, "name": own.name, "optimizer": optimizer, "protocol": self.battery.protocol,
                "provenance": provenance, "workloads": workloads, "cost": dict(self.cost),
            }
        )  # fmt: skip

    def _workload(self, workload: Workload) -> None:
        entry: dict[str, Any] = {"protocol": self.battery.protocol_of(workload.key)}
        self.workloads[workload.key] = entry
        held_out = f"+task.validation={self.battery.data['validation']}"
        seed = int(self.battery.data["tuning_seed"])
        try:
            (base,) = self._composed(workload, [seed], held_out).values()
            scored = self._composed(workload, self.battery.data["seeds"])
            check_trainable_at_once(base)
            self._check_same_workload(base, workload, seed, held_out)
        except InputError as error:
            entry["refused"] = str(error).splitlines()[0]
            return
        trials = [self._spec(base, workload.key, place, point) for place, point in enumerate(self.points)]
        print(
            f"{workload.key}: {len(trials)} trials on {100 * self.battery.data['validation']:g} % held out", flush=True
        )
        # Trials: as many networks at once as there are processes for
        self._train([trials[part :: self.jobs] for part in range(self.jobs)])
        points = [replace(point) for point in self.points]
        for spec, point in zip(trials, points, strict=True):
            score, _, status = _outcome(spec, workload)
            point.score, point.status = score, status
        entry["trials"] = [
            {"lr": p.lr, "weight_decay": p.weight_decay, "place": list(p.place), "score": p.score, "status": p.status}
            for p in points
        ]
        # The choice, of all trials and of those without decay
        undecayed = [point for point in points if not point.weight_decay]
        picks = {TUNED: best(points, f"-{workload.score}"), UNDECAYED: best(undecayed, f"-{workload.score}")}
        entry["chosen"] = {choice: points.index(point) for choice, point in picks.items() if point is not None}
        entry["scored"] = {str(place): {} for place in sorted(set(entry["chosen"].values()))}
        # Fresh seeds, all training pictures, the test pictures
        groups = [
            [self._spec(spec, workload.key, int(place), self.points[int(place)]) for place in entry["scored"]]
            for spec in scored.values()
        ]
        self._train(groups)
        for seed, group in zip(scored, groups, strict=True):
            for place, spec in zip(entry["scored"], group, strict=True):
                score, run, status = _outcome(spec, workload)
                if status != "not run":
                    entry["scored"][place][str(seed)] = _scored(run, workload, score, status)

    def _composed(self, workload: Workload, seeds: Sequence[int], *words: str) -> dict[int, RunSpec]:
        """Return seed -> plan at the optimizer's own values; composing takes long, and once is enough."""
        words = (*readable([*workload.words, *self.battery.data["shared"], *words, *self._opt_words(workload)]),)
        try:
            with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
                cfg = hydra.compose("train", list(words), return_hydra_config=True)
            HydraConfig.instance().set_config(cfg)
            own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            plans = {}
            for seed in seeds:
                seeded = copy.deepcopy(own)
                seeded.train.seed = seed
                plans[seed] = plan(seeded, [*words, f"train.seed={seed}"])
        except CONFIG_ERRORS as error:
            raise InputError(explain(error)) from None
        return plans

    def _check_same_workload(self, base: RunSpec, workload: Workload, seed: int, held_out: str) -> None:
        """Refuse an optimizer whose configuration brings another network, data or order.

        Raises:
            InputError: It does.
        """
        if self.candidate.factory is not None:
            return
        plain = replace(self, candidate=replace(self.candidate, words=("opt=adamw",)))._composed(
            workload, [seed], held_out
        )[seed]
        differing = [key for key in base.config if key not in OWN_KEYS and base.config[key] != plain.config.get(key)]
        if differing:
            raise InputError(f"its configuration changes {', '.join(differing)}, which makes it another workload")

    def _opt_words(self, workload: Workload) -> list[str]:
        chosen = [word for word in workload.words if word.startswith("schedule=")]
        return [word for word in self.candidate.words if not (chosen and word.startswith("schedule="))]

    def _spec(self, base: RunSpec, workload: str, place: int, point: Point) -> RunSpec:
        """Return a plan with the candidate's optimizer at a point."""
        opt = self.candidate.configured(base.config["opt"], lr=point.lr, weight_decay=point.weight_decay)
        name = f"{place},lr={point.lr:g},wd={point.weight_decay:g},seed={base.train.seed}"
        rules = base.rules
        if not self.candidate.takes_decay:
            rules = [rule for rule in rules if rule.keys() - {"match", "weight_decay"}]
        schedule = base.make_phases()[0].schedule

        def make_phases() -> list[Phase]:
            return [Phase(epochs=base.train.epochs, opt=self.candidate.made_by(opt), schedule=schedule)]

        return replace(
            base, make_task=lambda: self._task(base), name=name,
            folder=self.runs / self.candidate.name / workload / name, rules=rules,
            config={**base.config, "opt": opt, "opt_name": self.candidate.name}, make_phases=make_phases,
            make_loggers=list, write_report=None,
        )  # fmt: skip

    def _task(self, base: RunSpec) -> Task:
        """Return a run's task on pictures that are read once for all runs."""
        task = dict(base.config["task"])
        data = copy.copy(self._data(json.dumps(task.pop("data"), sort_keys=True)))
        made: Task = hydra.utils.instantiate(task, data=data, _convert_="all")
        return made

    def _data(self, node: str) -> AveragedImages:
        if node not in self.data:
            self.data[node] = hydra.utils.instantiate(json.loads(node), _convert_="all")
        return self.data[node]

    def _train(self, groups: Sequence[Sequence[RunSpec]]) -> None:
        left = [[spec for spec in group if spec.finished() is None] for group in groups]
        for spec in [spec for group in left for spec in group][:1]:  # before the processes that share it are forked
            self._data(json.dumps(spec.config["task"]["data"], sort_keys=True))
        cells = [
            [Cell(place, (), spec) for place, spec in enumerate(group, start=100 * number)]
            for number, group in enumerate(left)
            if group
        ]
        codes = Workers(self.jobs).run(cells)
        if bad := max(codes.values(), default=0):
            raise ReadError(f"{self.candidate.name}: runs failed with code {bad}; see above. The same command goes on")


def _outcome(spec: RunSpec, workload: Workload) -> tuple[float | None, Run | None, str]:
    """Return the last score, the run and its status."""
    run = load_run(spec.folder) if spec.finished() is not None else None
    if run is None:
        return None, None, "not run"
    if run.record.get("diverged_at") is not None:
        return None, run, "diverged"
    return run.scores.get(workload.score), run, run.status


def _scored(run: Run | None, workload: Workload, score: float | None, status: str) -> dict[str, Any]:
    """Return what a card holds of a scored run."""
    assert run is not None
    steps, _, values = run.series(workload.score)
    mechanism: dict[str, Any] = {}
    for key in MECHANISM:
        known, _, found = run.series(key)
        if found:
            mechanism[key] = _points(known, found, 4)
    return {
        "status": status, "score": None if score is None else float(f"{score:.8g}"),
        "also": run.scores.get(workload.also) if status == "finished" else None,
        "curve": _points(steps, values, 6),
        "mechanism": mechanism,
    }  # fmt: skip


def _points(steps: Sequence[int], values: Sequence[float], digits: int) -> list[list[float]]:
    return [[s, float(f"{v:.{digits}g}")] for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
