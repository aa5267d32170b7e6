"""Adversarial training of small networks: the attack's ball, each network attacked by its own gradient, the scores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tasks.base import InputError, Shard, StepContext
from tasks.engine.wide import WideNetwork
from tasks.small_images import AttackedImages, mlp
from tasks.small_images.data import AveragedImages


def pictures() -> AveragedImages:
    generator = torch.Generator().manual_seed(0)
    labels = {split: torch.randint(3, (count,), generator=generator) for split, count in (("train", 64), ("val", 20))}
    images = {split: torch.randint(256, (len(y), 2, 8, 8), generator=generator) for split, y in labels.items()}
    splits = {split: (images[split].to(torch.uint8), labels[split]) for split in images}
    return AveragedImages("shapes", splits, factor=2, licence="none", classes=3)  # type: ignore[arg-type]


def task(**options: int | str) -> AttackedImages:
    torch.manual_seed(0)
    settings = {"batch_size": 16, "seed": 0, "epoch_steps": 2, "train_steps": 3, "eval_steps": 3} | options
    return AttackedImages(pictures(), mlp, **settings)  # type: ignore[arg-type]


def test_pixels_and_standardised_pictures_are_each_others_inverse() -> None:
    data = pictures()
    images = data.splits["val"][0]
    pixels = data.pixels(images)
    assert pixels.min() >= 0 and pixels.max() <= 1
    torch.testing.assert_close(data.standardised(pixels), images, rtol=1e-4, atol=1e-4)


def test_every_network_is_attacked_by_its_own_gradient() -> None:
    made = task()
    wide = WideNetwork(made.networks["model"], 3)
    with torch.no_grad():
        for index, member in enumerate(wide.members):
            member.get_parameter("output.weight").mul_(index - 1.5)
    copies = copy.deepcopy(wide.members)
    batch = next(iter(made.train_batches(0, Shard())))
    (update,) = made.many_updates({"model": wide.module}, batch, [StepContext({}) for _ in copies])
    for index, network in enumerate(copies):
        (alone,) = made.updates({"model": network.train()}, batch, StepContext({}))
        torch.testing.assert_close(update.losses[index], alone.loss, rtol=1e-4, atol=1e-4)


def test_the_attack_stays_in_its_ball_and_raises_the_loss() -> None:
    made = task(epsilon="16/255", step_size="8/255")
    net = {"model": made.networks["model"].eval()}
    shown: list[Tensor] = []
    net["model"].register_forward_pre_hook(lambda module, inputs: shown.append(made.data.pixels(inputs[0])))
    (batch,) = made.eval_batches(Shard())["val"]
    scores = made.score("val", [made.predict(net, batch, {})])
    assert (shown[-1] - made.data.pixels(batch[0])).abs().max() == pytest.approx(16 / 255, abs=1e-5)
    assert scores["val/attacked_loss"] > scores["val/clean_loss"]
    assert scores["val/attacked_accuracy"] <= scores["val/clean_accuracy"]


def test_a_diverged_network_leaves_the_others_their_losses() -> None:
    made = task()
    wide = WideNetwork(made.networks["model"], 2)
    with torch.no_grad():
        wide.members[1].get_parameter("output.weight").fill_(torch.nan)
    batch = next(iter(made.train_batches(0, Shard())))
    (update,) = made.many_updates({"model": wide.module}, batch, [StepContext({}), StepContext({})])
    assert update.losses.isfinite().tolist() == [True, False]


def test_options_out_of_range_are_refused() -> None:
    for name, value in (("eval_steps", 0), ("train_steps", -1), ("epsilon", "a/255")):
        with pytest.raises(InputError, match=name):
            task(**{name: value})
