import re

import pytest

from evidence.runs.run import ReadError
from launch import budget
from scripts import plan

TINY = (
    "scale=mini", "data=synthetic", "data.train_examples=64", "data.val_examples=40", "data.num_classes=10",
    "data.image_size=32", "model.width=0.125", "train.batch_size=16", "train.epochs=3", "train.device=cpu",
    "train.threads=1", "calibration=1",
)  # fmt: skip


def planned(tmp_path, *words):
    """Return the cells of the plan's table, one list a line, and the whole text."""
    assert plan.main([*TINY, f"out={tmp_path}", *words]) == 0
    (page,) = tmp_path.glob("plan-*.md")
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines], text


@pytest.mark.parametrize("word", ["gpu=v100", "gpu=here", "rate=500"])
def test_a_run_is_counted_and_its_hours_predicted(tmp_path, word):
    ((name, runs, steps, parameters, *_, hours, total),), text = planned(tmp_path, "experiment=imagenet-resnet18", word)
    assert name.startswith("imagenet-resnet18")
    assert (runs, steps) == ("1", "12")  # 3 epochs of 64 / 16 steps
    assert int(parameters.replace(",", "")) > 100_000
    assert 0 < float(hours) == pytest.approx(float(total), rel=0.01)
    assert "Assumptions" in text


def test_the_hours_times_a_price_are_dollars(tmp_path):
    _, text = planned(tmp_path, "experiment=imagenet-resnet18", "rate=1", "price=1e6")
    hours, dollars = re.search(r"([\d.e-]+) GPU hours, ([\d,]+) dollars at 1e\+06 a GPU hour", text).groups()
    assert float(dollars.replace(",", "")) == pytest.approx(1e6 * float(hours), rel=0.01)


def test_cells_that_differ_in_rate_decay_or_seed_are_counted_once(tmp_path):
    found = budget.lines_of({"sweep": "table-2", "scale": "full", "experiment": ""}, [])
    assert len(found) == 20  # four networks x five optimizers
    # SGDP's decay has two readings, which cost the same
    assert all(runs == (6 if "opt=sgdp" in label else 3) for label, (_, runs) in found.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "experiment=NAME or sweep=NAME"),
        (["experiment=imagenet-resnet18", "gpu=abacus"], "gpu=abacus"),
        (["experiment=imagenet-resnet18", "rate=fast"], "rate"),
        (["experiment=imagenet-resnet19"], "imagenet-resnet19"),
        (["experiment=imagenet-resnet18", "price=nan"], "price is .nan."),
        (["sweep=table-99"], "table-99"),
        (["experiment=imagenet-resnet18", "train.epoch=3"], "train.epoch"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path, words, message):
    with pytest.raises(ReadError, match=message):
        plan.main([*words, f"out={tmp_path}"])
