"""A run belongs to its data: it is not resumed on another set, and no position makes the loop turn without a step."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tasks.base import InputError
from tasks.engine.errors import Stopped
from tasks.engine.run import run
from tasks.engine.run_spec import RunSpec
from tasks.engine.train_state import Progress
from tests.engine import toys


class Set(toys.Toy):
    """Vectors with an identity."""

    def __init__(self, *, name: str = "toy", digest: str | None = "aa", examples: int = 120) -> None:
        super().__init__(examples=examples)
        self.facts = {"name": name, **({"digest": digest} if digest else {})}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), **self.facts}


def start(folder: Path, task: toys.Toy) -> dict[str, float]:
    spec = RunSpec(
        "toys", "toy", folder, {"experiment_name": "toys"}, toys.options(), (), lambda: task, toys.one_phase, lambda: ()
    )
    return run(spec)


def stop(folder: Path, task: toys.Toy) -> None:
    task.before_step = toys.kill_at(8)
    with pytest.raises(Stopped):
        start(folder, task)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"examples": 36}, "train_examples: 120 -> 36; val_examples: 120 -> 36"),
        ({"examples": 240}, "train_examples: 120 -> 240"),
        ({"digest": "bb"}, "digest: aa -> bb"),
        ({"name": "toy_subset"}, "name: toy -> toy_subset"),
    ],
    ids=str,
)
def test_other_data_are_refused_by_name_and_the_first_ones_resume_exactly(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    start(tmp_path / "whole", Set())
    stop(tmp_path / "stopped", Set())
    files = ("run.json", "metrics.jsonl", "checkpoints/last.pt")
    before = [(tmp_path / "stopped" / name).read_bytes() for name in files]
    with pytest.raises(InputError) as refused:
        start(tmp_path / "stopped", Set(**other))
    assert message in str(refused.value) and "data_root" in str(refused.value)
    assert [(tmp_path / "stopped" / name).read_bytes() for name in files] == before
    start(tmp_path / "stopped", Set())
    whole, resumed = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped"))
    assert resumed == whole


def test_a_run_recorded_without_a_digest_resumes(tmp_path: Path) -> None:
    stop(tmp_path, Set(digest=None))
    start(tmp_path, Set())
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("examples", [36, 240])
def test_a_checkpoint_of_epochs_of_another_length_is_refused_without_a_record(tmp_path: Path, examples: int) -> None:
    first = Set()
    first.before_step = toys.kill_at(13)  # in the second epoch
    for task, error in ((first, Stopped), (Set(examples=examples), InputError)):
        made = toys.trainer(task, tmp_path)
        with pytest.raises(error) as raised:
            made.fit()
        toys.close(made)
    assert f"the data have {examples // 12} steps an epoch: it was saved on other data" in str(raised.value)


@pytest.mark.parametrize("epochs", [(2,), (1, 2)])
def test_every_position_is_refused_or_leads_to_the_end(tmp_path: Path, epochs: tuple[int, ...]) -> None:
    epoch_steps, accepted = 2, []
    for place in itertools.product(range(-1, len(epochs) + 2), range(-1, 4), range(-1, 5), range(-1, 9)):
        if Progress(*place).fits(epochs, epoch_steps):
            accepted.append(place)
    # Each batch of each epoch, waiting for its evaluation included, the end of each phase, and the end of the run
    assert len(accepted) == sum(3 * count + 1 for count in epochs) + 1
    for number, place in enumerate(accepted):
        phases = [phase for count in epochs for phase in toys.one_phase(count)]
        made = toys.trainer(toys.Toy(examples=24), tmp_path / str(number), phases=phases, probe_every=0)
        made.state.progress = Progress(*place)
        turns = sum(1 for _ in made.epochs())
        toys.close(made)
        assert turns == sum(epochs) - sum(epochs[: place[0]]) - place[1]
        assert made.state.progress == Progress(len(epochs), 0, 0, sum(epochs) * epoch_steps)
