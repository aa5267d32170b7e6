"""Tuning's runs: the data that may choose, and the words and folders of the points."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from hydra.errors import HydraException
from hydra.utils import get_class

from evidence.runs.run import ReadError, number
from evidence.tuning import Point
from launch import compose
from tasks.base import InputError, Task
from tasks.engine.run_spec import RunSpec


def validation_words(task: type[Task], given: str) -> tuple[list[str], str]:
    """Return the words that let a task score what no table reports, and what to say of it.

    Raises:
        ReadError: The task has no such data, or has its own and the option asks for other.
    """
    name = task.__name__
    if given == "none":
        return [], "the split that the tables report: the choice has seen it, so its score is no fair estimate"
    if "validation" in inspect.signature(task).parameters:
        share = number(given or "0.1")
        if share is None or not 0 < share < 1:
            raise ReadError(f"validation={given}: must be a share of the training pictures, such as 0.1, or none")
        said = f"{100 * share:g} % of the training pictures, held out from training; the reported split is not read"
        return [f"+task.validation={share:g}"], said
    if task.test_batches is not Task.test_batches:
        if given:
            raise ReadError(f"validation={given}: {name} has a validation split of its own, apart from its test split")
        return [], "the task's own validation split; the test split is scored too, and chooses nothing"
    raise ReadError(
        f"{name} scores one split only, the one that tables report: choosing on it would flatter the result\n"
        "validation=none does so nevertheless, and the page says it"
    )


def planned(opt: str, shared: Sequence[str]) -> RunSpec:
    """Return the plan of an optimizer at its recipe's values.

    Raises:
        ReadError: It cannot be composed.
    """
    try:
        return compose.composed([*shared, f"opt={opt}"])
    except (InputError, HydraException) as error:
        raise ReadError(compose.explain(error)) from None


def name_runs(found: Sequence[Point], plan: RunSpec, shared: Sequence[str]) -> None:
    """Give points of one optimizer their words and folders."""
    for point in found:
        values = {"lr": point.lr, "weight_decay": point.weight_decay}
        point.words = [*shared, f"opt={point.opt}", *(f"opt.{key}={value:g}" for key, value in values.items())]
        config = {**plan.config, "opt": {**plan.config["opt"], **values}}
        point.folder = plan.folder.parent / compose.run_name(config, point.words)


def recipes(first: RunSpec, shared: Sequence[str]) -> list[str]:
    """Return the optimizers that an experiment has a recipe for."""
    # An optimizer's own file adds a row for itself: those of the experiment are there whatever optimizer is composed.
    rows = first.config["recipe"].keys() & planned("adam", shared).config["recipe"].keys()
    return [opt for opt in first.config["recipe"] if opt in rows]


def task_class(plan: RunSpec) -> type[Task]:
    """Return the class of a run's task."""
    found: type[Task] = get_class(plan.config["task"]["_target_"])
    return found
