"""9-Class ImageNet: the reader of its trees and clusters, and the task's scores."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from tasks.base import InputError, Shard, StepContext
from tasks.data.imagenet9 import CLASS_OF, SYNSETS, SynsetPictures
from tasks.data.imagenet9 import ImageNet9 as Pictures
from tasks.data.textures import FashionTextures, gram_matrices
from tasks.rebias import ImageNet9, bagnet18, cell_accuracy, feature_resnet18
from tests.tasks.rebias.sets import HARD, write_clusters, write_imagenet9, write_imagenet_a
from tests.tasks.training import evaluate

NETWORKS = {"f": partial(feature_resnet18, width=0.0625), "g": partial(bagnet18, width=0.0625)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet9")
    root = write_imagenet9(folder / "imagenet")
    write_clusters(folder / "clusters.csv", root)
    write_clusters(folder / "shuffled.csv", root, shuffled=True)
    write_imagenet_a(folder / "imagenet-a")
    return folder


def read(tree, clusters="clusters.csv", **options):
    return Pictures(str(tree / "imagenet"), str(tree / clusters), **{"image_size": 32, **options})


def make(data, **options):
    torch.manual_seed(0)
    return ImageNet9(data, **{**NETWORKS, "batch_size": 8, "seed": 0, "min_cell_count": 2, **options})


# Data -----------------------------------------------------------------------------------------------------------


def test_the_groups_are_forty_two_synsets_in_nine_classes():
    assert len(CLASS_OF) == 42
    assert [len(synsets) for synsets in SYNSETS.values()] == [5, 5, 3, 5, 5, 5, 5, 4, 5]
    assert len(set(HARD)) == 21


def test_pictures_are_labelled_by_group_and_other_folders_left_alone(tree):
    data = read(tree, imagenet_a=str(tree / "imagenet-a"))
    assert data.num_examples == {"train": 84, "val": 84}
    assert np.bincount(data.val_labels).tolist() == [10, 10, 6, 10, 10, 10, 10, 8, 10]
    for index in (0, 40, 83):
        image, label = data.train_example(index)
        assert image.shape == (3, 32, 32)
        synset = data.location("train", index).split("/")[-2]
        assert synset in SYNSETS[data.classes[label]]
        assert data.eval_example(index)[1] == data.val_labels[index]
    assert data.hard.num_examples == {"train": 0, "val": 21}
    facts = data.describe()
    assert facts["clusters"] == "own"
    assert (facts["name"], facts["imagenet_a_examples"]) == ("imagenet9_subset", 21)


def test_clusters_belong_to_pictures_whatever_the_order_of_rows(tree):
    one, other = read(tree), read(tree, "shuffled.csv")
    for a, b in zip(one.clusterings, other.clusterings, strict=True):
        assert np.array_equal(a, b)
    assert one.clusterings[0].tolist() == [k % 3 for k in range(84)]


def test_missing_or_wrong_folders_are_named_with_their_option(tree, tmp_path):
    with pytest.raises(InputError, match="data_root is not set"):
        Pictures(None, None)
    with pytest.raises(InputError, match="data_root=/nowhere: does not exist"):
        Pictures("/nowhere", None)
    with pytest.raises(InputError, match="lacks 42 of the 42 synsets, first n02085620"):
        Pictures(str(tmp_path), None)
    with pytest.raises(InputError, match=r"data\.imagenet_a=/nowhere: does not exist"):
        read(tree, imagenet_a="/nowhere")
    with pytest.raises(InputError, match="holds none of the 42 synsets"):
        read(tree, imagenet_a=str(tmp_path))
    (tmp_path / "n02085620").mkdir()
    with pytest.raises(InputError, match="n02085620: holds no pictures"):
        read(tree, imagenet_a=str(tmp_path))


def test_missing_or_wrong_clusters_are_named_with_their_option(tree, tmp_path):
    root = str(tree / "imagenet")
    with pytest.raises(InputError, match=r"data\.clusters is not set"):
        Pictures(root, None)
    with pytest.raises(InputError, match=r"data\.clusters=/nowhere\.csv: cannot be read"):
        Pictures(root, "/nowhere.csv")
    lines = (tree / "clusters.csv").read_text().splitlines()
    wrong = tmp_path / "wrong.csv"
    for text, words in [
        ("", "must have the columns"),
        ("\n".join([lines[0].replace("cluster3", "c3"), *lines[1:]]), "must have the columns"),
        ("\n".join(lines[:-3]), "has no row for 3 pictures, first"),
        ("\n".join(lines).replace("turtle", "tortoise"), "calls n01664065/.* tortoise, it is a turtle"),
        ("\n".join([*lines[:-1], lines[-1] + "x"]), "a cluster is no whole number"),
        ("\n".join([*lines[:-1], lines[-1].rpartition(",")[0]]), "a cluster is no whole number"),
    ]:
        wrong.write_text(text)
        with pytest.raises(InputError, match=words):
            Pictures(root, str(wrong))
    wrong.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a CSV file"):
        Pictures(root, str(wrong))


@pytest.mark.parametrize(("option", "value"), [("image_size", 0), ("resize_ratio", 0.5), ("crop_scale", (0.5, 0.1))])
def test_a_wrong_option_of_the_pictures_is_named(tree, option, value):
    with pytest.raises(InputError, match=f"data.{option}="):
        read(tree, **{option: value})


def test_gram_matrices_tell_textures_and_not_places():
    generator = torch.Generator().manual_seed(0)
    responses = torch.rand(3, 4, 6, 6, generator=generator)
    grams = gram_matrices(responses)
    assert grams.shape == (3, 16)
    torch.testing.assert_close(grams.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(grams, gram_matrices(responses.roll((2, 3), (2, 3))))
    expected = torch.einsum("chw,dhw->cd", responses[1], responses[1]).flatten()
    torch.testing.assert_close(grams[1], expected / expected.norm())


def test_the_stand_in_has_three_clusterings_that_are_the_same_each_time():
    data = FashionTextures(image_size=28)
    assert [len(np.unique(clusters)) for clusters in data.clusterings] == [9, 9, 9]
    assert all(np.array_equal(a, b) for a, b in zip(data.clusterings, FashionTextures().clusterings, strict=True))
    large = [sum(np.unique(data.val_labels * 9 + c, return_counts=True)[1] >= 10) for c in data.clusterings]
    assert min(large) > 20
    assert data.describe()["clusters"] == "random 5x5 filters"


# The task -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_scores_are_plain_cell_and_imagenet_a_accuracy(tree, count):
    data = read(tree, imagenet_a=str(tree / "imagenet-a"))
    task = make(data, eval_batch_size=9)
    with torch.no_grad():
        x = task.normalise(torch.stack([data.eval_example(k)[0] for k in range(84)]))
        found = {role: net.eval()(x)[0].argmax(1).numpy() for role, net in task.networks.items()}
    scores = task.score("biased", evaluate(task, "biased", count=count))
    for role, name in (("f", "top1"), ("g", "g_top1")):
        assert scores[f"biased/{name}"] == pytest.approx(100 * (found[role] == data.val_labels).mean())
        cells = cell_accuracy(data.val_labels, found[role], data.clusterings, 2)
        assert scores[f"unbiased/{name}"] == pytest.approx(100 * cells)
    assert task.monitor in scores
    hard = task.score("imagenet_a", evaluate(task, "imagenet_a"))
    assert set(hard) == {"imagenet_a/top1", "imagenet_a/g_top1"}


def test_a_picture_that_cannot_be_read_does_not_shift_the_clusters(tmp_path):
    root = write_imagenet9(tmp_path / "imagenet")
    clusters = write_clusters(tmp_path / "clusters.csv", root)
    data = Pictures(str(root), str(clusters), image_size=32)
    whole = make(data)
    before = [int(number) for labels, _ in evaluate(whole, "biased") for number in labels]
    broken = sorted((root / "val").rglob("n0*/*.JPEG"))[0]
    broken.write_bytes(b"no picture")
    after = [int(number) for labels, _ in evaluate(make(data), "biased") for number in labels]
    assert before == list(range(84))
    assert after == list(range(1, 84))
    assert whole.notices() == {}
    assert make(data).score("biased", evaluate(make(data), "biased"))["biased/top1"] >= 0


@pytest.mark.parametrize(("method", "roles"), [("rebias", {"f", "g"}), ("vanilla", {"f"}), ("biased", {"g"})])
def test_a_step_of_each_method_and_inputs_of_each_network(tree, method, roles):
    task = make(read(tree), method=method)
    updates = list(task.updates(task.networks, next(iter(task.train_batches(0, Shard()))), StepContext()))
    assert {update.network for update in updates} == roles
    assert all(update.loss.isfinite() for update in updates)
    inputs = task.example_inputs()
    assert set(inputs) == roles
    assert all(len(inputs[role][0]) == 8 for role in roles)


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("min_cell_count", 1000, "task.min_cell_count=1000"),
        ("eval_batch_size", 0, "task.eval_batch_size=0"),
        ("num_workers", -1, "train.num_workers=-1"),
        ("batch_size", 3, "train.batch_size=3"),
    ],
)
def test_a_wrong_option_of_the_task_is_named(tree, option, value, name):
    with pytest.raises(InputError, match=name):
        make(read(tree), **{option: value})


def test_decoding_errors_name_the_file(tmp_path):
    synset = tmp_path / "n02085620"
    synset.mkdir()
    Image.new("RGB", (8, 8)).save(synset / "a.png")
    (synset / "b.jpg").write_bytes(b"\xff\xd8 truncated")
    data = SynsetPictures(
        {"val": tmp_path}, name="x", image_size=8, resize_ratio=1.0, crop_scale=(1.0, 1.0), mean=(0, 0, 0),
        std=(1, 1, 1), licence="", max_corrupt=None,
    )  # fmt: skip
    assert data.eval_example(0)[0].shape == (3, 8, 8)
    with pytest.raises(Exception, match=r"b\.jpg"):
        data.eval_example(1)
