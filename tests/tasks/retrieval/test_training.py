"""The task under the engine: phases, resuming, bad data, two processes."""

import signal
import sys
from pathlib import Path

import pytest
import torch

from tasks.engine.distributed import World, process_group
from tasks.engine.errors import Stopped
from tasks.engine.optim import build_optimizer, parameter_groups
from tasks.retrieval import EmojiDesigns, OfficialSet
from tests.engine import toys
from tests.tasks.retrieval import layouts
from tests.tasks.retrieval.small import RULES, SMALL, adam, fit, make, scores, two_phases
from tests.tasks.training import run_pair


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
        assert [group["lr"] for group in made.state.optimizers["model"].param_groups] == pytest.approx(
            [rate, 100 * rate]
        )
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

    def disturbed(nets, batch, context):
        hook()
        return updates(nets, batch, context)

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
    assert made.state.progress.step == 4


def test_unreadable_pictures_are_replaced_in_training_and_left_out_of_the_search(tmp_path, caplog):
    root = layouts.write_cub(tmp_path / "set", classes=6, each=5)
    images = sorted((root / "CUB_200_2011" / "images").rglob("Bird_*.jpg"))
    for path in (images[0], images[-1]):
        path.write_bytes(b"damaged")
    data = OfficialSet("cub", str(root), image_size=32, strict_counts=False, last_train_class=3)
    made = fit(make(data, batch_size=5), tmp_path / "run", batch_size=5)
    assert made.notices == {"corrupt_images": 2}
    assert scores(tmp_path / "run")[-1]["val/recall_at_32"] == 100


def pair_task(loss):
    task = make(EmojiDesigns(num_classes=16, image_size=32), loss=loss, sampler="balanced", images_per_class=3)
    task.networks["model"].double()
    return task


def both_losses(world: World, folder: Path) -> None:
    for loss, rules in (("proxy_anchor", RULES), ("triplet", ())):
        made = fit(pair_task(loss), folder / loss, world=world, rules=rules)
        if world.is_main:
            torch.save(toys.weights(made), folder / f"{loss}.pt")


def test_two_processes_equal_one(tmp_path):
    run_pair("tests.tasks.retrieval.test_training", tmp_path / "two", seconds=300)
    both_losses(toys.CPU, tmp_path / "one")
    for loss in ("proxy_anchor", "triplet"):
        one, two = (torch.load(tmp_path / name / f"{loss}.pt", weights_only=True) for name in ("one", "two"))
        # Adam divides a gradient by its own size: rounding of the sum over processes comes out magnified, though tiny.
        assert max((one[name].double() - two[name].double()).abs().max().item() for name in one) < 1e-9
        first, second = (scores(tmp_path / name / loss) for name in ("one", "two"))
        assert [line["val/recall_at_1"] for line in first] == [line["val/recall_at_1"] for line in second]


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=5) as here:
        both_losses(here, Path(sys.argv[1]))
