"""Biased-MNIST's colours and how they are dealt out, against the published rules and counts."""

import numpy as np
import pytest
import torch

from tasks.base import InputError
from tasks.rebias import COLOURS, assign_colours, bias_split, colour_digit

TRAIN = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)  # MNIST's digits of each class
TEST = (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)


def test_a_digit_is_white_on_its_colour():
    painted = [[[255, 128, 0], [255, 255, 255]], [[255, 255, 255], [255, 255, 255]]]
    assert colour_digit([[0, 1], [128, 255]], 6).tolist() == painted
    image = np.array([[0, 1], [128, 255]], dtype=np.uint8)
    assert colour_digit(image, 6).dtype == torch.uint8
    assert colour_digit(torch.from_numpy(image), 6).tolist() == painted


def test_many_digits_are_painted_as_one_by_one():
    images = torch.randint(0, 3, (10, 4, 5), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10)
    painted = colour_digit(images, labels)
    assert painted.shape == (10, 4, 5, 3)
    for image, label, one in zip(images, labels, painted, strict=True):
        assert torch.equal(colour_digit(image, int(label)), one)
    assert [tuple(colour_digit([[0]], k)[0, 0].tolist()) for k in range(10)] == list(COLOURS)


@pytest.mark.parametrize("label", [-1, 10, [3, 10]])
def test_a_colour_that_does_not_exist_is_an_error(label):
    with pytest.raises(ValueError, match="bias_label="):
        colour_digit([[0]], label)


@pytest.mark.parametrize(
    ("num", "rho", "aligned", "chunks"),
    [
        (10, 0.9, 9, [1]),
        (100, 0.97, 97, [1, 1, 1]),
        (100, 0.29, 28, [8] * 9),  # 100 x 0.29 is 28.999999999999996
        (25, 0.1, 2, [3] * 7 + [2]),
        (7, 0.5, 3, [1] * 4),
        (1135, 0.1, 113, [114] * 8 + [110]),
        (10, 1.0, 10, []),
        (9, 0, 0, [1] * 9),
        (0, 0.5, 0, []),
    ],
)
def test_a_class_is_split_into_its_colour_and_chunks_of_others(num, rho, aligned, chunks):
    assert bias_split(num, rho, 9) == (aligned, chunks)


@pytest.mark.parametrize(
    ("rho", "aligned", "fewest", "most"),
    [(0.999, 59937, 6, 7), (0.997, 59816, 17, 21), (0.995, 59695, 28, 34), (0.990, 59394, 55, 68)],
)
def test_the_papers_shares_leave_the_known_numbers_of_conflicting_digits(rho, aligned, fewest, most):
    splits = [bias_split(num, rho, 9) for num in TRAIN]
    assert sum(first for first, _ in splits) == aligned
    conflicting = [sum(chunks) for _, chunks in splits]
    assert (min(conflicting), max(conflicting)) == (fewest, most)


def test_the_unbiased_test_set_has_nine_in_ten_conflicting():
    assert sum(sum(bias_split(num, 0.1, 9)[1]) for num in TEST) == 9004


@pytest.mark.parametrize("rho", [-0.1, 1.1, float("nan"), "many", None, True])
def test_a_rho_that_is_no_share_is_an_error_in_words(rho):
    with pytest.raises(InputError, match=f"rho={rho}: must be from 0 to 1"):
        bias_split(10, rho, 9)


@pytest.mark.parametrize("num", [0, 10])
def test_a_number_of_other_colours_beyond_nine_is_an_error_in_words(num):
    with pytest.raises(InputError, match=f"task.num_confusing={num}"):
        bias_split(10, 0.5, num)


def test_colours_are_dealt_out_as_split_and_depend_on_the_seed_alone():
    labels = torch.arange(10).repeat_interleave(torch.arange(20, 120, 10))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    colours = assign_colours(labels, 0.7, seed=5)
    for label in range(10):
        own = colours[labels == label]
        aligned, chunks = bias_split(len(own), 0.7, 9)
        counts = torch.bincount(own, minlength=10).tolist()
        assert counts.pop(label) == aligned
        assert sorted(count for count in counts if count) == sorted(chunks)
    assert torch.equal(colours, assign_colours(labels, 0.7, seed=5))
    assert not torch.equal(colours, assign_colours(labels, 0.7, seed=6))
    assert torch.equal(assign_colours(labels, 1.0, seed=5), labels)
    assert not (assign_colours(labels, 0.0, seed=5) == labels).any()


def test_fewer_other_colours_are_those_of_the_next_classes():
    labels = torch.full((40,), 9)
    assert set(assign_colours(labels, 0.5, seed=0, num_confusing=2).tolist()) == {9, 0, 1}
