"""`make tune`: the same budget for every optimizer, on data that no table reports."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import yaml

from evidence import tuning
from evidence.figures import sensitivity
from evidence.runs.run import ReadError
from evidence.tuning import Point
from launch.tuning import validation_words
from scripts import tune
from tasks.adversarial import Adversarial
from tasks.audio.task import AudioClassifier
from tasks.imagenet import ImageNet
from tasks.retrieval.task import Retrieval
from tests import commands


def searched(opt: str = "sgd", budget: int = 64) -> list[Point]:
    return tuning.points(opt, budget, rates=(1e-3, 1e-1), decays=(1e-5, 1e-3), draw=0)


def scored(*scores: float | None, budget: int | None = None) -> list[Point]:
    found = searched(budget=budget or len(scores))
    for point, score in zip(found, scores, strict=True):
        point.score, point.status = score, "diverged" if score is None else "finished"
    return found


# Points -----------------------------------------------------------------------------------------------------------


def test_every_optimizer_gets_the_same_points_of_its_own_square() -> None:
    one, other = searched("sgd"), tuning.points("adamp", 64, rates=(1e-5, 1e-3), decays=(1e-3, 1e-1), draw=0)
    assert [point.place for point in one] == [point.place for point in other]
    ratios = [a.lr / b.lr for a, b in zip(one, other, strict=True)]
    assert all(math.isclose(ratio, 100, rel_tol=0.01) for ratio in ratios)


def test_points_lie_in_their_ranges_evenly_in_the_logarithm_and_a_larger_budget_keeps_them() -> None:
    found = searched()
    assert all(1e-3 <= point.lr <= 1e-1 and 1e-5 <= point.weight_decay <= 1e-3 for point in found)
    assert sum(point.lr < 1e-2 for point in found) == 32
    assert [(p.lr, p.weight_decay) for p in searched(budget=8)] == [(p.lr, p.weight_decay) for p in found[:8]]
    assert len({(point.lr, point.weight_decay) for point in found}) == 64


def test_ranges_are_read_and_default_to_a_decade_on_either_side() -> None:
    assert tuning.ends("1e-4..0.1", "lr") == (1e-4, 0.1)
    assert tuning.around(0.1, None, "lr") == pytest.approx((0.01, 1.0))
    assert tuning.around(0.0, (1e-6, 1e-4), "decay") == (1e-6, 1e-4)
    with pytest.raises(ReadError, match=r"decay=LOW\.\.HIGH"):
        tuning.around(0.0, None, "decay")


@pytest.mark.parametrize("text", ["0.1", "0..1", "1..0.1", "a..b", "1..nan", "1..inf", ".."])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ReadError, match=r"LOW\.\.HIGH"):
        tuning.ends(text, "lr")


# What chooses -----------------------------------------------------------------------------------------------------


def test_what_chooses_is_never_what_a_table_reports_unless_that_is_said() -> None:
    for task in (ImageNet, Adversarial):
        words, said = validation_words(task, "0.2")
        assert words == ["+task.validation=0.2"]
        assert "20 % of the training pictures" in said
    assert validation_words(AudioClassifier, "")[0] == []
    with pytest.raises(ReadError, match="split of its own"):
        validation_words(AudioClassifier, "0.1")
    with pytest.raises(ReadError, match="validation=none does so"):
        validation_words(Retrieval, "")
    assert "no fair estimate" in validation_words(Retrieval, "none")[1]
    with pytest.raises(ReadError, match="validation=2"):
        validation_words(ImageNet, "2")


def test_the_best_point_and_those_within_one_percent_of_it() -> None:
    found = scored(80.0, 79.3, 79.1, None)
    assert tuning.best(found, "val/top1") is found[0]
    assert tuning.good(found, "val/top1") == found[:2]
    assert tuning.best(found, "-val/loss") is found[2]
    assert tuning.good(found, "-val/loss") == found[1:3]
    made = tuning.facts({"sgd": found}, "val/top1")["sgd"]
    assert (made["within_1_percent"], made["runs"], made["scored"], made["diverged"]) == (0.5, 4, 3, 1)
    assert made["lr_within"] == sorted([found[0].lr, found[1].lr])
    assert tuning.facts({"sgd": scored(None, None)}, "val/top1")["sgd"] == {"runs": 2, "scored": 0}


def test_a_choice_at_the_end_of_the_search_says_so() -> None:
    assert tuning.edges(Point("sgd", 1, 1, (0.01, 0.5))) == ["lowest lr"]
    assert tuning.edges(Point("sgd", 1, 1, (0.5, 0.99))) == ["highest decay"]
    assert tuning.edges(Point("sgd", 1, 1, (0.5, 0.5))) == []


def test_the_picture_and_the_page_stand_diverged_and_missing_runs(tmp_path: Path) -> None:
    few, many, none = scored(80.0, None), scored(*(70 + i / 2 for i in range(12))), scored(None, None)
    found = {"sgd": few, "adamp": many, "adam": none}
    sensitivity.write(found, tmp_path, title="toy, scale mini", said="held out", monitor="val/top1")
    for name in ("sensitivity.svg", "sensitivity.png", "sensitivity.csv", "points.csv", "chosen.yaml"):
        assert (tmp_path / name).stat().st_size > 100
    chosen = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert chosen["recipe"].keys() == {"sgd", "adamp"}
    assert chosen["recipe"]["adamp"] == {"lr": many[-1].lr, "weight_decay": many[-1].weight_decay}
    page = (tmp_path / "sensitivity.md").read_text()
    assert "| adam | – |" in page
    assert "Chosen by held out." in page


# The whole --------------------------------------------------------------------------------------------------------


def test_a_search_runs_each_point_on_held_out_pictures_and_goes_on_with_a_larger_budget(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    kept = ("model.width", "train.threads", "train.progress", "train.device")
    small = [word for word in commands.TINY if word.startswith(kept)]
    small += ["data.image_size=16", "train.batch_size=64", "train.max_steps=6", "train.probe_every=0"]
    words = ["experiment=imagenet-resnet18", "opts=sgd,adamp", f"out={tmp_path}", *small]
    assert tune.main([*words, "budget=1"]) == 0
    first = {path.name for path in (tmp_path / "runs" / "imagenet-resnet18").iterdir()}
    assert tune.main([*words, "budget=2"]) == 0
    table = (tmp_path / "imagenet-resnet18" / "mini" / "points.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["opt"] for row in rows] == ["sgd", "sgd", "adamp", "adamp"]
    assert {row["status"] for row in rows} == {"finished"}
    assert first < {row["run"] for row in rows}
    for row in rows:
        record = json.loads((tmp_path / "runs" / "imagenet-resnet18" / row["run"] / "run.json").read_text())
        assert record["data"]["name"] == "fashion_mnist_20k_held_out_0.1"
        assert (record["data"]["train_examples"], record["data"]["val_examples"]) == (9000, 1000)
        assert record["scores"]["val/top1"] == pytest.approx(float(row["score"]))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["budget=4"], "experiment= is missing"),
        (["experiment=imagenet-resnet18"], "budget="),
        (["experiment=imagenet-resnet18", "budget=0"], "budget=0"),
        (["experiment=no-such", "budget=1"], "experiment=no-such is not known"),
        (["experiment=imagenet-resnet18", "budget=1", "opts=none"], "opt=none is not known"),
        (["experiment=imagenet-resnet18", "budget=1", "lr=3"], "lr=3"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(tmp_path: Path, words: list[str], part: str) -> None:
    with pytest.raises(ReadError, match=part):
        tune.main([*words, f"out={tmp_path}"])
    assert not list(tmp_path.iterdir())
