"""Small pictures: what is held out, the control without batch norm, and the toy of unit directions."""

from __future__ import annotations

import pytest
import torch

from adamp.scale_invariance import scale_invariant_parameters
from tasks.base import InputError, Shard
from tasks.small_images import Directions, SmallImages, mlp, unit_linear


def toy(validation: float | None = None) -> SmallImages:
    data = Directions(num_examples=40)
    return SmallImages(data, unit_linear, batch_size=8, seed=0, epoch_steps=5, validation=validation)


def test_held_out_pictures_are_training_pictures_that_are_not_trained_on() -> None:
    whole, held_out = toy(), toy(0.25)
    pictures = whole.data.splits["train"][0].flatten(1)
    ((scored, _),) = held_out.eval_batches(Shard())["val"]
    trained = torch.cat([images for images, _ in held_out.train_batches(0, Shard())]).flatten(1)
    assert len(scored) == 10
    assert all((pictures == row).all(1).any() for row in scored.flatten(1))
    assert not any((trained == row).all(1).any() for row in scored.flatten(1))
    assert held_out.data.name == "directions_held_out_0.25"
    with pytest.raises(InputError, match=r"task.validation=1.5"):
        toy(1.5)


def test_every_weight_of_the_toy_is_scale_invariant_and_none_of_the_control() -> None:
    inputs = toy().example_inputs()["model"]
    assert set(scale_invariant_parameters(toy().networks["model"], inputs)) == {"linear.weight"}
    assert not scale_invariant_parameters(mlp((1, 8, 8), 10, batch_norm=False), inputs)


def test_the_teachers_directions_solve_the_toy() -> None:
    data = Directions(num_examples=200)
    network = unit_linear(data.shape, 10)
    images, labels = data.splits["train"]
    generator = torch.Generator().manual_seed(0)
    network.linear.weight.data.copy_(torch.randn(64, 10, generator=generator).T)
    assert (network(images).argmax(1) == labels).float().mean() > 0.97
    torch.testing.assert_close(data.standardised(data.pixels(images)), images, rtol=1e-4, atol=1e-4)
