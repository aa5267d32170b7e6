"""CIFAR-10 from files written here byte by byte as Python 2 wrote the published ones, and padded Fashion-MNIST."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from tasks.base import InputError, Shard
from tasks.data import CorruptImages, eval_batches, train_batches
from tasks.data.cifar import FOLDER, MD5, Cifar10, PaddedFashionMnist, read_batch
from tests.tasks.data.cifar_files import pictures, write_cifar10
from tests.tasks.data.pictures import write_fashion_mnist


@pytest.fixture
def root(tmp_path):
    return write_cifar10(tmp_path)


def test_pictures_and_labels_come_in_the_order_of_the_files(root):
    data = Cifar10(str(root), verify=False)
    assert data.num_examples == {"train": 20, "val": 4}
    assert data.num_classes == 10
    images, labels = pictures(4, 5)
    for index in range(4):
        image, label = data.eval_example(index)
        # A row holds 1,024 reds, then greens, then blues.
        assert torch.equal(image, torch.from_numpy(images[index].reshape(3, 32, 32)))
        assert label == labels[index]
    assert [data.train_example(i)[1] for i in range(20)] == [int(n) for s in range(5) for n in pictures(4, s)[1]]


def test_the_folder_itself_may_be_named_too(root):
    assert Cifar10(str(root / FOLDER), verify=False).num_examples["train"] == 20


def test_training_pictures_are_shifted_by_up_to_four_pixels_and_mirrored(root):
    data = Cifar10(str(root), verify=False)
    stored = torch.from_numpy(pictures(4, 0)[0][0].reshape(3, 32, 32).copy())
    padded = torch.nn.functional.pad(stored, (4, 4, 4, 4))
    crops = {(y, x): padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)}
    torch.manual_seed(0)
    seen = set()
    for _ in range(40):
        image, _ = data.train_example(0)
        assert image.dtype == torch.uint8
        found = [
            (k, flip)
            for k, crop in crops.items()
            for flip in (0, 1)
            if torch.equal(image, crop.flip(2) if flip else crop)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert {flip for _, flip in seen} == {0, 1}
    assert len({place for place, _ in seen}) > 20


def test_the_loader_reads_it(root):
    data = Cifar10(str(root), verify=False, crop_padding=0)
    corrupt = CorruptImages(data)
    batches = train_batches(data, Shard(), batch_size=8, seed=0, epoch=0, start=0, corrupt=corrupt, num_workers=0)
    assert [tuple(images.shape) for images, _ in batches] == [(8, 3, 32, 32)] * 2
    (batch,) = eval_batches(data, Shard(), batch_size=8, corrupt=corrupt, num_workers=0)
    assert batch[1].tolist() == pictures(4, 5)[1].tolist()


def test_a_set_that_was_not_compared_with_the_published_one_has_another_name(root, monkeypatch):
    assert Cifar10(str(root), verify=False).describe()["name"] == "cifar10_unverified"
    for name in MD5:
        digest = hashlib.md5((root / FOLDER / name).read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(MD5, name, digest)
    assert Cifar10(str(root)).describe()["name"] == "cifar10"


def test_the_published_checksums_are_those_of_the_six_files():
    assert sorted(MD5) == ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    assert MD5["test_batch"] == "40351d587109b95175f43aff81a1287e"


def test_a_wrong_checksum_names_the_file_both_digests_and_the_option(root):
    with pytest.raises(InputError, match=r"data_batch_1: damaged, \d+ bytes with md5 \w{32} where c99caf.*data_root"):
        Cifar10(str(root))


@pytest.mark.parametrize("kept", [0, 1, 100, 5000])
def test_a_truncated_file_is_named(root, kept):
    path = root / FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"data_batch_3: no readable CIFAR-10 batch .*data_root"):
        Cifar10(str(root), verify=False)


def test_a_missing_or_unreadable_file_is_named(root):
    path = root / FOLDER / "data_batch_2"
    path.unlink()
    with pytest.raises(InputError, match=r"data_batch_2: cannot be read \(No such file.*data_root"):
        Cifar10(str(root), verify=False)
    path.mkdir()
    with pytest.raises(InputError, match=r"data_batch_2: cannot be read \(Is a directory"):
        Cifar10(str(root), verify=False)


@pytest.mark.parametrize("given", [None, "", "nowhere"])
def test_a_root_without_the_files_is_an_error_that_names_the_option(tmp_path, given):
    with pytest.raises(InputError, match="data_root"):
        Cifar10(str(tmp_path / given) if given else given)


class Evil:
    def __reduce__(self):
        return (print, ("this code must not run",))


@pytest.mark.parametrize("value", [Evil(), {1, 2}, complex(1, 2), np.float64(1.0), slice(1)])
def test_nothing_but_arrays_text_numbers_lists_and_dicts_is_unpickled(tmp_path, capsys, value):
    path = tmp_path / "batch"
    images, labels = pictures(2, 0)
    path.write_bytes(pickle.dumps({"data": images, "labels": labels.tolist(), "more": value}, protocol=2))
    with pytest.raises(InputError, match=r"it asks for \S+, which a batch does not need"):
        read_batch(path, md5=None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("protocol", range(2, 6))
def test_copies_written_by_python_3_are_read_too(tmp_path, protocol):
    images, labels = pictures(3, 0)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({b"data": images, b"labels": labels.tolist()}, protocol=protocol))
    found, numbers = read_batch(path, md5=None)
    assert np.array_equal(found.reshape(3, -1), images)
    assert numbers == labels.tolist()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2], "no data of N x 3072 bytes"),
        ({"labels": [1]}, "no data of N x 3072 bytes"),
        ({"data": pictures(2, 0)[0][:, :10], "labels": [0, 1]}, "no data of N x 3072 bytes"),
        ({"data": pictures(2, 0)[0].astype(np.int64), "labels": [0, 1]}, "no data of N x 3072 bytes"),
        ({"data": pictures(2, 0)[0], "labels": [0]}, "no labels for its 2 pictures"),
        ({"data": pictures(0, 0)[0], "labels": []}, "no labels for its 0 pictures"),
        ({"data": pictures(2, 0)[0], "labels": [0, 10]}, "not a class number"),
        ({"data": pictures(2, 0)[0], "labels": [0, "1"]}, "not a class number"),
    ],
)
def test_a_file_that_is_no_batch_says_what_is_wrong_with_it(tmp_path, batch, message):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(batch))
    with pytest.raises(InputError, match=f"{path}: .*{message}"):
        read_batch(path, md5=None)


def test_padded_fashion_mnist_has_two_zeros_on_each_side_and_three_equal_channels(tmp_path):
    data = PaddedFashionMnist(root=str(write_fashion_mnist(tmp_path)))
    image, label = data.eval_example(3)
    assert (image.shape, image.dtype, label) == ((3, 32, 32), torch.uint8, 3)
    assert torch.equal(image[0], image[2])
    inner = torch.zeros(32, 32, dtype=torch.bool)
    inner[2:30, 2:30] = True
    assert not image[:, ~inner].any()
    assert image[:, inner].any()
    torch.manual_seed(0)
    views = {tuple(data.train_example(0)[0].flatten().tolist()) for _ in range(20)}
    assert len(views) == 2  # itself and its mirror image
    assert data.describe()["image_size"] == 32


def test_a_wrong_padding_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.crop_padding=-1"):
        PaddedFashionMnist(root=str(write_fashion_mnist(tmp_path)), crop_padding=-1)
