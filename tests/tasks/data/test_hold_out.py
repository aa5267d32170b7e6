"""Holding out training pictures: for choosing hyperparameters on what no table reports."""

import pytest
import torch

from tasks.base import InputError
from tasks.data import FashionMnist, ImageFolderSet, Synthetic
from tasks.data.cifar import Cifar10
from tests.tasks.data.cifar_files import write_cifar10
from tests.tasks.data.pictures import write_fashion_mnist, write_image_folder

MAKERS = {
    "fashion_mnist": lambda root: FashionMnist(root=str(write_fashion_mnist(root / "set")), image_size=28),
    "imagenet": lambda root: ImageFolderSet(str(write_image_folder(root)), image_size=16),
    "cifar10": lambda root: Cifar10(str(write_cifar10(root)), verify=False),
}


@pytest.fixture(params=sorted(MAKERS))
def pair(request, tmp_path_factory):
    """The same set twice: whole, and with a quarter of its training pictures held out."""
    whole, divided = (MAKERS[request.param](tmp_path_factory.mktemp("set")) for _ in range(2))
    divided.hold_out(0.25)
    return whole, divided


def test_every_training_picture_is_in_one_split_and_the_published_validation_pictures_in_none(pair):
    whole, divided = pair
    total = whole.num_examples["train"]
    assert divided.num_examples == {"train": total - round(total / 4), "val": round(total / 4)}
    assert divided.name == f"{whole.name}_held_out_0.25"
    labels = [divided.train_example(i)[1] for i in range(divided.num_examples["train"])]
    labels += [divided.eval_example(i)[1] for i in range(divided.num_examples["val"])]
    assert sorted(labels) == sorted(whole.train_example(i)[1] for i in range(total))


def test_held_out_pictures_are_seen_as_in_evaluation(pair):
    _, divided = pair
    one, other = divided.eval_example(0), divided.eval_example(0)
    assert torch.equal(one[0], other[0])
    assert divided.location("val", 0)


def test_fashion_mnist_holds_out_the_very_training_pictures(tmp_path):
    whole, divided = (MAKERS["fashion_mnist"](tmp_path / str(i)) for i in range(2))
    divided.hold_out(0.5)
    stored = {bytes(image.numpy()) for image in whole._images["train"]}
    held = {bytes(divided.eval_example(i)[0][:1].numpy()) for i in range(20)}
    assert len(held) == 20
    assert held <= stored


@pytest.mark.parametrize("share", [0, 1, -0.1, 0.001, float("nan")])
def test_a_share_that_leaves_a_split_empty_is_refused(tmp_path, share):
    data = MAKERS["fashion_mnist"](tmp_path)
    with pytest.raises(InputError, match=r"task\.validation"):
        data.hold_out(share)
    assert data.num_examples == {"train": 40, "val": 20}


def test_a_set_that_cannot_be_divided_says_so():
    with pytest.raises(InputError, match="the set synthetic has no way"):
        Synthetic(train_examples=8, val_examples=4, image_size=8, num_classes=2).hold_out(0.5)
