"""The scenes that need no download: the same every time, exact boxes, and no product or column in both splits."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.base import InputError
from tasks.data.fashion_mnist import read_pictures
from tasks.detection import FashionScenes
from tasks.detection.fashion_scenes import COLUMN, SIDE, _overlap, _photos, cut_out, scenes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(folder):
    return FashionScenes(str(folder), train_examples=12, val_examples=6)


def test_a_set_holds_what_it_says(data):
    assert data.num_examples == {"train": 12, "val": 6}
    assert data.num_classes == 10
    assert data.classes[0] == "T-shirt/top"
    assert data.describe()["name"] == "fashion_scenes"
    for index in range(12):
        boxes, labels = data.objects("train", index)
        assert data.image("train", index).size == (SIDE, SIDE)
        assert 1 <= len(boxes) == len(labels) <= 7
        assert (boxes[:, 2:] - boxes[:, :2] >= 8).all()
        assert boxes.min() >= 0
        assert boxes.max() <= SIDE


def test_the_same_scenes_are_made_every_time_and_more_begin_with_them(tmp_path, data, folder):
    again = FashionScenes(str(tmp_path), train_examples=3, val_examples=1)
    (one,) = folder.glob("fashion_scenes-*")
    (other,) = tmp_path.glob("fashion_scenes-*")
    for index in range(3):
        assert again.objects("train", index)[0].equal(data.objects("train", index)[0])
        name = f"train/{index + 1:06d}.jpg"
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_a_second_use_makes_nothing(folder, data, caplog):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}
    with caplog.at_level(logging.INFO):
        FashionScenes(str(folder), train_examples=12, val_examples=6)
    assert "making" not in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.jpg")}


def test_what_an_interrupted_preparation_left_is_made_again(tmp_path):
    FashionScenes(str(tmp_path), train_examples=1, val_examples=1)
    (made,) = tmp_path.glob("fashion_scenes-*")
    facts = json.loads((made / "manifest.json").read_text())
    assert set(facts["annotations_sha256"]) == {"train", "val"}
    (tmp_path / ".fashion_scenes-leftover").mkdir()
    FashionScenes(str(tmp_path), train_examples=2, val_examples=1)
    assert len(list(tmp_path.glob("fashion_scenes-*"))) == 2


def test_a_cut_outs_mask_touches_all_four_sides():
    pictures, _ = read_pictures("fashion_mnist_10k", "train")
    random = np.random.RandomState(3)
    for number in range(30):
        colours, mask = cut_out(pictures[number], random)
        assert colours.shape == (*mask.shape, 3)
        assert mask.shape[0] <= SIDE
        assert mask.shape[1] <= SIDE
        assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()


def test_boxes_hold_what_changed_and_overlap_little():
    for scene, placed in scenes("val", count=6):
        assert scene.shape == (SIDE, SIDE, 3)
        for number, (_, box) in enumerate(placed):
            assert all(_overlap(box, other) < 0.15 for _, other in placed[:number])


def test_the_splits_share_no_column_of_the_photographs():
    train, val = _photos("train"), _photos("val")
    assert [photo.width for photo in train] == [COLUMN, COLUMN]
    assert [photo.width for photo in val] == [640 - COLUMN, 640 - COLUMN]


def test_the_statistics_are_those_of_the_training_scenes(data):
    pixels = torch.stack([torch.from_numpy(scene) for scene, _ in scenes("train", count=60)]).float() / 255
    assert pixels.mean((0, 1, 2)).tolist() == pytest.approx(data.mean, abs=0.02)
    assert pixels.std((0, 1, 2)).tolist() == pytest.approx(data.std, abs=0.02)


def test_counts_below_one_and_folders_that_cannot_be_written_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.val_examples=0"):
        FashionScenes(str(tmp_path), val_examples=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot hold fashion_scenes"):
        FashionScenes(str(tmp_path / "file"), train_examples=1, val_examples=1)


def test_stored_scenes_are_jpegs_of_the_scenes(folder, data):
    (made,) = folder.glob("fashion_scenes-*")
    scene, _ = next(scenes("train", count=1))
    with Image.open(made / "train" / "000001.jpg") as image:
        stored = np.array(image)
    assert np.abs(stored.astype(int) - scene).mean() < 6
