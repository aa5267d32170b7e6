import csv

import pytest
import torch

from evidence.runs.run import ReadError
from launch.compose import composed
from launch.step_shares import COLUMNS
from launch.stepping import prepare
from scripts import resnet18_speed
from tests.commands import TINY, call, options, run_folder, weights

SMALL = [word for word in TINY if not word.startswith(("experiment=", "pictures=", "train.progress", "train.device"))]


def test_every_part_of_a_step_gets_its_share(tmp_path, capsys):
    words = [*SMALL, "optimizers=sgd,adamp", "rounds=2", "steps=1", "device=cpu", f"out={tmp_path}"]
    assert resnet18_speed.main(words) == 0
    with (tmp_path / "resnet18-speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["adamp", "sgd", "sgd", "adamp"]  # in turns
    for row in rows:
        parts = {key: float(row[key]) for key in COLUMNS}
        assert sum(parts.values()) == pytest.approx(float(row["step"]))
        assert all(parts[key] > 0 for key in ("data", "forward", "backward", "optimizer"))
    lines = [line for line in (tmp_path / "resnet18-speed.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| sgd", "| adamp"]


def test_the_steps_that_are_timed_are_those_of_the_engine(tmp_path):
    words = options(tmp_path, "train.max_steps=3", "opt=adamp", "schedule=constant")
    assert call(*words).code == 0
    stepper = prepare(composed(words), device=torch.device("cpu"))
    for probed in (False, True, False):
        stepper.step(probed=probed)
    expected = weights(run_folder(tmp_path) / "checkpoints" / "last.pt")
    found = {f"model.{name}": value for name, value in stepper.task.networks["model"].state_dict().items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=0", "rounds is '0'"),
        ("device=abacus", "device is 'abacus'"),
        ("speed", "unknown argument 'speed'"),
        ("train.speed=3", "train.speed"),
        ("optimizers=sgd,none", "opt=none is not known"),
    ],
)
def test_options_that_cannot_be_are_named(word, message, tmp_path):
    with pytest.raises(ReadError, match=message):
        resnet18_speed.main([*SMALL, "rounds=1", f"out={tmp_path}", word])


@pytest.mark.gpu
def test_a_cuda_device_is_timed_by_its_own_clock(tmp_path):
    words = [*SMALL, "optimizers=sgd", "rounds=1", "steps=1", "device=cuda", f"out={tmp_path}"]
    assert resnet18_speed.main(words) == 0
    assert "CUDA events" in (tmp_path / "resnet18-speed.md").read_text()
