"""One rule for top-1 and top-k: of equal logits the first class is ahead."""

import torch

from tasks.precision import widen
from tasks.ranking import label_ranks


def test_ranks_count_the_classes_ahead_and_ties_go_to_the_first():
    logits = torch.tensor([[3.0, 1.0, 2.0, 1.0]] * 4)
    assert label_ranks(logits, torch.arange(4)).tolist() == [0, 2, 1, 3]
    assert label_ranks(torch.zeros(3, 7, dtype=torch.bfloat16), torch.tensor([0, 4, 6])).tolist() == [0, 4, 6]
    assert label_ranks(torch.tensor([[float("inf"), float("-inf")]] * 2), torch.tensor([0, 1])).tolist() == [0, 1]


def test_a_rank_of_0_is_a_hit_of_argmax_with_and_without_ties():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 9, (500,), generator=generator)
    for logits in (
        torch.randn(500, 9, generator=generator),
        torch.randint(0, 3, (500, 9), generator=generator).float(),
    ):
        assert torch.equal(label_ranks(logits, labels) == 0, logits.argmax(1) == labels)


def test_logits_that_are_not_numbers_are_no_hit():
    logits = torch.tensor([[float("nan"), 1.0], [1.0, float("nan")], [float("nan"), float("nan")]])
    assert (label_ranks(logits, torch.zeros(3, dtype=torch.int64)) > 0).all()


def test_half_precision_is_widened_and_float64_stays():
    dtypes = {
        dtype: widen(torch.ones(2, dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float32, torch.float64)
    }
    assert list(dtypes.values()) == [torch.float32, torch.float32, torch.float64]
