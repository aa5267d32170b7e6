import json

import numpy as np
import pytest
import torch
from PIL import Image

from evidence.runs.run import ReadError
from scripts import search
from tasks.retrieval import EmbeddingNet
from tests.tasks.data.pictures import picture

CONFIG = {
    "experiment_name": "cub-proxyanchor",
    "task": {"_target_": "tasks.retrieval.Retrieval"},
    "model": {"_target_": "tasks.retrieval.EmbeddingNet", "_partial_": True, "backbone": "resnet18", "width": 0.0625,
              "features": 8, "init": "imagenet", "weights": "gone.pth"},
    "data": {"_target_": "tasks.retrieval.EmojiDesigns", "root": None, "image_size": 32, "num_classes": 12},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Write a run's folder with a random network in it."""
    torch.manual_seed(0)
    net = EmbeddingNet("resnet18", 6, width=0.0625, features=8)
    net.measure_statistics([torch.rand(16, 3, 32, 32) * 255])
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"networks": {"model": net.state_dict()}}, tmp_path / "run" / "checkpoints" / "best.pt")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"config": CONFIG}))
    return tmp_path / "run"


@pytest.fixture
def photos(tmp_path):
    """Write a folder of pictures: one twice, one grey, one that is none."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(picture(number, width=60, height=40)).save(folder / f"{number}.png")
    Image.fromarray(picture(0, width=60, height=40)).save(folder / "below" / "copy.png")
    Image.fromarray(picture(9)).convert("L").save(folder / "grey.jpg")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return folder


def test_the_nearest_picture_to_one_is_its_copy_and_never_itself(run, photos, tmp_path, capsys):
    words = [f"run={run}", f"folder={photos}", f"query={photos / '0.png'}", "k=3", f"out={tmp_path / 'near.png'}"]
    assert search.main([*words, f"embeddings={tmp_path / 'rows.npz'}"]) == 0
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if not line.startswith("picture")]
    assert len(lines) == 3
    assert lines[0].startswith("1.0000") and lines[0].endswith("copy.png")
    assert not any(line.endswith("/0.png") for line in lines)
    assert "broken.jpg" in said.err
    with Image.open(tmp_path / "near.png") as drawn:
        assert drawn.size[0] > 300
    with np.load(tmp_path / "rows.npz") as stored:
        assert stored["embeddings"].shape == (6, 8)
        assert len(stored["paths"]) == 6
        assert np.allclose(np.linalg.norm(stored["embeddings"], axis=1), 1)


def test_queries_of_the_runs_own_set_are_drawn_with_hits_and_misses_marked(run, capsys):
    assert search.main([f"run={run}", "queries=3", "k=4"]) == 0
    assert (run / "figures" / "neighbours.png").stat().st_size > 10_000
    rows = search.search_set(search.load(run, "best"), queries=3, k=4, data_root="")
    assert [len(row.found) for row in rows] == [4, 4, 4]
    assert all(isinstance(hit, bool) for row in rows for hit in row.hits)
    assert rows[0].caption != rows[2].caption


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run="], "run= is missing"),
        (["run=/nowhere"], "holds no run.json"),
        (["run=RUN", "checkpoint=worst"], "choose best or last"),
        (["run=RUN", "checkpoint=last"], r"last\.pt: cannot be read"),
        (["run=RUN", "k=0"], "k=0: must be a whole number"),
        (["run=RUN", "folder=PHOTOS"], "folder= and query= go together"),
        (["run=RUN", "folder=/nowhere", "query=a.png"], "folder=/nowhere: is no folder"),
        (["run=RUN", "folder=PHOTOS", "query=PHOTOS/broken.jpg"], "query=.*cannot be read"),
        (["run=RUN", "pictures=1"], "unknown argument"),
    ],
)
def test_what_cannot_be_searched_is_named(run, photos, words, message):
    given = [word.replace("RUN", str(run)).replace("PHOTOS", str(photos)) for word in words]
    with pytest.raises(ReadError, match=message):
        search.main(given)


def test_a_run_of_another_kind_is_refused(run):
    (run / "run.json").write_text(json.dumps({"config": {**CONFIG, "task": {"_target_": "tasks.imagenet.ImageNet"}}}))
    with pytest.raises(ReadError, match="not of a retrieval experiment"):
        search.load(run, "best")
