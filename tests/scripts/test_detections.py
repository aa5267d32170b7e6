"""Reading a detector back and drawing what it finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evidence.runs.run import ReadError, load_run
from launch.trained.detections import load, visible
from scripts.detections import main
from tests.commands import call
from tests.tasks.detection import layouts

WORDS = [
    "experiment=coco-centernet", "opt=adamp", "data=coco", "data.categories=file", "data.name=small",
    "model.image_size=64", "model.width=0.0625", "model.head_channels=8", "train.batch_size=4", "train.epochs=1",
    "pictures=false", "train.progress=false", "train.threads=1", "train.device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    root = layouts.write_coco(folder / "coco")
    done = call(*WORDS, f"data_root={root}", f"paths.runs={folder}/runs", f"paths.reports={folder}/reports")
    assert done.code == 0, done.err
    (found,) = (folder / "runs" / "coco-centernet").iterdir()
    return found


def test_a_run_is_drawn_again_with_the_scores_of_its_record(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={run}", "pictures=5", "threshold=0.05", "checkpoint=last"]) == 0
    out = capsys.readouterr().out
    for name in ("detections.png", "precision-recall.png"):
        with Image.open(run / "figures" / name) as image:
            assert min(image.size) > 200
    record = load_run(run)
    assert record is not None
    assert f"ap50 {record.record['scores']['val/ap50']:.2f}" in out


def test_a_network_that_is_sure_of_nothing_shows_as_many_boxes_as_there_are(run: Path) -> None:
    task = load(run, "last", data_root="")
    true = sum(len(task.data.objects("val", number)[0]) for number in range(task.data.num_examples["val"]))
    scores = np.linspace(0.001, 0.2, 3 * true)
    unsure = {1: np.stack([np.zeros(3 * true)] * 4 + [scores, scores * 0], 1)}
    assert (scores >= visible(task, unsure)).sum() in (true, true + 1)  # the threshold is rounded down
    assert visible(task, {1: unsure[1] + 0.5}) == 0.3
    assert visible(task, {}) == 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "run= is missing"),
        (["run=nowhere"], r"holds no run\.json"),
        (["run=RUN", "pictures=0"], "pictures=0"),
        (["run=RUN", "threshold=high"], "threshold=high"),
        (["run=RUN", "checkpoint=worst"], "choose one of best, last"),
        (["run=RUN", "data_root=nowhere"], "does not exist"),
        (["run=RUN", "colour=red"], "unknown argument"),
    ],
)
def test_mistakes_are_said_in_words(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(ReadError, match=message):
        main([word.replace("RUN", str(run)) for word in words])


def test_a_run_of_another_task_is_refused(run: Path, tmp_path: Path) -> None:
    text = (run / "run.json").read_text().replace("tasks.detection.Detection", "tasks.imagenet.ImageNet")
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ReadError, match="not of a detection experiment"):
        main([f"run={tmp_path}"])


def test_a_checkpoint_without_the_detectors_weights_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    (tmp_path / "checkpoints").mkdir()
    torch.save({"networks": {}}, tmp_path / "checkpoints" / "best.pt")
    with pytest.raises(ReadError, match="holds no detector"):
        main([f"run={tmp_path}"])
