"""Readers of digits: MNIST's published layout in every place it is found, and what is wrong with a damaged one."""

import hashlib

import numpy as np
import pytest
import torch

from tasks.base import InputError
from tasks.data import digits
from tasks.data.digits import MnistDigits, SmallDigits
from tasks.rebias import assign_colours
from tests.tasks.rebias.sets import glyphs, write_mnist

TRAIN_IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize("below", ["MNIST/raw", "raw", ""])
@pytest.mark.parametrize("pack", [False, True])
def test_mnist_is_read_wherever_its_files_lie(tmp_path, below, pack):
    write_mnist(tmp_path / below, pack=pack)
    data = MnistDigits(str(tmp_path))
    for split, count, seed in (("train", 200, 0), ("test", 100, 1)):
        images, labels = glyphs(count, seed=seed)
        assert torch.equal(data.images[split], torch.from_numpy(images))
        assert data.labels[split].tolist() == labels.tolist()
        assert data.labels[split].dtype == torch.int64


def test_files_that_are_not_the_published_ones_have_a_name_of_their_own(tmp_path):
    facts = MnistDigits(str(write_mnist(tmp_path))).describe()
    assert facts["name"] == "mnist_other"
    assert facts["licence"] == "unknown"
    assert (facts["train_examples"], facts["val_examples"], facts["image_size"]) == (200, 100, 28)


def test_files_with_the_published_digests_are_mnist(tmp_path, monkeypatch):
    write_mnist(tmp_path)
    published = {
        split: tuple((name, hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()) for name, _ in files)
        for split, files in digits.MNIST_FILES.items()
    }
    monkeypatch.setattr(digits, "MNIST_FILES", published)
    assert MnistDigits(str(tmp_path)).name == "mnist"
    monkeypatch.setattr(digits, "MNIST_SIZES", {"train": 200, "test": 100})
    content = bytearray((tmp_path / TRAIN_IMAGES).read_bytes())
    content[500] ^= 1
    (tmp_path / TRAIN_IMAGES).write_bytes(bytes(content))
    with pytest.raises(
        InputError, match=r"data_root: .*train-images-idx3-ubyte has the size of MNIST's file and anoth"
    ):
        MnistDigits(str(tmp_path))


def test_a_truncated_file_is_named(tmp_path):
    path = write_mnist(tmp_path) / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: truncated"):
        MnistDigits(str(tmp_path))
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: not an idx file"):
        MnistDigits(str(tmp_path))


def test_a_truncated_archive_is_named(tmp_path):
    path = write_mnist(tmp_path, pack=True) / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"ubyte\.gz: not a complete gzip file"):
        MnistDigits(str(tmp_path))


def test_missing_folders_and_files_are_named_with_the_option(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"data_root is not set, and .*cache/mnist does not exist"):
        MnistDigits()
    with pytest.raises(InputError, match=r"data_root=/nowhere: does not exist"):
        MnistDigits("/nowhere")
    with pytest.raises(InputError, match=r"no train-images-idx3-ubyte \(or"):
        MnistDigits(str(tmp_path))
    (write_mnist(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"data_root: .*t10k-labels-idx1-ubyte: cannot be read"):
        MnistDigits(str(tmp_path))


def test_mnist_is_found_in_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    write_mnist(tmp_path / "mnist")
    assert len(MnistDigits().labels["train"]) == 200


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((3, 4, 5)), np.zeros(3), "not square pictures"),
        (np.zeros((3, 4, 4)), np.zeros(2), "3 pictures, but labels"),
        (np.zeros((3, 4, 4)), np.array([1, 10, 2]), "a label is 10"),
        (np.zeros((0, 4, 4)), np.zeros(0), "not square pictures"),
    ],
)
def test_pictures_and_labels_that_do_not_match_are_refused(images, labels, words):
    with pytest.raises(InputError, match=words):
        digits.check_digits(images.astype(np.uint8), labels.astype(np.uint8), name="file")


def test_the_small_digits_are_binary_and_split_once_for_all():
    data = SmallDigits()
    assert data.images["train"].shape == (1437, 8, 8)
    assert data.images["test"].shape == (360, 8, 8)
    assert set(data.images["train"].unique().tolist()) == {0, 255}
    assert torch.equal(SmallDigits().labels["test"], data.labels["test"])
    assert torch.bincount(data.labels["train"]).min() == 135
    assert data.describe()["name"] == "small_digits"


def test_three_of_the_papers_four_shares_leave_the_same_small_digits_conflicting():
    labels = SmallDigits().labels["train"]
    counts = [int((assign_colours(labels, rho, seed=0) != labels).sum()) for rho in (0.999, 0.997, 0.995, 0.990)]
    assert counts == [10, 10, 10, 20]
