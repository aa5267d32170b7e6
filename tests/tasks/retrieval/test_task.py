import json
import logging
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch

from adamp import AdamP, scale_invariant_parameters
from tasks.base import InputError, Shard
from tasks.engine.distributed import World, joined
from tasks.engine.optim import build_optimizer, parameter_groups
from tasks.engine.outcomes import Stopped
from tasks.engine.phases import Phase
from tasks.engine.schedules import constant, step
from tasks.retrieval import EmbeddingNet, EmojiDesigns, OfficialSet, Retrieval
from tasks.retrieval.networks import pool
from tasks.retrieval.sampling import balanced_order
from tests.engine import toys
from tests.tasks.retrieval import layouts

SMALL = partial(EmbeddingNet, "resnet18", width=0.0625, features=16)
RULES = ({"match": "model.proxies", "lr_scale": 100},)


@pytest.fixture(autouse=True)
def close():
    yield
    while toys.OPEN:
        toys.OPEN.pop().close()


@pytest.fixture(scope="module")
def emoji():
    return EmojiDesigns(num_classes=16, image_size=32)  # 8 classes train, 8 are searched


def make(data, model=SMALL, **options):
    torch.manual_seed(0)
    return Retrieval(data, model, **{"batch_size": 12, "seed": 0, **options})


def adam(groups):
    return AdamP(groups, lr=1e-3)


def two_phases():
    """The paper's course in small: the embedding and the proxies alone, then everything at half the rate."""
    halved = partial(step, milestones=(0, 0.5), factor=0.5)
    return [Phase(1, adam, {"lr": constant}, trainable="model.(embedding|proxies)"), Phase(2, None, {"lr": halved})]


def fit(task, folder, *, world=toys.CPU, rules=RULES, **values):
    made = toys.trainer(task, folder, phases=two_phases(), world=world, rules=rules, clip_value=10.0, **values)
    made.fit()
    toys.close(made)
    return made


def scores(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val/recall_at_1" in line]


def test_pooling_adds_the_mean_and_the_maximum_of_each_channel():
    maps = torch.tensor([[[[1.0, 2], [3, 6]], [[0, 0], [0, -4]]]])
    assert pool(maps).tolist() == [[9.0, -1.0]]


def test_resnet50_has_the_papers_parameters():
    net = EmbeddingNet("resnet50", 100)
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    assert sum(n for name, n in sizes.items() if name.startswith("backbone.")) == 23_508_032
    assert sizes["embedding.weight"] + sizes["embedding.bias"] == 1_049_088
    assert sizes["proxies"] == 51_200
    assert net.proxies.norm(dim=1).mean().item() == pytest.approx(3.2, rel=0.01)


def test_embeddings_and_proxies_come_out_at_length_one():
    torch.manual_seed(0)
    net = SMALL(num_proxies=5)
    rows, proxies = net(torch.randint(0, 256, (3, 3, 32, 32)).to(torch.uint8))
    assert torch.allclose(torch.cat([rows, proxies]).norm(dim=1), torch.ones(8))
    assert SMALL(num_proxies=0)(torch.zeros(2, 3, 32, 32))[1].shape == (0, 16)


def test_frozen_statistics_stay_as_they_are_in_training_and_others_do_not():
    images = torch.rand(4, 3, 32, 32) * 255
    for freeze in (True, False):
        net = SMALL(num_proxies=0, freeze_statistics=freeze).eval().train()
        before = {name: value.clone() for name, value in net.named_buffers()}
        net(images)
        after = dict(net.named_buffers())
        assert all(torch.equal(before[name], after[name]) for name in before) is freeze


def test_measured_statistics_give_every_layer_of_a_random_network_the_same_scale():
    torch.manual_seed(0)
    net, images = SMALL(num_proxies=0), torch.rand(16, 3, 32, 32) * 255
    net.measure_statistics([images])
    seen = []
    net.batch_norms()[-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output.clone())
    )  # ReLU follows in place
    net(images)
    assert seen[0].mean((0, 2, 3)).abs().max() < 0.1
    assert (seen[0].std((0, 2, 3)) - 1).abs().max() < 0.1
    assert not any(norm.training for norm in net.batch_norms())


def test_batchnorms_scales_can_be_constants_under_the_same_names():
    free, fixed = SMALL(num_proxies=0), SMALL(num_proxies=0, train_bn_affine=False)
    names = {name for name, _ in free.named_parameters()} - {name for name, _ in fixed.named_parameters()}
    assert len(names) == 2 * len(free.batch_norms())
    assert free.state_dict().keys() == fixed.state_dict().keys()


