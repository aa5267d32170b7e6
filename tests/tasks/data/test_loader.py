import logging
import os
import pickle
import random
import signal
from itertools import islice

import numpy as np
import pytest
import torch

from tasks.base import InputError, Shard
from tasks.data import CorruptImages, FashionMnist, ImageFolderSet, Synthetic, eval_batches, train_batches
from tasks.data.loader import _TrainBatches, derive_seed, forked_generators
from tests.tasks.data.pictures import write_fashion_mnist, write_image_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 and later, for fork
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return FashionMnist(root=str(write_fashion_mnist(tmp_path_factory.mktemp("set"))), image_size=16)


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path, classes=3, train=8, val=3)  # 24 + 9 pictures


def train(data, *, epoch=0, shard=None, start=0, batch_size=8, seed=1, num_workers=0, corrupt=None):
    return train_batches(
        data,
        shard or Shard(),
        batch_size=batch_size,
        seed=seed,
        epoch=epoch,
        start=start,
        corrupt=corrupt or CorruptImages(data),
        num_workers=num_workers,
    )


def evaluate(data, *, shard=None, batch_size=4, num_workers=0, corrupt=None):
    return eval_batches(
        data,
        shard or Shard(),
        batch_size=batch_size,
        corrupt=corrupt or CorruptImages(data),
        num_workers=num_workers,
    )


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def joined(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def test_an_epoch_is_whole_batches_of_uint8_pictures(data):
    batches = train(data, batch_size=12)  # 40 pictures: 3 batches, 4 left out
    assert len(batches) == 3
    for images, labels in batches:
        assert (images.shape, images.dtype) == ((12, 3, 16, 16), torch.uint8)
        assert (labels.shape, labels.dtype) == ((12,), torch.int64)


def test_every_picture_is_seen_once_an_epoch(folder):
    data = ImageFolderSet(str(folder), image_size=8)
    order = _TrainBatches(data, batch_size=8, seed=0, epoch=3, shard=Shard(), patience=0)._order
    assert sorted(order.tolist()) == list(range(24))


def test_order_and_augmentation_follow_seed_and_epoch(data):
    first = joined(train(data))
    assert_same([first], [joined(train(data))])
    for other in (train(data, epoch=1), train(data, seed=2)):
        images, labels = joined(other)
        assert not torch.equal(labels, first[1])
        assert not torch.equal(images.sort(0).values, first[0].sort(0).values)


@pytest.mark.parametrize("kind", ["fashion_mnist", "folder"])
def test_workers_change_nothing(data, folder, kind):
    if kind == "folder":
        data = ImageFolderSet(str(folder), image_size=16)
    assert_same(train(data), train(data, num_workers=2))
    assert_same(evaluate(data), evaluate(data, num_workers=2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_from_a_later_step_are_those_of_the_full_pass(data, num_workers):
    shard = Shard(index=1, count=2, accumulation_steps=2)
    full = list(train(data, shard=shard))
    for start in (1, 3, 5):
        rest = train(data, shard=shard, start=start, num_workers=num_workers)
        assert len(rest) == (5 - start) * 2
        assert_same(rest, full[2 * start :])


def test_skipping_to_a_step_decodes_nothing(data, monkeypatch):
    calls = []
    original = FashionMnist.train_example
    monkeypatch.setattr(FashionMnist, "train_example", lambda self, index: calls.append(index) or original(self, index))
    next(iter(train(data, start=4)))
    assert len(calls) == 8


@pytest.mark.parametrize(("count", "parts"), [(1, 2), (2, 1), (2, 2), (4, 1)])
def test_shards_and_parts_cut_each_global_batch_in_order(data, count, parts):
    whole = list(train(data))
    pieces = [list(train(data, shard=Shard(index=i, count=count, accumulation_steps=parts))) for i in range(count)]
    for step, batch in enumerate(whole):
        cut = [piece for shard in pieces for piece in shard[step * parts : (step + 1) * parts]]
        assert all(len(labels) == 8 // (count * parts) for _, labels in cut)
        assert_same([joined(cut)], [batch])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_evaluation_sees_each_picture_once_in_interleaved_batches(folder, count):
    data = ImageFolderSet(str(folder), image_size=8)
    whole = list(evaluate(data))
    assert [len(labels) for _, labels in whole] == [4, 4, 1]
    shards = [list(evaluate(data, shard=Shard(index=i, count=count))) for i in range(count)]
    assert [len(shard) for shard in shards] == [len(evaluate(data, shard=Shard(i, count))) for i in range(count)]
    woven = [shards[number % count][number // count] for number in range(len(whole))]
    assert_same(woven, whole)
    assert joined(whole)[1].tolist() == [0] * 3 + [1] * 3 + [2] * 3


def generator_states():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_global_generator_moves(data, num_workers):
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    drawn = random.random(), np.random.rand(), torch.rand(3)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    list(train(data, num_workers=num_workers))
    list(evaluate(data, num_workers=num_workers))
    again = random.random(), np.random.rand(), torch.rand(3)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])


def test_what_the_caller_draws_does_not_reach_the_batches(data):
    batches = list(train(data))
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert_same(train(data), batches)


def test_generators_come_back_after_an_error():
    before = generator_states()
    with pytest.raises(KeyError), forked_generators():
        random.random(), np.random.rand(), torch.rand(1)
        raise KeyError
    after = generator_states()
    assert before[0] == after[0]
    assert np.array_equal(before[1][1], after[1][1])
    assert torch.equal(before[2], after[2])


def test_seeds_of_neighbours_differ():
    seeds = {derive_seed(seed, epoch, index) for seed in range(10) for epoch in range(10) for index in range(10)}
    assert len({seed % 2**32 for seed in seeds}) == 1000  # torch's CPU generator starts from 32 bits
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_set_can_be_sent_to_a_started_worker(folder):
    data = ImageFolderSet(str(folder), image_size=8)
    source = _TrainBatches(data, batch_size=4, seed=0, epoch=0, shard=Shard(), patience=1)
    sent = pickle.loads(pickle.dumps(source))
    assert_same([source[2][1]], [sent[2][1]])


@pytest.mark.parametrize(("batch_size", "shard"), [(8, Shard(0, 3)), (8, Shard(0, 4, 4)), (9, Shard(0, 1, 2))])
def test_a_batch_that_does_not_divide_is_refused(data, batch_size, shard):
    with pytest.raises(InputError, match=rf"train.batch_size={batch_size}: must divide"):
        train(data, batch_size=batch_size, shard=shard)


def test_a_batch_larger_than_the_set_is_refused(data):
    with pytest.raises(InputError, match=r"train.batch_size=41: exceeds the 40 training images of fashion_mnist_10k"):
        train(data, batch_size=41)


def test_synthetic_pictures_have_the_shapes_asked_for():
    data = Synthetic(image_size=12, num_classes=7, train_examples=50, val_examples=10)
    images, labels = next(iter(train(data)))
    assert images.shape == (8, 3, 12, 12)
    assert labels.max() < 7
    assert data.describe()["name"] == "synthetic"
    with pytest.raises(InputError, match=r"data.num_classes=0"):
        Synthetic(num_classes=0)


# Unreadable pictures --------------------------------------------------------------------------------------------


def spoil(folder, split, *numbers):
    """Damage pictures of class 0: a zero-byte file, then files cut in the middle."""
    for position, number in enumerate(numbers):
        path = folder / split / "n00000000" / f"{split}_{number:04d}.JPEG"
        path.write_bytes(path.read_bytes()[: 300 * position])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_puts_the_next_readable_picture_in_place(folder, caplog, num_workers):
    clean = ImageFolderSet(str(folder), image_size=16)
    number_of = {clean.train_example(i)[0].float().mean().item(): i for i in range(24)}
    assert len(number_of) == 24
    spoil(folder, "train", 6, 7)
    data = ImageFolderSet(str(folder), image_size=16)
    corrupt = CorruptImages(data)
    with caplog.at_level(logging.WARNING, "tasks.data"):
        batches = [list(train(data, epoch=epoch, num_workers=num_workers, corrupt=corrupt)) for epoch in (0, 0)]
    assert_same(*batches)
    assert joined(batches[0])[1].bincount().tolist() == [6, 10, 8]  # pictures 6 and 7 gave way to 8, of class 1
    assert corrupt.count == 2
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # once a picture, though two passes met it
    assert sorted("train_0006" in message for message in messages) == [False, True]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_leaves_unreadable_pictures_out(folder, num_workers):
    whole = joined(evaluate(ImageFolderSet(str(folder), image_size=8)))
    spoil(folder, "val", 1)
    data = ImageFolderSet(str(folder), image_size=8)
    corrupt = CorruptImages(data)
    batches = list(evaluate(data, num_workers=num_workers, corrupt=corrupt))
    assert [len(labels) for _, labels in batches] == [3, 4, 1]
    kept = [0, *range(2, 9)]
    assert_same([joined(batches)], [(whole[0][kept], whole[1][kept])])
    assert corrupt.count == 1


def test_a_batch_of_unreadable_pictures_stays_as_an_empty_one(folder):
    spoil(folder, "val", 0, 1, 2)
    batches = list(evaluate(ImageFolderSet(str(folder), image_size=8), batch_size=3))
    assert [images.shape for images, _ in batches] == [(0, 3, 8, 8), (3, 3, 8, 8), (3, 3, 8, 8)]


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_too_many_unreadable_pictures_end_the_run(folder, split, num_workers):
    spoil(folder, split, 0, 1)
    data = ImageFolderSet(str(folder), image_size=8, max_corrupt=1)
    batches = train(data, num_workers=num_workers) if split == "train" else evaluate(data, num_workers=num_workers)
    with pytest.raises(
        InputError, match=rf"2 unreadable {split} images of .*data.max_corrupt allows \(1\).*_000"
    ) as info:
        list(batches)
    assert "\n" not in str(info.value)


def test_a_set_of_unreadable_pictures_is_never_trained_on(tmp_path):
    folder = write_image_folder(tmp_path, classes=1, train=4, val=2)
    spoil(folder, "train", 0, 1, 2, 3)
    spoil(folder, "val", 0, 1)
    data = ImageFolderSet(str(folder), image_size=8)  # ten are allowed, but never all
    with pytest.raises(InputError, match=r"4 unreadable train images of 4"):
        list(train(data, batch_size=2))
    with pytest.raises(InputError, match=r"2 unreadable val images of 2"):
        list(evaluate(data))


def test_a_thousandth_and_at_least_ten_may_be_unreadable():
    data = Synthetic(train_examples=1_281_167, val_examples=500)
    assert CorruptImages(data).limit("train") == 1281
    assert CorruptImages(data).limit("val") == 10


# Signals --------------------------------------------------------------------------------------------------------


class SignallingSet(Synthetic):
    """Sends its own process every signal that ends a run, before it hands out a picture."""

    def train_example(self, index):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), number)
        return super().train_example(index)


def test_workers_outlive_the_signals_that_end_a_run():
    data = SignallingSet(image_size=4, num_classes=2, train_examples=16, val_examples=4)
    assert len(list(train(data, num_workers=1))) == 2


def test_a_pass_that_is_left_early_ends_its_workers(data):
    batches = iter(train(data, num_workers=1))
    assert len(list(islice(batches, 2))) == 2
    batches.close()
    assert not torch.multiprocessing.active_children()
