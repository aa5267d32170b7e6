"""The digest of a set follows its files and labels, not the place where they lie."""

import shutil

import numpy as np
import pytest
import torch

from tasks.data import FashionMnist, ImageFolderSet, Synthetic
from tasks.data.identity import data_digest
from tests.tasks.data.pictures import write_fashion_mnist, write_image_folder


def test_the_digest_tells_parts_order_and_contents_apart():
    parts = [["a", "b"], ["ab"], [b"a", b"b", b""], ["b", "a"], np.arange(3), np.arange(3.0), torch.arange(4)]
    digests = [data_digest(part) for part in parts] + [data_digest(["a"], ["b"]), data_digest(["b"], ["a"])]
    assert len(set(digests)) == len(digests)
    assert data_digest(torch.arange(3)) == data_digest(np.arange(3))
    assert data_digest(["a", 1]) == data_digest([b"a", "1"])


def folder(tmp_path):
    write_image_folder(tmp_path / "one")
    return "one", lambda path: ImageFolderSet(str(path), image_size=8)


def arrays(tmp_path):
    write_fashion_mnist(tmp_path / "one")
    return "one", lambda path: FashionMnist(root=str(path), image_size=8)


@pytest.mark.parametrize("make", [folder, arrays])
def test_a_set_that_is_moved_keeps_its_digest_and_a_part_of_it_has_another(tmp_path, make):
    name, load = make(tmp_path)
    shutil.copytree(tmp_path / name, tmp_path / "elsewhere")
    one, moved, part = load(tmp_path / name), load(tmp_path / "elsewhere"), load(tmp_path / name)
    part.hold_out(0.5)
    assert one.describe()["digest"] == moved.describe()["digest"] != part.describe()["digest"]


def test_another_file_of_the_same_number_changes_the_digest(tmp_path):
    root = write_image_folder(tmp_path)
    before = ImageFolderSet(str(root), image_size=8).describe()
    first = next((root / "train").rglob("*.JPEG"))
    first.rename(first.with_name("renamed.JPEG"))
    after = ImageFolderSet(str(root), image_size=8).describe()
    assert before.pop("digest") != after.pop("digest") and before == after
    assert "digest" not in Synthetic(train_examples=4, val_examples=4).describe()  # there are no files