def test_imagenet_weights_are_read_from_a_file_and_named(tmp_path, caplog, emoji):
    from torchvision.models import resnet18

    torch.manual_seed(1)
    net = resnet18()
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with caplog.at_level(logging.INFO, "tasks.retrieval"):
        task = make(emoji, partial(EmbeddingNet, "resnet18", init="imagenet", weights=str(tmp_path / "weights.pth")))
    assert "network starts from ImageNet weights weights.pth" in caplog.text
    assert task.describe()["network_starts_from"] == "ImageNet weights weights.pth"
    assert torch.equal(task.networks["model"].backbone.layer4[1].conv2.weight, net.layer4[1].conv2.weight)


@pytest.mark.parametrize("content", ["other", "broken", "list", None])
def test_weights_that_are_missing_broken_or_of_another_network_are_named(tmp_path, content):
    path = tmp_path / "w.pth"
    if content == "other":
        torch.save({"a": torch.zeros(1)}, path)
    elif content == "list":
        torch.save([1], path)
    elif content == "broken":
        path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"w\.pth"):
        EmbeddingNet("resnet18", 0, init="imagenet", weights=str(path))


def test_without_a_file_imagenet_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth is not on this machine; download"):
        EmbeddingNet("resnet50", 0, init="imagenet")


@pytest.mark.parametrize(
    ("options", "words"),
    [({"backbone": "vgg"}, "model.backbone=vgg"), ({"features": 0}, "model.features=0"),
     ({"init": "best"}, "model.init=best"), ({"init": "imagenet", "width": 0.5}, "no weights of width 0.5")],
)  # fmt: skip
def test_a_network_that_cannot_be_is_named(options, words):
    given = {"backbone": "resnet18", **options}
    with pytest.raises(InputError, match=words):
        EmbeddingNet(given.pop("backbone"), 0, **given)


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
        (update,) = task.updates(task.networks, batch, {})
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
    with pytest.raises(InputError, match="emoji_designs: 4 of 4 embeddings are not finite"):
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
        make(emoji).train_batches(0, Shard(parts=2))


# ------------------------------------------------------------------------------------------ what AdamP can act on


def projected(net, loss_name, *, steps=6):
    """Return how often AdamP projects each parameter: per channel, per layer."""
    from adamp.projection import NONE

    task_labels = torch.arange(12) % 4
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 255
    from adamp import NormProbe
    from tasks.retrieval import proxy_anchor_loss, semihard_triplet_loss

    named = [(name, p) for name, p in net.named_parameters() if p.ndim > 1]
    optimizer = AdamP([p for _, p in named] + [p for p in net.parameters() if p.ndim == 1], lr=1e-4)
    probe = NormProbe(named, every=1)
    probe.attach(optimizer)
    for _ in range(steps):
        rows, proxies = net(images)
        loss = (
            proxy_anchor_loss(rows, task_labels, proxies)
            if loss_name == "proxy_anchor"
            else semihard_triplet_loss(rows, task_labels, margin=0.5)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert NONE is not None
    return {
        key.removeprefix("projected/"): value
        for key, value in probe.read(layers=True).items()
        if key.startswith("projected/")
    }


@pytest.mark.parametrize("loss", ["proxy_anchor", "triplet"])
def test_with_frozen_batchnorm_adamp_acts_on_the_embedding_and_the_proxies_and_hardly_on_convolutions(loss):
    torch.manual_seed(0)
    net = EmbeddingNet("resnet18", 4 if loss == "proxy_anchor" else 0, width=0.125)
    net.measure_statistics([torch.rand(32, 3, 32, 32) * 255])
    share = projected(net, loss)
    convolutions = [value for name, value in share.items() if name.startswith("backbone.")]
    assert share["embedding.weight"] == 1
    assert loss == "triplet" or share["proxies"] == 1
    assert sum(convolutions) / len(convolutions) < 0.35  # the test of a whole layer passes by chance now and then


def test_by_structure_only_the_proxies_are_invariant_alone_and_the_embedding_together_with_its_bias():
    torch.manual_seed(0)
    net, images = SMALL(num_proxies=4).double(), torch.rand(8, 3, 32, 32) * 255
    assert scale_invariant_parameters(net, images) == {"proxies"}
    before = net(images)[0]
    with torch.no_grad():
        net.embedding.bias.normal_()
        before = net(images)[0]
        net.embedding.weight.mul_(3)
        net.embedding.bias.mul_(3)
    assert torch.allclose(net(images)[0], before, atol=1e-12)
    trained = SMALL(num_proxies=4, freeze_statistics=False)
    assert any(name.startswith("backbone.") for name in scale_invariant_parameters(trained, images))


# ------------------------------------------------------------------------------------------ under the engine


def test_the_warm_up_trains_the_head_alone_and_the_proxies_keep_a_hundred_times_the_rate(emoji, tmp_path):
    task = make(emoji)
    net = task.networks["model"]
    start = {name: value.clone() for name, value in net.state_dict().items()}
    made = toys.trainer(task, tmp_path, phases=two_phases(), rules=RULES, clip_value=10.0)
    epochs = made.epochs()
    next(epochs)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, start[name])}
    assert moved == {"embedding.weight", "embedding.bias", "proxies"}
    warm = {name: p.detach().clone() for name, p in net.named_parameters()}
    for rate in (5e-4, 2.5e-4):
        next(epochs)
        assert [group["lr"] for group in made.optimizers["model"].param_groups] == pytest.approx([rate, 100 * rate])
    after = net.state_dict()
    assert not torch.equal(after["backbone.conv1.weight"], warm["backbone.conv1.weight"])
    assert not torch.equal(after["backbone.bn1.weight"], warm["backbone.bn1.weight"])
    assert all(torch.equal(after[name], start[name]) for name in start if "running" in name)
    toys.close(made)


