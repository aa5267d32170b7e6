"""Biased-MNIST as a task: its losses and turns, its data and scores, what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F

from tasks.base import InputError, Shard, StepContext
from tasks.data.digits import SmallDigits
from tasks.rebias import BiasedMnist, colour_digit, hsic_unbiased, rbf_kernel
from tasks.rebias.biased_mnist import normalise
from tests.tasks.rebias.sets import TINY, Glyphs, biased_mnist
from tests.tasks.training import evaluate


def first_batch(task):
    return next(iter(task.train_batches(0, Shard())))


def train(task, *, steps=4):
    """Take steps with Adam and return f's and g's weights and statistics."""
    optimizers = {role: torch.optim.Adam(net.parameters(), lr=1e-2) for role, net in task.networks.items()}
    context = StepContext()
    for batch in list(task.train_batches(0, Shard()))[:steps]:
        for update in task.updates(task.networks, batch, context):
            update.loss.backward()
            optimizers[update.network].step()
            for optimizer in optimizers.values():
                optimizer.zero_grad()
    return {role: net.state_dict() for role, net in task.networks.items()}


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


# Losses ---------------------------------------------------------------------------------------------------------


def test_a_step_of_g_maximises_the_dependence_that_a_step_of_f_minimises():
    task = biased_mnist(lambda_f=0.5, lambda_g=2.0, sigma=1.5)
    x, labels = task.pictures(first_batch(task))
    nets = copy.deepcopy(task.networks)
    g, f = list(task.updates(task.networks, first_batch(task), StepContext()))
    assert (g.network, f.network) == ("g", "f")
    (f_logits, f_features), (g_logits, g_features) = nets["f"](x), nets["g"](x)
    hsic = hsic_unbiased(rbf_kernel(f_features, 1.5), rbf_kernel(g_features, 1.5))
    torch.testing.assert_close(f.loss, F.cross_entropy(f_logits, labels) + 0.5 * hsic)
    torch.testing.assert_close(g.loss, F.cross_entropy(g_logits, labels) - 2.0 * hsic)
    torch.testing.assert_close(f.log["train/f_hsic"], hsic.detach())
    assert {"train/f_top1", "train/f_distance"} < f.log.keys()


def test_a_step_of_one_network_leaves_the_others_parameters_and_gradients_alone():
    task = biased_mnist()
    for update in task.updates(task.networks, first_batch(task), StepContext()):
        update.loss.backward()
        other = task.networks["f" if update.network == "g" else "g"]
        assert all(p.grad is None for p in other.parameters())
        assert all(p.grad is not None for p in task.networks[update.network].parameters())
        task.networks[update.network].zero_grad()


def test_one_step_lowers_each_networks_loss_on_the_same_batch():
    task = biased_mnist()
    optimizers = {role: torch.optim.SGD(net.parameters(), lr=1e-2) for role, net in task.networks.items()}
    losses = {"f": [], "g": []}
    for _ in range(2):
        for update in task.updates(task.networks, first_batch(task), StepContext()):
            optimizers[update.network].zero_grad()
            update.loss.backward()
            optimizers[update.network].step()
            losses[update.network].append(update.loss.item())
    assert all(after < before for before, after in losses.values())


def test_without_hsic_each_network_trains_as_it_does_alone():
    both = train(biased_mnist(lambda_f=0.0, lambda_g=0.0))
    assert same(both["f"], train(biased_mnist(method="vanilla"))["f"])
    torch.manual_seed(0)
    alone = biased_mnist(method="biased")
    alone.networks["g"].load_state_dict(biased_mnist().networks["g"].state_dict())  # drawn after f's otherwise
    assert same(both["g"], train(alone)["g"])
    assert not same(both["f"], train(biased_mnist())["f"])


def test_swapped_bandwidths_change_the_inner_loss_alone_and_equal_ones_nothing():
    carried = {"epoch": 0, "sigmas": {"f": 0.5, "g": 2.0}}

    def losses(**options):
        task = biased_mnist(**options)
        return [
            update.loss.item()
            for update in task.updates(task.networks, first_batch(task), StepContext(copy.deepcopy(carried)))
        ]

    plain, swapped = losses(sigma="median"), losses(sigma="median", swap_inner_sigma=True)
    assert plain[0] != swapped[0]
    assert plain[1] == swapped[1]
    assert losses(sigma=1.0) == losses(sigma=1.0, swap_inner_sigma=True)


def test_several_steps_of_g_come_before_each_of_f():
    task = biased_mnist(num_g_updates=3)
    assert [update.network for update in task.updates(task.networks, first_batch(task), StepContext())] == [
        "g",
        "g",
        "g",
        "f",
    ]


def test_median_bandwidths_are_found_once_an_epoch_and_leave_running_statistics_alone():
    task, context = biased_mnist(sigma="median"), StepContext()
    seen = []
    task.networks["f"].register_forward_hook(lambda net, x, y: seen.append(len(y[0])))
    before = copy.deepcopy(task.networks["f"].state_dict())
    sigmas = task._sigmas(task.networks, context)
    assert seen == [12] * 3  # batches 0 to 2 of 10
    assert same(before, task.networks["f"].state_dict())
    assert context.state == {"epoch": 0, "sigmas": sigmas}
    distances = []
    for batch in list(task.train_batches(0, Shard()))[:3]:
        features = task.networks["f"](task.pictures(batch)[0])[1]
        distances.append(torch.cdist(features, features).square().flatten())
    assert sigmas["f"] == pytest.approx(torch.cat(distances).quantile(0.5).sqrt().item(), rel=1e-3)
    assert task._sigmas(task.networks, context) is context.state["sigmas"]
    task.train_batches(1, Shard())
    assert task._sigmas(task.networks, context) != sigmas
    assert context.state["epoch"] == 1


def test_features_that_have_collapsed_are_an_error_in_words():
    task = biased_mnist(sigma="median")
    for p in task.networks["g"].parameters():
        torch.nn.init.zeros_(p)
    with pytest.raises(InputError, match=r"the median distance of g's features is 0\.0"):
        next(task.updates(task.networks, first_batch(task), StepContext()))


# Data -----------------------------------------------------------------------------------------------------------


def test_the_pictures_are_the_digits_on_their_colours_from_minus_one_to_one():
    task = biased_mnist(rho=0.5)
    grey, colours, labels = first_batch(task)
    x, y = task.pictures((grey, colours, labels))
    assert torch.equal(y, labels)
    assert x.shape == (12, 3, 18, 18)
    for image, digit, colour in zip(x, grey, colours, strict=True):
        assert torch.equal(image, normalise(colour_digit(digit, colour).unsqueeze(0))[0])
    values = normalise(torch.tensor([0, 128, 225, 255], dtype=torch.uint8).view(1, 1, 4, 1))
    assert values.flatten().tolist() == pytest.approx([-1, 0.00392157, 0.76470588, 1], abs=1e-6)


def test_an_epoch_shows_every_digit_once_in_its_own_colour():
    task = biased_mnist(rho=0.5, batch_size=50)
    batches = list(task.train_batches(3, Shard()))
    assert [len(labels) for _, _, labels in batches] == [50, 50, 20]  # the last one is used too
    shown = {(g.numpy().tobytes(), int(c), int(y)) for batch in batches for g, c, y in zip(*batch, strict=True)}
    data = task.data
    stored = zip(data.images["train"], task._train_colours, data.labels["train"], strict=True)
    assert shown == {(g.numpy().tobytes(), int(c), int(y)) for g, c, y in stored}
    other = list(task.train_batches(4, Shard()))
    assert not torch.equal(batches[0][2], other[0][2])


@pytest.mark.parametrize(
    ("batch_size", "count", "sizes"),
    [(50, 3, None), (39, 1, [39] * 3), (52, 4, [52, 52, 16]), (50, 2, [50, 50, 20]), (58, 4, None)],
)
def test_a_last_batch_is_used_where_it_divides_and_hsic_can_use_it(batch_size, count, sizes):
    task = biased_mnist(batch_size=batch_size)
    if sizes is None:
        with pytest.raises(InputError, match=r"train\.batch_size=5.: must divide by the . processes"):
            task.train_batches(0, Shard(0, count))
        return
    shards = [list(task.train_batches(0, Shard(index, count))) for index in range(count)]
    assert [sum(len(shard[step][2]) for shard in shards) for step in range(len(sizes))] == sizes
    assert len({len(shard) for shard in shards}) == 1


def test_shards_put_together_are_the_batches_of_one_process_from_any_step_on():
    task = biased_mnist(batch_size=24)
    whole = list(task.train_batches(2, Shard()))
    parts = [list(task.train_batches(2, Shard(index, 2), start=1)) for index in range(2)]
    for step, batch in enumerate(whole[1:]):
        for k, column in enumerate(batch):
            assert torch.equal(torch.cat([part[step][k] for part in parts]), column)
    assert len(task.train_batches(2, Shard(), start=3)) == len(whole) - 3


def test_colours_depend_on_the_seed_and_differ_between_splits():
    one, other = biased_mnist(rho=0.5), biased_mnist(rho=0.5, seed=1)
    assert torch.equal(one._train_colours, biased_mnist(rho=0.5)._train_colours)
    assert not torch.equal(one._train_colours, other._train_colours)
    labels = one.data.labels["test"]
    assert torch.equal(one._test_colours["biased"], labels)
    assert not (one._test_colours["rho0"] == labels).any()


# Scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_equal_a_count_over_all_digits(count):
    task = biased_mnist(eval_batch_size=7)
    train(task, steps=10)
    scores = task.score("unbiased", evaluate(task, "unbiased", count=count))
    labels, colours = task.data.labels["test"], task._test_colours["unbiased"]
    x = normalise(colour_digit(task.data.images["test"], colours))
    with torch.no_grad():
        found = {role: net(x)[0].argmax(1) for role, net in task.networks.items()}
    right = found["f"] == labels
    assert scores["unbiased/top1"] == pytest.approx(100 * right.double().mean().item())
    assert scores["unbiased/g_top1"] == pytest.approx(100 * (found["g"] == labels).double().mean().item())
    assert scores["unbiased/colour"] == pytest.approx(100 * (found["f"] == colours).double().mean().item())
    cells = {}
    for hit, label, colour in zip(right.tolist(), labels.tolist(), colours.tolist(), strict=True):
        cells.setdefault((label, colour), []).append(hit)
    assert scores["unbiased/worst_cell"] == pytest.approx(100 * min(sum(hits) / len(hits) for hits in cells.values()))


@pytest.mark.parametrize(("method", "roles"), [("vanilla", {"f"}), ("biased", {"g"}), ("rebias", {"f", "g"})])
def test_each_method_reports_its_network_under_the_same_name(method, roles):
    task = biased_mnist(method=method)
    assert set(task.networks) == roles
    for split in ("unbiased", "biased", "rho0"):
        scores = task.score(split, evaluate(task, split))
        assert (f"{split}/g_top1" in scores) == (method == "rebias")
        assert 0 <= scores[f"{split}/top1"] <= 100
    assert task.monitor == "unbiased/top1"
    inputs = task.example_inputs()
    assert set(inputs) == roles
    for role in roles:
        assert task.networks[role](*inputs[role])[0].shape == (32, 10)


def test_the_record_names_the_set_and_counts_the_conflicting_digits(caplog):
    caplog.set_level("INFO", logger="tasks.rebias")
    facts = biased_mnist(rho=0.9).describe()
    assert facts["name"] == "biased_glyphs"
    assert facts["rho"] == 0.9
    assert f"leaves {facts['conflicting_examples']} of 120 training digits" in caplog.text
    assert 12 <= facts["conflicting_examples"] <= 22


# Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("rho", 1.5, "rho=1.5"),
        ("rho", -0.1, "rho=-0.1"),
        ("rho", float("nan"), "rho=nan"),
        ("method", "both", "task.method=both"),
        ("lambda_f", -1, "task.lambda_f=-1"),
        ("lambda_g", float("nan"), "task.lambda_g=nan"),
        ("sigma", 0, "task.sigma=0"),
        ("sigma", "mean", "task.sigma=mean"),
        ("num_g_updates", 0, "task.num_g_updates=0"),
        ("num_confusing", 10, "task.num_confusing=10"),
        ("batch_size", 3, "train.batch_size=3: must be at least 4"),
        ("batch_size", 121, "train.batch_size=121: exceeds the 120"),
        ("eval_batch_size", 0, "task.eval_batch_size=0"),
    ],
)
def test_a_wrong_option_is_named(option, value, name):
    with pytest.raises(InputError, match=name):
        biased_mnist(**{option: value})


def test_micro_batches_are_refused_since_hsic_sees_the_whole_batch():
    with pytest.raises(InputError, match=r"train\.accumulation=2: must be 1"):
        biased_mnist().train_batches(0, Shard(accumulation_steps=2))


def test_the_small_digits_make_the_task_too():
    torch.manual_seed(0)
    task = BiasedMnist(SmallDigits(), **TINY, rho=0.997, batch_size=64, seed=0)
    assert task.num_conflicting == 10
    assert task.describe()["name"] == "biased_small_digits"
    assert next(task.updates(task.networks, first_batch(task), StepContext())).loss.isfinite()
    assert Glyphs().describe()["classes"] == 10
