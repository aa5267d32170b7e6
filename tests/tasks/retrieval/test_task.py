from collections import Counter

import pytest
import torch

from tasks.base import InputError, Shard, StepContext
from tasks.retrieval import OfficialSet
from tasks.retrieval.sampling import balanced_order
from tests.tasks.retrieval import layouts
from tests.tasks.retrieval.small import make


def test_balanced_batches_hold_so_many_pictures_of_different_classes():
    labels = [0] * 5 + [1] * 5 + [2] * 1 + [3] * 9 + [4] * 4
    order = balanced_order(labels, batch_size=6, per_class=2, seed=3)
    assert len(order) == 24
    for batch in order.split(6):
        counts = Counter(labels[i] for i in batch.tolist())
        assert sorted(counts.values()) == [2, 2, 2]
        singles = Counter(i for i in batch.tolist() if labels[i] != 2)
        assert set(singles.values()) == {1}  # the class of one picture shows it twice
    assert torch.equal(order, balanced_order(labels, batch_size=6, per_class=2, seed=3))
    assert not torch.equal(order, balanced_order(labels, batch_size=6, per_class=2, seed=4))


@pytest.mark.parametrize(
    ("batch", "per_class", "words"), [(6, 4, "divide"), (6, 1, "at least 2"), (12, 2, "needs 6 classes")]
)
def test_a_balanced_batch_that_cannot_be_filled_is_named(batch, per_class, words):
    with pytest.raises(InputError, match=words):
        balanced_order([0, 0, 1, 1, 2], batch_size=batch, per_class=per_class, seed=0)


@pytest.mark.parametrize("sampler", ["random", "balanced"])
def test_batches_are_cut_for_processes_and_go_on_anywhere(emoji, sampler):
    task = make(emoji, sampler=sampler, images_per_class=3)
    whole = list(task.train_batches(2, Shard()))
    assert len(whole) == emoji.num_examples["train"] // 12
    rest = list(task.train_batches(2, Shard(), 1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], rest, strict=True))
    parts = [list(task.train_batches(2, Shard(index, 2))) for index in range(2)]
    joint = torch.cat([parts[0][0][0], parts[1][0][0]])
    assert torch.equal(joint, whole[0][0])


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet"])
def test_one_step_lowers_the_loss_on_the_same_batch(emoji, loss):
    task = make(emoji, loss=loss, sampler="balanced", images_per_class=3)
    batch = next(iter(task.train_batches(0, Shard())))
    net = task.networks["model"]
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        (update,) = task.updates(task.networks, batch, StepContext())
        losses.append(update.loss.item())
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    assert losses[1] < losses[0]
    assert ("train/proxy_norm" in update.log) is (loss == "proxy_anchor")
    assert ("train/triplets" in update.log) is (loss == "triplet")


def test_recall_is_in_percent_and_the_untrained_network_stands_beside(emoji, tmp_path):
    found = scores_of(task := make(emoji))
    assert found["val/recall_at_1"] == found["val/untrained_recall_at_1"]  # nothing is trained yet
    assert 0 < found["val/recall_at_1"] < found["val/recall_at_8"] <= 100
    with torch.no_grad():
        task.networks["model"].embedding.weight.normal_()
    again = scores_of(task)
    assert again["val/untrained_recall_at_1"] == found["val/untrained_recall_at_1"]
    assert "val/untrained_recall_at_1" not in scores_of(make(emoji, untrained=False))


def scores_of(task):
    task.networks["model"].eval()
    with torch.no_grad():
        records = [task.predict(task.networks, batch, {}) for batch in task.eval_batches(Shard())["val"]]
    return task.score("val", records)


def test_inshop_queries_search_the_gallery_alone(tmp_path):
    data = OfficialSet("inshop", str(layouts.write_inshop(tmp_path)), image_size=32, strict_counts=False)
    task = make(data, batch_size=2)
    rows = torch.eye(8)
    rows[4:] = torch.eye(8)[[0, 3, 1, 2]]  # gallery: a hit, a miss, a hit, and nothing near the last
    found = task.score("val", [(torch.arange(8), rows, None)])
    assert found["val/recall_at_1"] == 50.0
    assert found["val/recall_at_10"] == 100.0


def test_embeddings_that_are_not_finite_end_the_evaluation(emoji):
    rows = torch.full((4, 16), float("nan"))
    with pytest.raises(InputError, match="emoji_designs_subset: 4 of 4 embeddings are not finite"):
        make(emoji).score("val", [(torch.arange(4), rows, None)])


@pytest.mark.parametrize(
    ("options", "words"),
    [({"loss": "l2"}, "task.loss=l2"), ({"sampler": "all"}, "task.sampler=all"), ({"margin": -1}, "task.margin=-1"),
     ({"alpha": float("nan")}, "task.alpha=nan"), ({"batch_size": 1}, "train.batch_size=1"),
     ({"eval_batch_size": 0}, "task.eval_batch_size=0"), ({"num_workers": -1}, "train.num_workers=-1")],
)  # fmt: skip
def test_an_option_that_cannot_be_is_named(emoji, options, words):
    with pytest.raises(InputError, match=words):
        make(emoji, **options)


def test_accumulation_is_refused_since_it_would_change_the_loss(emoji):
    with pytest.raises(InputError, match=r"train\.accumulation=2"):
        make(emoji).train_batches(0, Shard(accumulation_steps=2))
