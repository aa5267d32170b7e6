"""The task of adversarial training: what it yields, scores and leaves alone."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tasks.adversarial import Adversarial, as_unit_range, pgd_attack
from tasks.base import InputError, Shard, StepContext
from tasks.data import Synthetic
from tasks.data.cifar import PaddedFashionMnist
from tasks.wide_resnet import WideResNet
from tests.tasks.data.pictures import write_fashion_mnist
from tests.tasks.training import evaluate, losses_on_one_batch

SMALL = partial(WideResNet, depth=10, width=1)


class Pixels(nn.Module):
    """A linear map of the pixels and a network at once: fast, and without batch statistics."""

    def __init__(self, num_classes):
        super().__init__()
        self.map = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, x):
        return self.map(x.flatten(1))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    return PaddedFashionMnist(root=str(write_fashion_mnist(tmp_path_factory.mktemp("set"))))


def make(data, model=Pixels, **options):
    torch.manual_seed(0)
    return Adversarial(data, model, **{"batch_size": 8, "seed": 0, "train_steps": 2, "eval_steps": 2, **options})


def first(task, shard=None, **options):
    return next(iter(task.train_batches(0, shard or Shard(), **options)))


def seen_by(task, batch):
    """Return what the network is given in the training step itself."""
    inputs = []
    handle = task.networks["model"].register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    (update,) = task.updates(task.networks, batch, StepContext())
    handle.remove()
    return inputs[-1], update


@pytest.mark.parametrize("model", [Pixels, SMALL])
def test_one_step_lowers_the_loss_on_the_same_batch(fashion, model):
    task = make(fashion, model)
    optimizer = torch.optim.SGD(task.networks["model"].parameters(), lr=0.01)
    losses = losses_on_one_batch(task, first(task), optimizer)
    assert losses[1] < losses[0]


def test_the_loss_is_the_cross_entropy_of_attacked_pictures_alone(fashion):
    task = make(fashion)
    images, labels, _ = batch = first(task)
    x, update = seen_by(task, batch)
    moved = (x - as_unit_range(images)).abs()
    assert 0 < moved.max() <= 4 / 255
    assert update.loss.item() == pytest.approx(F.cross_entropy(task.networks["model"](x), labels).item())
    assert set(update.log) == {"train/attacked_accuracy"}


def test_no_steps_in_training_means_clean_pictures(fashion):
    task = make(fashion, train_steps=0)
    batch = first(task)
    assert torch.equal(seen_by(task, batch)[0], as_unit_range(batch[0]))


def test_the_attack_sees_running_statistics_and_only_attacked_pictures_update_them(fashion):
    task = make(fashion, SMALL)
    network, modes = task.networks["model"], []
    network.bn.register_forward_hook(lambda module, args, out: modes.append(module.training))
    network.train()
    before = network.bn.num_batches_tracked.item()
    (update,) = task.updates(task.networks, first(task), StepContext())
    update.loss.backward()
    assert modes == [False, False, True]
    assert network.bn.num_batches_tracked.item() == before + 1
    assert all(p.grad is not None for p in network.parameters())


def test_random_starts_depend_on_the_place_in_the_step_and_not_on_the_processes(fashion):
    task = make(fashion, train_steps=1, step_size=0)  # the start alone
    whole, _ = seen_by(task, first(task))
    for shards in ([Shard(0, 2), Shard(1, 2)], [Shard(0, 4), Shard(1, 4), Shard(2, 4), Shard(3, 4)]):
        parts = torch.cat([seen_by(task, first(task, shard))[0] for shard in shards])
        assert torch.equal(parts, whole)
    cut = torch.cat(
        [seen_by(task, batch)[0] for batch in list(task.train_batches(0, Shard(0, 1, accumulation_steps=2)))[:2]]
    )
    assert torch.equal(cut, whole)
    clean = as_unit_range(first(task)[0])
    assert (whole - clean).abs().max() > 3 / 255


def test_random_starts_differ_between_steps_and_epochs_and_come_back_when_resuming(fashion):
    task = make(fashion, train_steps=1, step_size=0)
    marks = [mark for *_, mark in task.train_batches(0, Shard())]
    assert len(set(marks)) == 5
    assert [mark for *_, mark in task.train_batches(0, Shard(), start=3)] == marks[3:]
    assert not set(marks) & {mark for *_, mark in task.train_batches(1, Shard())}
    state = torch.get_rng_state()
    seen_by(task, first(task))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("attack", ["paper-linf", "paper-l2", "l2"])
def test_scores_equal_a_count_over_all_pictures(fashion, attack, count):
    task = make(fashion, attack=attack, eval_batch_size=6)
    scores = task.score("val", evaluate(task, count=count))
    network, preset = task.networks["model"], task.attack
    hits, losses = {"clean": 0, "attacked": 0}, {"clean": [], "attacked": []}
    records = task.score("val", evaluate(task))
    for index in range(20):
        image, label = fashion.eval_example(index)
        labels = torch.tensor([label])
        clean = as_unit_range(image.unsqueeze(0))
        views = {"clean": clean}
        if not preset.random_start_eval:
            views["attacked"] = pgd_attack(
                network, clean, labels, norm=preset.norm, epsilon=preset.epsilon, steps=2,
                step_size=preset.step_size, random_start=False, direction=preset.direction,
            )  # fmt: skip
        for kind, x in views.items():
            with torch.no_grad():
                logits = network(x)
            hits[kind] += int(logits.argmax(1) == labels)
            losses[kind].append(F.cross_entropy(logits, labels).item())
    for kind in ["clean"] if preset.random_start_eval else hits:
        assert scores[f"val/{kind}_accuracy"] == 100 * hits[kind] / 20
        assert scores[f"val/{kind}_loss"] == pytest.approx(math.fsum(losses[kind]) / 20, rel=1e-5)
    assert scores == pytest.approx(records, rel=1e-12)  # whatever the number of processes
    assert scores["val/attacked_loss"] > scores["val/clean_loss"]
    assert task.monitor in scores


def test_evaluation_takes_its_steps_from_the_preset_and_repeats_itself(fashion):
    task = make(fashion, attack="l2")
    assert task.score("val", evaluate(task)) == task.score("val", evaluate(task))


def test_no_records_are_an_error_in_words(fashion):
    with pytest.raises(InputError, match="no readable image in the val split"):
        make(fashion).score("val", [])


def test_a_network_that_has_diverged_ends_in_a_loss_that_is_not_finite(fashion):
    task = make(fashion)
    nn.init.constant_(task.networks["model"].map.weight, math.inf)
    (update,) = task.updates(task.networks, first(task), StepContext())
    assert not update.loss.isfinite()
    with pytest.raises(InputError, match="not finite"):
        evaluate(task)


def test_reported_scores_are_computed_without_autocast(fashion):
    task = make(fashion)
    plain = task.score("val", evaluate(task))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert task.score("val", evaluate(task)) == plain


def test_training_in_bfloat16_attacks_in_bfloat16_too(fashion):
    task = make(fashion)
    dtypes = []
    task.networks["model"].map.register_forward_hook(lambda module, args, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (update,) = task.updates(task.networks, first(task), StepContext())
    assert dtypes == [torch.bfloat16] * 3
    assert update.loss.isfinite()


def test_example_inputs_fit_the_network_and_move_no_generator(fashion):
    task = make(fashion, SMALL)
    state = torch.get_rng_state()
    (x,) = task.example_inputs()["model"]
    assert torch.equal(torch.get_rng_state(), state)
    assert set(task.example_inputs()) == set(task.networks)
    assert 0 <= x.min() < x.max() <= 1
    assert task.networks["model"](x).shape == (8, 10)


def test_the_record_names_the_data_and_the_attack(fashion):
    facts = make(fashion, attack="paper-l2", epsilon="128/255").describe()
    assert facts["name"] == "fashion_mnist_10k_subset"
    assert facts["attack"]["epsilon"] == 128 / 255
    assert (facts["attack"]["norm"], facts["attack"]["train_steps"]) == ("l2", 2)


def test_the_strong_split_is_scored_at_the_end_and_holds_the_first_pictures(fashion):
    pytest.importorskip("pyautoattack")
    assert make(fashion).test_batches(Shard()) == {}
    task = make(fashion, evaluation="strong", strong_images=7, eval_batch_size=5)
    assert set(task.eval_batches(Shard())) == {"val"}
    assert len(task.eval_batches(Shard())["val"]) == 4
    assert len(task.test_batches(Shard())["strong"]) == 2
    assert sum(len(task.test_batches(Shard(index, 3))["strong"]) for index in range(3)) == 2


@pytest.mark.slow  # AutoAttack asks thousands of times: 20 CPU seconds
def test_a_strong_evaluation_never_scores_above_pgd(fashion):
    pytest.importorskip("pyautoattack")
    task = make(fashion, evaluation="strong", strong_images=7, eval_batch_size=5)
    records = evaluate(task, "strong")
    assert [len(record[0][0]) for record in records] == [5, 2]
    strong, weak = task.score("strong", records), evaluate(task)
    hits = torch.cat([record[1][1] for record in weak])[:7]
    assert strong["strong/attacked_accuracy"] <= 100 * hits.double().mean().item()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "train.batch_size=0"),
        ({"eval_batch_size": 0}, "task.eval_batch_size=0"),
        ({"num_workers": -1}, "train.num_workers=-1"),
        ({"train_steps": -1}, "task.train_steps=-1"),
        ({"eval_steps": 0}, "task.eval_steps=0"),
        ({"strong_images": 0}, "task.strong_images=0"),
        ({"attack": "fgsm"}, "task.attack=fgsm: must be one of paper-linf, paper-l2, l2"),
        ({"evaluation": "weak"}, "eval=weak"),
        ({"epsilon": -1}, "task.epsilon=-1"),
        ({"epsilon": math.nan}, "task.epsilon=nan"),
        ({"epsilon": "four"}, "task.epsilon=four: must be a number or a fraction such as 4/255"),
        ({"step_size": "-2/255"}, "task.step_size=-2/255"),
    ],
)
def test_a_wrong_option_is_named(fashion, options, message):
    with pytest.raises(InputError, match=message):
        make(fashion, **options)


def test_autoattack_is_refused_before_the_first_step_when_it_cannot_run(fashion, monkeypatch):
    few = Synthetic(image_size=32, num_classes=4, train_examples=16, val_examples=4)
    with pytest.raises(InputError, match="eval=strong"):
        make(few, evaluation="strong")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="eval=strong: needs the package pyautoattack"):
        make(fashion, evaluation="strong")