def test_the_groups_of_the_optimizer_are_in_the_same_order_every_time():
    net = SMALL(num_proxies=3)
    optimizer = build_optimizer(adam, parameter_groups("model", net, RULES))
    names = {id(p): name for name, p in net.named_parameters()}
    assert [names[id(p)] for p in optimizer.param_groups[1]["params"]] == ["proxies"]
    assert [names[id(p)] for p in optimizer.param_groups[0]["params"]] == [n for n in names.values() if n != "proxies"]


@pytest.mark.parametrize("stop", [2, 4])  # within the warm-up, and just after it: 3 steps an epoch
def test_resuming_changes_no_bit_on_either_side_of_the_warm_up(emoji, tmp_path, stop):
    whole = fit(make(emoji), tmp_path / "whole")
    task = make(emoji)
    updates, hook = task.updates, toys.kill_at(stop, signal.SIGTERM)

    def disturbed(nets, batch, carry):
        hook()
        return updates(nets, batch, carry)

    task.updates = disturbed
    with pytest.raises(Stopped):
        fit(task, tmp_path / "stopped")
    toys.OPEN.pop().close()
    resumed = fit(make(emoji), tmp_path / "stopped")
    one, other = toys.weights(whole), toys.weights(resumed)
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert lines[0] == lines[1]


def test_triplets_train_under_every_phase_even_when_a_batch_has_none(tmp_path):
    data = EmojiDesigns(num_classes=80, image_size=32)  # 40 classes: most batches of 4 have no pair
    made = fit(make(data, batch_size=4, loss="triplet"), tmp_path, rules=(), batch_size=4, max_steps=4)
    assert made.at.step == 4


def test_unreadable_pictures_are_replaced_in_training_and_left_out_of_the_search(tmp_path, caplog):
    root = layouts.write_cub(tmp_path / "set", classes=6, each=5)
    images = sorted((root / "CUB_200_2011" / "images").rglob("Bird_*.jpg"))
    for path in (images[0], images[-1]):
        path.write_bytes(b"damaged")
    data = OfficialSet("cub", str(root), image_size=32, strict_counts=False, last_train_class=3)
    made = fit(make(data, batch_size=5), tmp_path / "run", batch_size=5)
    assert made.notices == {"corrupt_images": 2}
    assert scores(tmp_path / "run")[-1]["val/recall_at_32"] == 100


# ------------------------------------------------------------------------------------------ two processes


def pair_task(loss):
    task = make(EmojiDesigns(num_classes=16, image_size=32), loss=loss, sampler="balanced", images_per_class=3)
    task.networks["model"].double()
    return task


def both_losses(world: World, folder: Path) -> None:
    for loss, rules in (("proxy_anchor", RULES), ("triplet", ())):
        made = fit(pair_task(loss), folder / loss, world=world, rules=rules)
        if world.main:
            torch.save(toys.weights(made), folder / f"{loss}.pt")


def test_two_processes_equal_one(tmp_path):
    code = (
        "import sys; from tasks.engine.distributed import spawn; "
        f"sys.exit(spawn([sys.executable, '-m', 'tests.tasks.retrieval.test_task', {str(tmp_path / 'two')!r}], 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    both_losses(toys.CPU, tmp_path / "one")
    for loss in ("proxy_anchor", "triplet"):
        one, two = (torch.load(tmp_path / name / f"{loss}.pt", weights_only=True) for name in ("one", "two"))
        # Adam divides a gradient by its own size: rounding of the sum over processes comes out magnified, though tiny.
        assert max((one[name].double() - two[name].double()).abs().max().item() for name in one) < 1e-9
        first, second = (scores(tmp_path / name / loss) for name in ("one", "two"))
        assert [line["val/recall_at_1"] for line in first] == [line["val/recall_at_1"] for line in second]


if __name__ == "__main__":
    with joined("cpu", timeout_minutes=5) as here:
        both_losses(here, Path(sys.argv[1]))
