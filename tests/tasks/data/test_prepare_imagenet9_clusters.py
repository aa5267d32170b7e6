"""Checking and making the texture clusters of 9-Class ImageNet."""

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from scripts.prepare import imagenet9_clusters as script
from tasks.data.imagenet9 import ImageNet9
from tests.tasks.rebias.sets import write_clusters, write_imagenet9


def test_a_file_is_checked_and_told_from_the_published_one(tmp_path, capsys):
    clusters = write_clusters(tmp_path / "clusters.csv", write_imagenet9(tmp_path / "imagenet", train=1))
    assert script.main([f"file={clusters}"]) == 0
    said = capsys.readouterr().out
    assert "84 pictures, cells of at least 10: 0, 0, " in said
    assert "not the published clusters" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "file is not set"),
        (["file=/nowhere.csv"], "file=/nowhere.csv: does not exist"),
        (["mode=guess"], "mode=guess: must be check or make"),
        (["mode=make"], "data_root is not set"),
        (["mode=make", "data_root=/nowhere"], "data_root=/nowhere: does not exist"),
        (["layer=x"], "layer=x: must be a whole number"),
        (["cluster=3"], "cluster=3: not an option"),
    ],
)
def test_a_wrong_argument_is_named(arguments, words, capsys):
    assert script.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_wrong_weights_are_named(tmp_path, capsys):
    (tmp_path / "wrong.pth").write_bytes(b"no checkpoint")
    for weights, words in (("", "weights=not set"), (str(tmp_path / "wrong.pth"), "is no checkpoint of torchvision's")):
        assert script.main(["mode=make", f"data_root={tmp_path}", f"weights={weights}"]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(ValueError, match="layer=32"):
        script.vgg_features("", 32)


def test_fifteen_modules_of_vgg_end_with_a_convolution_of_256_channels():
    last = vgg16(weights=None).features[:15][-1]
    assert isinstance(last, nn.Conv2d)
    assert last.out_channels == 256


def test_made_clusters_are_read_back_for_every_picture(tmp_path, monkeypatch, capsys):
    root, out = write_imagenet9(tmp_path / "imagenet", train=1), tmp_path / "made.csv"
    torch.manual_seed(0)
    filters = nn.Conv2d(3, 4, 7, stride=7)
    monkeypatch.setattr(script, "vgg_features", lambda weights, layer: filters)  # VGG16 itself would take minutes
    assert script.main(["mode=make", f"data_root={root}", f"out={out}"]) == 0
    assert "not comparable" in capsys.readouterr().out
    data = ImageNet9(str(root), str(out), image_size=32)
    assert all(clusters.min() >= 0 and clusters.max() < 9 for clusters in data.clusterings)
    first = out.read_bytes()
    assert script.main(["mode=make", f"data_root={root}", f"out={out}"]) == 0
    assert out.read_bytes() == first
