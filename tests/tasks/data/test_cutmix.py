import numpy as np
import pytest
import torch

from tasks.base import InputError, Shard
from tasks.data import CorruptImages, CutMix, Synthetic, train_batches
from tasks.data.loader import forked_generators

NUM, SIDE = 16, 12


def mixed(seed, **options):
    """Mix pictures of constant value 0, 10, 20, ... under a fixed seed."""
    images = (10 * torch.arange(NUM, dtype=torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    with forked_generators():
        np.random.seed(seed)
        torch.manual_seed(seed)
        return images, CutMix(**options)(images, torch.arange(NUM))


@pytest.mark.parametrize("seed", range(20))
def test_the_share_is_the_exact_area_that_is_kept_and_the_rest_is_the_partners(seed):
    images, (out, labels, others, share) = mixed(seed)
    assert torch.equal(labels, torch.arange(NUM))
    assert torch.equal(others.sort().values, labels)
    for index in range(NUM):
        changed = out[index, 0] != images[index, 0]
        if others[index] != index:
            assert float(share) == pytest.approx(1 - changed.float().mean().item())
            assert (out[index][:, changed] == 10 * others[index]).all()
            rows, columns = changed.any(1), changed.any(0)
            assert torch.equal(changed, rows.unsqueeze(1) & columns)  # one rectangle
        else:
            assert not changed.any()


def test_the_share_is_near_uniform_but_for_what_the_border_cuts_off():
    shares = [float(mixed(seed)[1][3]) for seed in range(300)]
    assert min(shares) >= 0
    assert max(shares) <= 1
    assert 0.5 < np.mean(shares) < 0.75  # 1/2 without the border


def test_the_pictures_given_are_left_as_they_are():
    images, _ = mixed(3)
    assert torch.equal(images[5], torch.full((3, SIDE, SIDE), 50, dtype=torch.uint8))


def test_without_probability_nothing_is_mixed():
    images, (out, labels, others, share) = mixed(0, prob=0.0)
    assert torch.equal(out, images)
    assert torch.equal(labels, others)
    assert share == 1


def batches(shard, start=0, epoch=0):
    data = Synthetic(image_size=8, num_classes=64, train_examples=64, val_examples=2)
    return list(
        train_batches(
            data, shard, batch_size=16, seed=0, epoch=epoch, start=start, corrupt=CorruptImages(data), num_workers=0,
            mix=CutMix(),
        )
    )  # fmt: skip


def test_mixing_repeats_from_any_step_on():
    for one, other in zip(batches(Shard())[2:], batches(Shard(), start=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_all_shares_of_a_step_keep_the_same_part_and_steps_and_epochs_differ():
    whole = [float(share) for _, _, _, share in batches(Shard())]
    assert len(set(whole)) > 1
    assert whole != [float(share) for _, _, _, share in batches(Shard(), epoch=1)]
    for index in (0, 1):
        parts = [float(share) for _, _, _, share in batches(Shard(index, 2, accumulation_steps=2))]
        assert parts == [share for share in whole for _ in range(2)]


@pytest.mark.parametrize(("option", "value"), [("alpha", 0), ("alpha", float("nan")), ("prob", 1.5), ("prob", -1)])
def test_a_wrong_option_is_named(option, value):
    with pytest.raises(InputError, match=rf"task\.mix\.{option}="):
        CutMix(**{option: value})
