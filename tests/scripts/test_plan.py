import re

import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d

from evidence.runs.run import ReadError
from launch import budget
from launch.costs import flop_counter
from scripts import plan
from tasks.networks import efficientnet, mobilenetv2, resnext50

TINY = (
    "scale=mini", "data=synthetic", "data.train_examples=64", "data.val_examples=40", "data.num_classes=10",
    "data.image_size=32", "model.width=0.125", "train.batch_size=16", "train.epochs=3", "train.device=cpu",
    "train.threads=1", "calibration=1",
)  # fmt: skip


def planned(tmp_path, *words):
    """Return the cells of the plan's table, one list a line, and the whole text."""
    assert plan.main([*TINY, f"out={tmp_path}", *words]) == 0
    (page,) = tmp_path.glob("plan-*.md")
    text = page.read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines], text


@pytest.mark.parametrize("word", ["gpu=v100", "gpu=here", "rate=500"])
def test_a_run_is_counted_and_its_hours_predicted(tmp_path, word):
    ((name, runs, steps, parameters, *_, hours, total),), text = planned(tmp_path, "experiment=imagenet-resnet18", word)
    assert name.startswith("imagenet-resnet18")
    assert (runs, steps) == ("1", "12")  # 3 epochs of 64 / 16 steps
    assert int(parameters.replace(",", "")) > 100_000
    assert 0 < float(hours) == pytest.approx(float(total), rel=0.01)
    assert "Assumptions" in text


def test_the_hours_times_a_price_are_dollars(tmp_path):
    _, text = planned(tmp_path, "experiment=imagenet-resnet18", "rate=1", "price=1e6")
    hours, dollars = re.search(r"([\d.e-]+) GPU hours, ([\d,]+) dollars at 1e\+06 a GPU hour", text).groups()
    assert float(dollars.replace(",", "")) == pytest.approx(1e6 * float(hours), rel=0.01)


def test_cells_that_differ_in_rate_decay_or_seed_are_counted_once(tmp_path):
    found = budget.lines_of({"sweep": "table-2", "scale": "full", "experiment": ""}, [])
    assert len(found) == 20  # four networks x five optimizers
    # SGDP's decay has two readings, which cost the same
    assert all(runs == (6 if "opt=sgdp" in label else 3) for label, (_, runs) in found.items())


def products(net, images):
    """Return the multiplications of a forward pass, by layer, from the layers' shapes."""
    found = {}

    def count(layer, inputs, output):
        # Each weight multiplies one number at each place of the output, or of a transposed convolution's input
        places = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        found[layer] = places.numel() // places.shape[1] * layer.weight.numel()

    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d | DeformConv2d):
            layer.register_forward_hook(count)
    net(images)
    return found


@pytest.mark.parametrize(("build", "published"), [(mobilenetv2, 0.300e9), (efficientnet, 0.39e9), (resnext50, 4.2e9)])
def test_flops_of_networks_with_grouped_convolutions_are_those_counted_by_hand(build, published):
    with torch.device("meta"):
        net, images = build(1000), torch.empty(2, 3, 224, 224)
    by_layer = products(net, images)
    forward, (first, *_) = sum(by_layer.values()), by_layer.values()
    assert forward / 2 == pytest.approx(published, rel=0.02)  # as the papers state for one picture
    with flop_counter() as counter:
        net(images).sum().backward()
    # Two FLOPs a multiplication; the gradients of weights and inputs cost as much each, but the pictures need none
    assert counter.get_total_flops() == 2 * (3 * forward - first)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d, DeformConv2d])
def test_both_gradients_of_a_convolution_cost_as_much_as_its_forward_pass(kind, groups):
    net = kind(6, 12, kernel_size=3, stride=2, groups=groups, bias=False)
    images = torch.zeros(2, 6, 9, 9, requires_grad=True)
    if kind is DeformConv2d:
        layer, net = net, lambda x: layer(x, torch.zeros(2, 18, 4, 4))
        forward = 2 * 16 * layer.weight.numel()
    else:
        (forward,) = products(net, images).values()
    with flop_counter() as counter:
        net(images).sum().backward()
    assert counter.get_total_flops() == 2 * 3 * forward


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "experiment=NAME or sweep=NAME"),
        (["experiment=imagenet-resnet18", "gpu=abacus"], "gpu=abacus"),
        (["experiment=imagenet-resnet18", "rate=fast"], "rate"),
        (["experiment=imagenet-resnet19"], "imagenet-resnet19"),
        (["experiment=imagenet-resnet18", "price=nan"], "price is .nan."),
        (["sweep=table-99"], "table-99"),
        (["experiment=imagenet-resnet18", "train.epoch=3"], "train.epoch"),
    ],
)
def test_what_cannot_be_planned_is_said(tmp_path, words, message):
    with pytest.raises(ReadError, match=message):
        plan.main([*words, f"out={tmp_path}"])
