import hashlib
import json

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from scripts.prepare.fashion_mnist import PUBLISHED_SHA256, compress, describe_files
from tasks.base import InputError
from tasks.data import FashionMnist
from tasks.data.fashion_mnist import EMBEDDED, FILES, read_manifest, read_pictures
from tasks.data.idx import decompress, format_idx, parse_idx
from tests.tasks.data.pictures import write_fashion_mnist


def read_all(name):
    return parse_idx(decompress(EMBEDDED / name), name)


def test_the_part_in_the_repository_is_balanced_and_under_nine_megabytes():
    data = FashionMnist("fashion_mnist_20k")
    assert (data.name, data.num_examples) == ("fashion_mnist_20k", {"train": 10_000, "val": 10_000})
    for split in ("train", "val"):
        assert np.bincount(read_pictures("fashion_mnist_20k", split)[1]).tolist() == [1000] * 10
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) < 9_000_000


def test_all_published_test_pictures_are_in_the_repository():
    for name in FILES["val"]:
        assert hashlib.sha256(decompress(EMBEDDED / name)).hexdigest() == PUBLISHED_SHA256[name]


def test_the_set_with_1000_validation_pictures_is_the_one_of_committed_records():
    facts = FashionMnist("fashion_mnist_10k").describe()
    assert (facts["name"], facts["train_examples"], facts["val_examples"]) == ("fashion_mnist_10k", 10_000, 1_000)
    assert facts["digest"] == "511eb1b8110b7ea3"  # as when the 1,000 pictures were stored alone
    assert "first 100 test pictures of each class" in facts["source"]
    assert np.bincount(read_pictures("fashion_mnist_10k", "val")[1]).tolist() == [100] * 10


def test_the_manifest_in_the_repository_holds_for_its_files():
    manifest = read_manifest(EMBEDDED)
    assert manifest["name"] == "fashion_mnist_20k"
    assert "Zalando SE" in (EMBEDDED / "NOTICE").read_text(encoding="utf-8")
    for name, entry in manifest["files"].items():
        assert (EMBEDDED / name).stat().st_size == entry["bytes"]
        assert len(read_all(name)) == entry["count"]


def test_mean_and_deviation_are_those_of_the_pictures():
    data = FashionMnist()
    pixels = read_all(FILES["train"][0]) / 255
    assert abs(pixels.mean() - data.mean[0]) < 0.002
    assert abs(pixels.std() - data.std[0]) < 0.002


def test_pictures_are_grey_in_three_channels_at_the_size_asked_for():
    data = FashionMnist(image_size=32)
    image, label = data.eval_example(3)
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.uint8
    assert torch.equal(image[0], image[2])
    pictures, labels = read_pictures("fashion_mnist_10k", "val")
    assert label == labels[3]
    stored = torch.from_numpy(pictures[3:4])
    expected = v2.Resize([32, 32], v2.InterpolationMode.BILINEAR, antialias=True)(stored)
    assert torch.equal(image[:1], expected)
    assert data.train_example(0)[0].shape == (3, 32, 32)


def test_a_set_describes_itself_by_the_name_really_used(tmp_path):
    data = FashionMnist("fashion_mnist", str(write_fashion_mnist(tmp_path)))
    facts = data.describe()
    assert facts["name"] == "fashion_mnist_subset"
    assert (facts["train_examples"], facts["val_examples"], facts["classes"]) == (40, 20, 10)
    assert facts["image_size"] == 64
    assert "Zalando" in facts["licence"]
    assert facts["source"] == "made up, version 0"
    json.dumps(facts)  # it goes into run.json


def test_the_full_set_that_is_not_prepared_names_make_data(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    with pytest.raises(InputError, match="make data"):
        FashionMnist("fashion_mnist")


def test_the_cache_folder_can_be_moved(tmp_path, monkeypatch):
    write_fashion_mnist(tmp_path / "fashion_mnist")
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    assert FashionMnist("fashion_mnist").num_examples == {"train": 40, "val": 20}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"name": "cifar"}, "data.name=cifar"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale"),
        ({"crop_scale": (0.9, 0.5)}, "data.crop_scale"),
        ({"crop_scale": (0.5, float("nan"))}, "data.crop_scale"),
        ({"root": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
    ],
)
def test_a_wrong_option_is_named(arguments, option):
    with pytest.raises(InputError, match=option):
        FashionMnist(**arguments)


def rewrite(folder, name, array):
    """Replace a file and its checksum, so that only its content is wrong."""
    (folder / name).write_bytes(compress(format_idx(array)))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = describe_files(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("position", "array", "rule"),
    [
        (0, np.zeros((40, 27, 28), np.uint8), "not pictures of 28x28"),
        (0, np.zeros(40, np.uint8), "not pictures of 28x28"),
        (0, np.zeros((39, 28, 28), np.uint8), "39 pictures, but labels"),
        (1, np.full(40, 10, np.uint8), "go beyond 9"),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, position, array, rule):
    folder = write_fashion_mnist(tmp_path)
    rewrite(folder, FILES["train"][position], array)
    with pytest.raises(InputError, match=rule):
        FashionMnist(root=str(folder))


@pytest.mark.parametrize("damage", ["missing", "not json", "no files", "no entry", "[]"])
def test_a_broken_manifest_is_named(tmp_path, damage):
    path = write_fashion_mnist(tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["files"][FILES["val"][1]]
    texts = {"not json": "{", "no files": "{}", "no entry": json.dumps(manifest), "[]": "[]"}
    path.unlink() if damage == "missing" else path.write_text(texts[damage])
    with pytest.raises(InputError, match=r"manifest\.json"):
        FashionMnist(root=str(tmp_path))


def test_a_damaged_file_of_a_prepared_set_is_named(tmp_path):
    folder = write_fashion_mnist(tmp_path)
    name = FILES["train"][0]
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(InputError, match=f"{name}: sha256 differs"):
        FashionMnist(root=str(folder))
