import random

import numpy as np
import pytest
import torch

from tasks.base import InputError, Shard
from tasks.data import ColourJitter, CorruptImages, FashionMnist, RandAugment, train_batches
from tasks.data.loader import forked_generators

SIDE, MEAN, STD = 24, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def seeded(augment, picture, seed):
    with forked_generators():
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return augment(picture)


@pytest.mark.parametrize("kind", [RandAugment, ColourJitter])
def test_a_picture_stays_a_picture_and_the_seed_decides_all(kind, picture):
    augment = kind(SIDE, MEAN, std=STD)
    outs = [seeded(augment, picture, seed) for seed in range(10)]
    assert all(out.dtype == torch.uint8 and out.shape == picture.shape for out in outs)
    assert all(torch.equal(out, seeded(augment, picture, seed)) for seed, out in enumerate(outs))
    assert sum(not torch.equal(out, picture) for out in outs) >= 5  # each operation is made half of the time


def test_without_operations_and_erasing_a_picture_is_unchanged(picture):
    augment = RandAugment(SIDE, MEAN, std=STD, num_ops=0, erase_prob=0.0)
    assert torch.equal(seeded(augment, picture, 0), picture)


def test_what_is_erased_is_noise_of_the_datas_mean_and_deviation():
    augment = RandAugment(64, MEAN, std=STD, num_ops=0, erase_prob=1.0)
    black = torch.zeros(3, 64, 64, dtype=torch.uint8)
    noise = []
    for seed in range(30):
        out = seeded(augment, black, seed).float() / 255
        noise.append(out[:, (out > 0).any(0)])
    pixels = torch.cat(noise, 1)
    assert pixels.shape[1] > 1000
    # Noise below 0 and above 1 is cut off, which moves the mean of the broadest channel most.
    assert pixels.mean(1).tolist() == pytest.approx(MEAN, abs=0.05)


def test_no_jitter_and_no_lighting_leave_the_colours(picture):
    augment = ColourJitter(SIDE, MEAN, std=STD, strength=0.0, lighting=0.0)
    assert torch.equal(seeded(augment, picture, 1), picture)


def test_a_pictures_augmentation_depends_on_no_process_and_no_batch():
    data = FashionMnist(image_size=16)

    def pictures(shard):
        found = train_batches(
            data, shard, batch_size=8, seed=0, epoch=0, start=0, corrupt=CorruptImages(data), num_workers=0,
            augment=RandAugment(16, data.mean, std=data.std),
        )  # fmt: skip
        iterator = iter(found)
        return torch.cat([next(iterator)[0] for _ in range(shard.accumulation_steps)])

    whole = pictures(Shard())
    assert torch.equal(whole, torch.cat([pictures(Shard(0, 2, 2)), pictures(Shard(1, 2, 2))]))


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        (RandAugment, "magnitude", 11),
        (RandAugment, "magnitude_std", -1),
        (RandAugment, "num_ops", -1),
        (RandAugment, "erase_prob", float("nan")),
        (ColourJitter, "strength", 2),
        (ColourJitter, "lighting", -0.1),
    ],
)
def test_a_wrong_option_is_named(kind, option, value):
    with pytest.raises(InputError, match=rf"task\.augment\.{option}="):
        kind(SIDE, MEAN, std=STD, **{option: value})
