"""CenterNet and SSD: the published sizes, maps and boxes, gradients everywhere, and which weights have no scale."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vgg16_bn
from torchvision.ops import DeformConv2d

from adamp import scale_invariant_parameters
from tasks.base import InputError
from tasks.detection import CenterNet, Ssd
from tasks.detection.centernet import ModulatedConv
from tasks.detection.detector import Objects

SMALL = partial(CenterNet, 3, image_size=64, width=0.125, init="random")
SMALL_SSD = partial(Ssd, 3, width=0.0625, init="random")


def size(network):
    return sum(p.numel() for p in network.parameters())


def mean(count):
    return count.float()


def some(*owners, side=64):
    generator = torch.Generator().manual_seed(1)
    corners = side * (0.1 + 0.4 * torch.rand(len(owners), 2, generator=generator))
    return Objects(
        torch.cat([corners, corners + 0.3 * side], 1), torch.arange(len(owners)) % 3, torch.tensor(owners).long()
    )


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("deformable", "total", "up"), [(True, 14_437_349, 3_144_593), (False, 15_820_372, None)]
)  # fmt: skip
def test_centernet_has_the_published_parameters(deformable, total, up):
    net = CenterNet(80, deformable=deformable, init="random")
    assert size(net) == total
    assert size(net.backbone) == 11_176_512
    if up:
        assert (size(net.up), size(net.heads)) == (up, 116_244)


@pytest.mark.parametrize(
    ("start", "deformable", "transposed", "hidden"),
    [
        ("published", True, [22.0, 15.6, 11.0], 0.19),
        ("published", False, [1.45, 1.02, 1.02], 4.6),
        ("plain", True, [9.2, 6.5, 4.6], 0.19),
        ("plain", False, [13.1, 9.2, 9.2], 0.38),
    ],
)
def test_weights_that_decide_effective_steps_start_at_the_lengths_that_the_name_says(
    start, deformable, transposed, hidden
):
    net = CenterNet(80, deformable=deformable, init="random", start=start)
    norms = [layer.weight.norm().item() for layer in net.up if isinstance(layer, nn.ConvTranspose2d)]
    assert norms == pytest.approx(transposed, abs=0.05 if transposed[0] > 2 else 0.005)
    for name in ("size", "offset"):
        assert net.heads[name][0].weight.norm().item() == pytest.approx(hidden, rel=0.02)
        assert net.heads[name][2].weight.std().item() == pytest.approx(0.001, rel=0.3)


def test_ssds_default_boxes_are_torchvisions_whose_centres_are_not_clipped():
    boxes = Ssd(80, image_size=300, init="random").default_boxes
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert int(((centres < 0) | (centres > 300)).any(1).sum()) == 114


@pytest.mark.parametrize(
    ("image_size", "total", "boxes"), [(300, 34_313_654, 8732), (512, 36_046_644, 24_564)]
)  # fmt: skip
def test_ssd_has_the_published_parameters_and_default_boxes(image_size, total, boxes):
    net = Ssd(80, image_size=image_size, init="random")
    assert size(net) == total
    assert net.default_boxes.shape == (boxes, 4)


@pytest.mark.parametrize(("image_size", "maps"), [(300, [38, 19, 10, 5, 3, 1]), (512, [64, 32, 16, 8, 4, 2, 1])])
def test_ssds_maps_are_the_papers(image_size, maps):
    net = SMALL_SSD(image_size=image_size).eval()
    with torch.no_grad():
        found = net.backbone(torch.rand(1, 3, image_size, image_size))
        logits, codes = net(torch.rand(1, 3, image_size, image_size))
    assert [each.shape[-1] for each in found] == maps
    assert logits.shape == (1, len(net.default_boxes), 4)
    assert codes.shape == (1, len(net.default_boxes), 4)


def test_centernets_maps_are_a_quarter_of_the_view_and_start_as_the_published_code():
    net = SMALL()
    heat, sizes, offsets = net(torch.rand(2, 3, 64, 64))
    assert (heat.shape, sizes.shape, offsets.shape) == ((2, 3, 16, 16), (2, 2, 16, 16), (2, 2, 16, 16))
    assert (net.heads["heat"][2].bias == -2.19).all()
    for name in ("size", "offset"):
        assert net.heads[name][0].weight.std().item() == pytest.approx(0.001, rel=0.1)
        assert (net.heads[name][2].bias == 0).all()


@pytest.mark.parametrize(("deformable", "channels"), [(True, 8), (False, 32)])
def test_three_stages_give_the_same_maps_with_two_doublings(deformable, channels):
    net = SMALL(stages=3, deformable=deformable).eval()
    assert [output.shape[1:] for output in net(torch.rand(1, 3, 64, 64))] == [(3, 16, 16), (2, 16, 16), (2, 16, 16)]
    doublings = [layer for layer in net.up if isinstance(layer, nn.ConvTranspose2d)]
    assert len(doublings) == 2 and doublings[-1].out_channels == channels
    assert not list(net.backbone.layer4.parameters())  # none that would never see a gradient


def test_a_modulated_convolution_begins_as_half_a_plain_one():
    layer = ModulatedConv(6, 4)
    plain = nn.Conv2d(6, 4, 3, padding=1, bias=False)
    plain.weight = layer.conv.weight
    x = torch.randn(2, 6, 9, 9)
    with torch.no_grad():
        expected = plain(x) / 2 + layer.conv.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)


def test_deformable_layers_run_under_bfloat16_autocast_on_the_cpu():
    net = SMALL().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(torch.isfinite(output).all() for output in net(torch.rand(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("make", "side"),
    [(SMALL, 64), (partial(SMALL, deformable=False), 64), (partial(SMALL, stages=3), 64), (SMALL_SSD, 300)],
)
def test_gradients_reach_every_parameter(make, side):
    net = make()
    if side == 300:  # objects of every size, so that the heads of all maps have something to learn
        edges = torch.tensor(
            [
                [10.0, 10, 30, 30],
                [50, 50, 100, 100],
                [100, 20, 230, 140],
                [20, 20, 200, 210],
                [5, 5, 270, 270],
                [0, 0, 300, 300],
            ]
        )
        objects = Objects(edges, torch.arange(6) % 3, torch.zeros(6, dtype=torch.int64))
    else:
        objects = some(0, 0, 1, side=side)
    loss, _ = net.losses(net(torch.randn(2, 3, side, side)), objects, mean=mean)
    loss.backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize(("make", "side"), [(SMALL, 64), (SMALL_SSD, 300)])
def test_a_batch_without_objects_has_a_finite_loss_and_finite_gradients(make, side):
    net = make()
    loss, _ = net.losses(net(torch.randn(2, 3, side, side)), some(side=side), mean=mean)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_ssds_loss_is_torchvisions_and_a_count_over_processes_only_scales_it():
    net = SMALL_SSD()
    outputs = [output.detach() for output in net(torch.randn(2, 3, 300, 300))]
    objects = some(0, 0, 1, side=300)
    loss, parts = net.losses(tuple(outputs), objects, mean=mean)
    doubled, _ = net.losses(tuple(outputs), objects, mean=lambda count: 2 * count.float())
    assert doubled.item() == pytest.approx(loss.item() / 2, rel=1e-5)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()))


def test_ssd_finds_the_boxes_that_its_targets_encode():
    net = SMALL_SSD()
    boxes = torch.tensor([[40.0, 60, 140, 150], [180, 30, 280, 260]])
    codes = net.box_coder.encode_single(boxes[torch.zeros(len(net.default_boxes), dtype=torch.long)], net.default_boxes)
    other = net.box_coder.encode_single(boxes[torch.ones(len(net.default_boxes), dtype=torch.long)], net.default_boxes)
    logits = torch.zeros(1, len(codes), 4)
    logits[..., 0] = 20
    logits[0, 5, 2], logits[0, 6000, 3] = 40, 38
    codes[6000] = other[6000]
    (found,) = net.detections((logits, codes[None]))
    torch.testing.assert_close(found[:, :4], boxes, atol=0.5, rtol=0)
    assert found[:, 5].tolist() == [1, 2]


def share(net, names):
    return sum(p.numel() for name, p in net.named_parameters() if name in names) / size(net)


def test_the_convolutions_before_batch_norm_have_no_scale_and_transposed_ones_by_columns():
    net = SMALL()
    example = torch.rand(3, 3, 64, 64)
    whole = scale_invariant_parameters(net, example)
    filters = scale_invariant_parameters(net, example, per_filter=True)
    transposed = {f"up.{number}.weight" for number, layer in enumerate(net.up) if isinstance(layer, nn.ConvTranspose2d)}
    deformable = {name for name, _ in net.named_parameters() if name.endswith(".conv.weight") and name.startswith("up")}
    convs = {f"backbone.{name}.weight" for name, m in net.backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(transposed) == len(deformable) == 3
    assert filters.keys() == convs | deformable
    assert whole == {**filters, **dict.fromkeys(transposed, "columns")}
    assert not any("heads" in name or "places" in name for name in whole)


def test_the_shares_of_weights_without_scale_are_those_of_the_full_networks():
    net = CenterNet(80, init="random")
    convs = [m for m in net.backbone.modules() if isinstance(m, nn.Conv2d)]
    deformable = [m for m in net.up.modules() if isinstance(m, DeformConv2d)]
    transposed = [m for m in net.up.modules() if isinstance(m, nn.ConvTranspose2d)]
    counts = [sum(m.weight.numel() for m in found) for found in (convs, deformable, transposed)]
    assert counts == [11_166_912, 1_548_288, 1_376_256]
    assert (counts[0] + counts[1]) / size(net) == pytest.approx(0.881, abs=5e-4)
    assert counts[2] / size(net) == pytest.approx(0.095, abs=5e-4)


def test_of_ssd_the_thirteen_convolutions_of_vgg_have_no_scale():
    net = SMALL_SSD(width=0.03125)
    found = scale_invariant_parameters(net, torch.rand(2, 3, 300, 300))
    vgg = {
        f"backbone.{name}.weight"
        for name, m in net.backbone.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.dilation == (1, 1) and m.stride == (1, 1)
        and m.padding == (1, 1)
    }  # fmt: skip
    assert len(vgg) == 13
    assert found.keys() == vgg


@pytest.mark.parametrize(
    ("make", "reference", "name"),
    [(CenterNet, resnet18, "resnet18-f37072fd.pth"), (Ssd, vgg16_bn, "vgg16_bn-6c64b313.pth")],
)
def test_imagenet_weights_come_from_a_local_file_in_torchvisions_layout(make, reference, name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(InputError, match=rf"{name} is not on this machine.*model.init=random"):
        make(3)
    if reference is vgg16_bn:  # without the 120 million weights of its classifier
        state = {f"features.{key}": value for key, value in vgg16_bn_features().items()}
        state["classifier.0.weight"] = torch.zeros(1)
    else:
        state = reference().state_dict()
    torch.save(state, tmp_path / name)
    net = make(3)
    first = next(iter(state.values()))  # of the first convolution
    assert net.origin == f"ImageNet weights {name}"
    assert any(torch.equal(p, first) for p in net.parameters())
    assert not any(torch.equal(p, first) for p in make(3, init="random").parameters())
    with pytest.raises(InputError, match=r"fit model\.width=1 only"):
        make(3, width=0.5)


def vgg16_bn_features():
    from torchvision.models.vgg import cfgs, make_layers

    return make_layers(cfgs["D"], batch_norm=True).state_dict()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_damaged_or_foreign_weights_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth"):
        CenterNet(3, weights=str(path))
    with pytest.raises(InputError, match="is no file"):
        CenterNet(3, weights=str(tmp_path / "nothing.pth"))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (CenterNet, {"image_size": 100}, "model.image_size=100"),
        (CenterNet, {"image_size": 32}, "model.image_size=32"),
        (CenterNet, {"stages": 2}, "model.stages=2"),
        (CenterNet, {"head_channels": 0}, "model.head_channels=0"),
        (CenterNet, {"size_weight": np.nan}, "model.size_weight=nan"),
        (CenterNet, {"init": "coco"}, "model.init=coco"),
        (CenterNet, {"width": 0.3}, "model.width=0.3"),
        (Ssd, {"image_size": 128}, "model.image_size=128"),
    ],
)
def test_options_out_of_range_are_refused(make, options, words):
    with pytest.raises(InputError, match=words):
        make(3, **{"init": "random", **options})


def test_batch_norm_behind_a_map_of_one_cell_asks_for_two_pictures():
    net = SMALL_SSD(bn_extras=True)
    with pytest.raises(InputError, match=r"bn_extras=true.*two pictures in a micro-batch"):
        net(torch.rand(1, 3, 300, 300))
    net.eval()(torch.rand(1, 3, 300, 300))


def test_merging_with_the_mirror_image_is_symmetric():
    net = SMALL().eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        one, other = net(x), net(x.flip(3))
        merged, turned = net.merged(one, other), net.merged(other, one)
    for a, b in zip(merged[:2], turned[:2], strict=True):
        torch.testing.assert_close(a, b.flip(3), atol=1e-4, rtol=1e-4)
