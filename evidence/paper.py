"""The numbers that the papers print (results/paper.csv), and the one look-up of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from evidence.csv_files import read_csv

PAPER_NAMES = {"adamp": "AdamP", "adarem": "AdaRem", "aws": "AWS"}


@dataclass(frozen=True)
class PaperNumber:
    """One printed number: where it stands, what it is of, and its value as printed."""

    paper: str = ""
    table: str = ""
    task: str = ""
    dataset: str = ""
    model: str = ""
    optimizer: str = ""
    setting: str = ""
    metric: str = ""
    unit: str = ""
    better: str = ""
    value: str = ""

    @property
    def source(self) -> str:
        """Paper and table, e.g. "AdamP Table 2"."""
        return f"{PAPER_NAMES.get(self.paper, self.paper)} Table {self.table}"


def read_paper(path: Path) -> list[PaperNumber]:
    """Return all printed numbers of a file."""
    return [PaperNumber(**row) for row in read_csv(path)]


def look_up(numbers: Iterable[PaperNumber], **wanted: str) -> list[PaperNumber]:
    """Return the numbers that have these values, e.g. `look_up(numbers, table="3", optimizer="adamp")`."""
    return [number for number in numbers if all(getattr(number, key) == value for key, value in wanted.items())]


# Weight decay of Table 2's runs in torch's units. The AdamP paper writes that of AdamW and AdamP as lr x torch's value.
TABLE_2_DECAYS = {"sgd": 1e-4, "sgdp": 1e-5, "adam": 1e-4, "adamw": 1e-1, "adamp": 1e-2}


def of_experiment(numbers: Iterable[PaperNumber], experiment: str) -> list[PaperNumber]:
    """Return the numbers of an experiment named <data set>-<model>."""
    dataset, _, model = experiment.partition("-")
    return look_up(numbers, dataset=dataset, model=model.replace("-", "_"))


def of_optimizer(
    numbers: Iterable[PaperNumber], *, optimizer: str, weight_decay: float | None, metric: str
) -> list[PaperNumber]:
    """Return the numbers of an experiment that were obtained with an optimizer at our weight decay."""
    return [
        number
        for number in look_up(numbers, optimizer=optimizer, metric=metric)
        if _has_decay(number, weight_decay) or (number.paper == "adarem" and optimizer.startswith("adarem"))
    ]


def _has_decay(number: PaperNumber, weight_decay: float | None) -> bool:
    if weight_decay is None:
        return False
    if (number.paper, number.table) == ("adamp", "2"):
        return weight_decay == TABLE_2_DECAYS.get(number.optimizer)
    key, _, value = number.setting.partition("=")
    return key == "weight_decay" and float(value) == weight_decay
