import logging
from functools import partial

import pytest
import torch

from tasks.base import InputError
from tasks.retrieval import EmbeddingNet
from tasks.retrieval.networks import pool
from tests.tasks.retrieval.small import SMALL, make


def test_pooling_adds_the_mean_and_the_maximum_of_each_channel():
    maps = torch.tensor([[[[1.0, 2], [3, 6]], [[0, 0], [0, -4]]]])
    assert pool(maps).tolist() == [[9.0, -1.0]]


def test_resnet50_has_the_papers_parameters():
    net = EmbeddingNet("resnet50", 100)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert sum(n for name, n in sizes.items() if name.startswith("backbone.")) == 23_508_032
    assert sizes["embedding.weight"] + sizes["embedding.bias"] == 1_049_088
    assert sizes["proxies"] == 51_200
    assert net.proxies.norm(dim=1).mean().item() == pytest.approx(3.2, rel=0.01)


def test_embeddings_and_proxies_come_out_at_length_one():
    torch.manual_seed(0)
    net = SMALL(num_proxies=5)
    rows, proxies = net(torch.randint(0, 256, (3, 3, 32, 32)).to(torch.uint8))
    assert torch.allclose(torch.cat([rows, proxies]).norm(dim=1), torch.ones(8))
    assert SMALL(num_proxies=0)(torch.zeros(2, 3, 32, 32))[1].shape == (0, 16)


def test_frozen_statistics_stay_as_they_are_in_training_and_others_do_not():
    images = torch.rand(4, 3, 32, 32) * 255
    for freeze in (True, False):
        net = SMALL(num_proxies=0, freeze_statistics=freeze).eval().train()
        before = {name: value.clone() for name, value in net.named_buffers()}
        net(images)
        after = dict(net.named_buffers())
        assert all(torch.equal(before[name], after[name]) for name in before) is freeze


def test_measured_statistics_give_every_layer_of_a_random_network_the_same_scale():
    torch.manual_seed(0)
    net, images = SMALL(num_proxies=0), torch.rand(16, 3, 32, 32) * 255
    seen = []
    net.batch_norms()[-1].register_forward_hook(lambda _, __, output: seen.append(output.clone()))  # ReLU is in place
    net(images)
    net.measure_statistics([images])
    net(images)
    before, after = seen[0], seen[-1]
    assert after.mean((0, 2, 3)).abs().max() < 0.25  # statistics count one value less than they have
    assert (after.std((0, 2, 3)) - 1).abs().max() < 0.25
    assert before.std((0, 2, 3)).max() < 0.5  # random layers shrink what they pass on
    assert not any(norm.training for norm in net.batch_norms())


def test_batchnorms_scales_can_be_constants_under_the_same_names():
    free, fixed = SMALL(num_proxies=0), SMALL(num_proxies=0, train_bn_affine=False)
    names = {name for name, _ in free.named_parameters()} - {name for name, _ in fixed.named_parameters()}
    assert len(names) == 2 * len(free.batch_norms())
    assert free.state_dict().keys() == fixed.state_dict().keys()


def test_imagenet_weights_are_read_from_a_file_and_named(tmp_path, caplog, emoji):
    from torchvision.models import resnet18

    torch.manual_seed(1)
    net = resnet18()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "tasks.retrieval"):
        task = make(emoji, partial(EmbeddingNet, "resnet18", init="imagenet", weights=str(tmp_path / "weights.pth")))
    assert "network starts from ImageNet weights weights.pth" in caplog.text
    assert task.describe()["network_starts_from"] == "ImageNet weights weights.pth"
    assert torch.equal(task.networks["model"].backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


@pytest.mark.parametrize("content", ["other", "broken", "list", None])
def test_weights_that_are_missing_broken_or_of_another_network_are_named(tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "other":
        torch.save({"a": torch.zeros(1)}, path)
    elif content == "list":
        torch.save([1], path)
    elif content == "broken":
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"w\.pth"):
        EmbeddingNet("resnet18", 0, init="imagenet", weights=str(path))


def test_without_a_file_imagenet_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth is not on this machine; download"):
        EmbeddingNet("resnet50", 0, init="imagenet")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"backbone": "vgg"}, "model.backbone=vgg"), ({"features": 0}, "model.features=0"),
     ({"init": "best"}, "model.init=best"), ({"init": "imagenet", "width": 0.5}, "no weights of width 0.5")],
)  # fmt: skip
def test_a_network_that_cannot_be_is_named(options, words):
    given = {"backbone": "resnet18", **options}
    with pytest.raises(InputError, match=words):
        EmbeddingNet(given.pop("backbone"), 0, **given)


def test_efficientnet_lite_weights_fit_by_their_order_under_other_names(tmp_path):
    torch.manual_seed(2)
    state = EmbeddingNet("efficientnet_lite0", 0).backbone.state_dict()
    renamed = {f"block{i}.{name.rsplit('.', 1)[-1]}": value for i, (name, value) in enumerate(state.items())}
    torch.save({**renamed, "fc.weight": torch.zeros(1000, 1280), "fc.bias": torch.zeros(1000)}, tmp_path / "lite.pth")
    net = EmbeddingNet("efficientnet_lite0", 0, init="imagenet", weights=str(tmp_path / "lite.pth"))
    assert all(torch.equal(value, state[name]) for name, value in net.backbone.state_dict().items())
    rows, _ = net.eval()(torch.zeros(1, 3, 32, 32))
    assert rows.shape == (1, 512)
