"""Columns and segments: every token once, in order, whatever the processes and wherever one starts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.base import InputError, Shard
from tasks.language.segments import Segments, columns, fixed_lengths, random_lengths


def segments(text: np.ndarray, **options: object) -> Segments:
    given = {"length": 7, "shard": Shard(), "epoch": 0, "steps": None, "start": 0, "seed": None}
    return Segments(text, **{**given, **options})  # type: ignore[arg-type]


TEXT = columns(np.arange(4 * 50 + 3, dtype=np.int32), 4, option="train.batch_size")


@pytest.mark.parametrize("seed", [None, 3])
def test_a_pass_predicts_every_token_but_each_columns_first_once_and_in_order(seed: int | None) -> None:
    batches = list(segments(TEXT, seed=seed))
    inputs, targets = (torch.cat([b[i] for b in batches], 1) for i in (0, 1))
    assert torch.equal(inputs, torch.from_numpy(TEXT[:, :-1].astype(np.int64)))
    assert torch.equal(targets, inputs + 1)
    assert [b[2] for b in batches] == [True] + [False] * (len(batches) - 1)


def test_processes_and_micro_batches_hold_the_rows_of_one_batch() -> None:
    whole = list(segments(TEXT))
    cut = [list(segments(TEXT, shard=Shard(index=i, count=2, accumulation_steps=2))) for i in range(2)]
    for number, (inputs, _, first, _) in enumerate(whole):
        rows = torch.cat([cut[i][2 * number + part][0] for i in range(2) for part in range(2)])
        assert torch.equal(rows, inputs)
        assert all(cut[i][2 * number + part][2] == first for i in range(2) for part in range(2))


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("seed", [None, 3])
def test_starting_late_skips_and_changes_nothing(steps: int | None, seed: int | None) -> None:
    for epoch in (0, 3):
        whole = list(segments(TEXT, steps=steps, seed=seed, epoch=epoch))
        late = list(segments(TEXT, steps=steps, seed=seed, epoch=epoch, start=2))
        assert len(late) == len(whole) - 2
        assert all(torch.equal(a[0], b[0]) and a[2:] == b[2:] for a, b in zip(late, whole[2:], strict=True))


def test_epochs_of_a_fixed_number_of_steps_go_on_where_the_last_ended() -> None:
    pieces = [b for epoch in range(4) for b in segments(TEXT, steps=3, epoch=epoch)]
    one_pass = list(segments(TEXT))
    assert len(one_pass) == 7
    assert all(torch.equal(a[0], b[0]) for a, b in zip(pieces[:7], one_pass, strict=True))
    assert [b[2] for b in pieces] == [i % 7 == 0 for i in range(12)]


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 5000), length=st.integers(1, 120), seed=st.integers(0, 10_000))
def test_random_lengths_cover_the_text_in_a_number_of_steps_that_no_draw_changes(
    total: int, length: int, seed: int
) -> None:
    lengths = random_lengths(total, length, seed=seed)
    assert sum(lengths) == total and min(lengths) >= 1
    assert len(lengths) == len(random_lengths(total, length, seed=seed + 1))


def test_random_segments_of_one_token_are_never_empty() -> None:
    batches = list(segments(TEXT, length=1, seed=0))
    assert [inputs.shape[1] for inputs, *_ in batches] == [1] * 49


def test_random_lengths_lie_around_the_length_and_half_of_it() -> None:
    lengths = np.array(random_lengths(70 * 4000, 70, seed=0))
    halves = np.abs(lengths - 35) < 18
    assert 0.03 < halves.mean() < 0.07  # 5 % of 4,100 draws, three deviations on each side
    assert abs(lengths[~halves].mean() - 70) < 0.5 and 4.5 < lengths[~halves].std() < 5.5


def test_fixed_lengths_end_with_the_remainder() -> None:
    assert fixed_lengths(10, 4) == [4, 4, 2] and fixed_lengths(8, 4) == [4, 4]


def test_more_columns_than_text_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"train\.batch_size=30: a text of 50 tokens gives columns of 1"):
        columns(np.zeros(50, dtype=np.int32), 30, option="train.batch_size")
