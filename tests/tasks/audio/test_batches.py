import numpy as np
import pytest
import torch

from tasks.audio.batches import chunk, crop, eval_batches, mean_by_clip, train_batches
from tasks.base import InputError, Shard

TRAIN = {"samples": 16_384, "batch_size": 6, "seed": 3, "num_workers": 0}


def test_a_longer_clip_is_cropped_and_a_shorter_one_lies_among_zeros(music, keyword):
    whole = music.samples("train", 0)
    part = crop(music, "train", 0, samples=4_000, seed=1).numpy()
    starts = [
        i for i in range(len(whole) - 3_999) if whole[i] == part[0] and np.array_equal(whole[i : i + 4_000], part)
    ]
    assert len(starts) == 1
    assert not torch.equal(torch.from_numpy(part), crop(music, "train", 0, samples=4_000, seed=2))
    index = min(range(keyword.num("train")), key=lambda i: keyword.length("train", i))
    short = crop(keyword, "train", index, samples=16_384, seed=1)
    length = keyword.length("train", index)
    (nonzero,) = short.numpy().nonzero()
    assert nonzero[-1] - nonzero[0] < length < 16_384
    np.testing.assert_array_equal(
        short.numpy()[nonzero], keyword.samples("train", index)[keyword.samples("train", index) != 0]
    )


def test_chunks_begin_every_hop_and_a_short_clip_is_one_in_the_middle(music, keyword):
    whole = torch.from_numpy(music.samples("test", 0))
    hop = (len(whole) - 4_000) // 16
    expected = torch.stack([whole[i * hop : i * hop + 4_000] for i in range(16)])
    assert torch.equal(chunk(music, "test", 0, samples=4_000, chunks=16), expected)
    middle = chunk(music, "test", 0, samples=4_000, chunks=1)
    start = (len(whole) - 4_000) // 2
    assert torch.equal(middle[0], whole[start : start + 4_000])
    single = chunk(keyword, "test", 0, samples=16_384, chunks=16)
    assert single.shape == (1, 16_384)
    length = keyword.length("test", 0)
    start = (16_384 - length) // 2
    assert torch.equal(single[0, start : start + length], torch.from_numpy(keyword.samples("test", 0)))
    assert not single[0, :start].any()
    assert not single[0, start + length :].any()


def test_batches_depend_on_seed_and_epoch_alone_and_starting_later_skips(keyword):
    def flat(**more):
        given = {**TRAIN, "epoch": 0, "start": 0} | more
        return list(train_batches(keyword, Shard(), **given))

    whole = flat()
    assert len(whole) == 3
    for a, b in zip(whole[1:], flat(start=1), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    assert not torch.equal(whole[0][0], flat(epoch=1)[0][0])
    assert not torch.equal(whole[0][0], flat(seed=4)[0][0])


def test_shards_and_micro_batches_make_up_the_global_batch(keyword):
    whole = list(train_batches(keyword, Shard(), **TRAIN, epoch=0, start=0))
    parts = [list(train_batches(keyword, Shard(i, 2, 3), **TRAIN, epoch=0, start=0)) for i in (0, 1)]
    for step, (waves, labels) in enumerate(whole):
        pieces = [parts[i][3 * step + part] for i in (0, 1) for part in range(3)]
        assert torch.equal(waves, torch.cat([piece[0] for piece in pieces]))
        assert torch.equal(labels, torch.cat([piece[1] for piece in pieces]))


def test_two_loading_processes_change_nothing(keyword):
    plain = list(train_batches(keyword, Shard(), **TRAIN, epoch=0, start=0))
    loaded = list(train_batches(keyword, Shard(), **TRAIN | {"num_workers": 2}, epoch=0, start=0))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain, loaded, strict=True))


def test_loading_touches_no_global_generator(keyword):
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train_batches(keyword, Shard(), **TRAIN, epoch=0, start=0))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])


def test_shards_of_a_split_hold_every_clip_once(music):
    def counted(shard):
        return list(eval_batches(music, "train", shard, samples=4_000, chunks=4, batch_size=4, num_workers=0))

    whole, (a, b) = counted(Shard()), (counted(Shard(i, 2)) for i in (0, 1))
    assert sum(len(counts) for _, counts, _ in whole) == music.num("train")
    assert len(whole) == len(a) + len(b)
    assert torch.equal(whole[1][0], b[0][0])
    assert {tuple(counts.tolist()) for _, counts, _ in whole[:-1]} == {(4, 4, 4, 4)}


def test_means_are_over_the_chunks_of_each_clip():
    values = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 7.0]])
    assert mean_by_clip(values, torch.tensor([2, 1])).tolist() == [[2.0, 1.0], [5.0, 7.0]]


def test_batches_that_do_not_divide_or_exceed_the_set_are_refused(keyword):
    with pytest.raises(InputError, match=r"train\.batch_size=6: must divide"):
        train_batches(keyword, Shard(0, 4), **TRAIN, epoch=0, start=0)
    with pytest.raises(InputError, match=r"train\.batch_size=99: exceeds the 18"):
        train_batches(keyword, Shard(), **TRAIN | {"batch_size": 99}, epoch=0, start=0)
