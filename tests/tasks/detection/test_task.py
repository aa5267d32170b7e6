"""Detection through the engine: learning, exact resume, two processes equal to one, scores of gathered shards."""

import json
import logging
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from adamp import scale_invariant_parameters
from tasks.base import InputError, Shard, StepContext
from tasks.detection import CenterNet, CocoSet, Detection, Ssd
from tasks.engine.distributed import in_data_order, process_group
from tasks.engine.errors import Stopped
from tasks.engine.phases import Phase
from tests.engine import toys
from tests.tasks import training
from tests.tasks.detection import layouts
from tests.tasks.training import losses_on_one_batch, metrics

SMALL = partial(CenterNet, image_size=64, width=0.0625, head_channels=8, init="random")
SMALL_SSD = partial(Ssd, width=0.03125, init="random")


@pytest.fixture(autouse=True)
def close():
    yield
    while toys.OPEN:
        toys.OPEN.pop().close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return layouts.write_coco(tmp_path_factory.mktemp("coco"))


def make(root, model=SMALL, data=(), **options):
    torch.manual_seed(0)
    return Detection(
        CocoSet(str(root), name="small", categories="file", **dict(data)),
        model,
        **{"batch_size": 4, "seed": 0, **options},
    )


def without_norm(**options):
    """A network whose examples do not see each other, so that processes can be compared with one."""
    net = SMALL(**options)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    return net


def adam(groups):
    return torch.optim.Adam(groups, lr=1e-3)


def fit(task, folder, **options):
    return training.fit(task, folder, phases=[Phase(2, adam)], batch_size=4, **options)


@pytest.mark.parametrize(("model", "lr"), [(SMALL, 5e-3), (partial(SMALL, deformable=False), 5e-3), (SMALL_SSD, 1e-3)])
def test_steps_on_a_repeated_batch_lower_its_loss(root, model, lr):
    task = make(root, model)
    batch = next(iter(task.train_batches(0, Shard())))
    optimizer = torch.optim.Adam(task.networks["model"].parameters(), lr)
    losses = losses_on_one_batch(task, batch, optimizer, steps=6)
    assert losses[-1] < 0.8 * losses[0]
    (update,) = task.updates(task.networks, batch, StepContext())
    assert all(name.startswith("train/") and not value.requires_grad for name, value in update.log.items())


@pytest.mark.slow
def test_four_pictures_are_learnt_by_heart(tmp_path):
    scenes = layouts.rectangles(4, seed=5)
    layouts.write_split(tmp_path, "train2017", scenes)
    layouts.write_split(tmp_path, "val2017", scenes)
    task = make(tmp_path, partial(SMALL, width=0.125, head_channels=32))
    data, view = task.data, task.view
    views = [view.test(data.image("train", index)) for index in range(4)]
    found = [data.objects("train", index) for index in range(4)]
    owner = torch.arange(4).repeat_interleave(torch.tensor([len(labels) for _, labels in found]))
    batch = (
        torch.stack([shown for shown, _ in views]), torch.cat([boxes for boxes, _ in found]),
        torch.cat([labels for _, labels in found]), owner,
    )  # fmt: skip
    optimizer = torch.optim.Adam(task.networks["model"].parameters(), 5e-3)
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 400)
        (update,) = task.updates(task.networks, batch, StepContext())
        optimizer.zero_grad()
        update.loss.backward()
        optimizer.step()
    assert task.score("val", training.evaluate(task))["val/ap"] > 90


def test_a_batch_is_the_same_however_it_is_cut_or_loaded_and_differs_between_epochs(root):
    task = make(root)
    whole = list(task.train_batches(1, Shard()))
    assert len(whole) == 3
    for images, boxes, labels, owner in whole:
        assert (images.shape, images.dtype) == ((4, 3, 64, 64), torch.float32)  # jittered beyond 0 and 255
        assert len(boxes) == len(labels) == len(owner)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    for index in range(2):
        mine = list(task.train_batches(1, Shard(index, 2)))
        for (images, boxes, _, owner), half in zip(whole, mine, strict=True):
            assert half[0].equal(images[2 * index : 2 * index + 2])
            assert half[1].equal(boxes[(owner // 2) == index])
    parts = list(task.train_batches(1, Shard(accumulation_steps=2), start=1))
    assert torch.cat([parts[0][0], parts[1][0]]).equal(whole[1][0])
    workers = list(make(root, num_workers=1).train_batches(1, Shard(), start=2))
    assert all(one.equal(other) for one, other in zip(workers[0], whole[2], strict=True))
    assert not next(iter(task.train_batches(2, Shard())))[0].equal(whole[0][0])


@pytest.mark.parametrize("model", [SMALL, partial(SMALL, keep_size=True), SMALL_SSD])
def test_gathered_shards_score_as_one_process(root, model):
    task = make(root, model, eval_batch_size=2)
    task.networks["model"].eval()
    if model is not SMALL_SSD:  # something to find at once, so that there are scores to compare
        nn.init.constant_(task.networks["model"].heads["size"][2].bias, 5.0)

    @torch.no_grad()
    def records(shard):
        return [task.predict(task.networks, batch, {}) for batch in task.eval_batches(shard)["val"]]

    whole = records(Shard())
    gathered = in_data_order([records(Shard(0, 2)), records(Shard(1, 2))])
    assert [image for images, _ in whole for image in images] == [900, 903, 906, 909, 912]
    assert task.score("val", gathered) == task.score("val", whole)
    assert {int(category) for _, found in whole for rows in found for category in rows[:, 5]} <= {1, 7, 90}
    assert json.dumps(task.score("val", whole))
    assert task.score("val", [(whole[0][0], [np.zeros((0, 6))] * len(whole[0][0]))])["val/ap"] == 0


def test_the_mirror_image_may_be_averaged_in_and_ssd_refuses_it(root):
    task = make(root, flip_test=True)
    task.networks["model"].eval()
    batch = next(iter(task.eval_batches(Shard())["val"]))
    with torch.no_grad():
        plain, (images, found) = make(root).predict(task.networks, batch, {}), task.predict(task.networks, batch, {})
    assert plain[0] == images
    assert all(rows.shape == (100, 6) for rows in found)
    with pytest.raises(InputError, match="flip_test=true: only CenterNet"):
        make(root, SMALL_SSD, flip_test=True)


def test_colours_go_in_as_the_published_code_has_them_if_asked(root):
    images = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    plain = make(root).normalise(images).flatten()
    assert plain.tolist() == pytest.approx(
        [(200 / 255 - 0.485) / 0.229, (100 / 255 - 0.456) / 0.224, (50 / 255 - 0.406) / 0.225]
    )
    swapped = make(root, colours="centernet_bgr").normalise(images).flatten()
    assert swapped.tolist() == pytest.approx(
        [(50 / 255 - 0.408) / 0.289, (100 / 255 - 0.447) / 0.274, (200 / 255 - 0.470) / 0.278]
    )


def damage(root, folder, *names):
    for name in names:
        path = root / folder / f"{name:012d}.jpg"
        path.write_bytes(path.read_bytes()[:150])


def test_unreadable_pictures_are_counted_and_passed_over_and_too_many_end_a_run(tmp_path, caplog):
    layouts.write_coco(tmp_path)
    damage(tmp_path, "train2017", 103)
    damage(tmp_path, "val2017", 903)
    task = make(tmp_path, data={"max_corrupt": 1}, eval_batch_size=1)
    with caplog.at_level(logging.WARNING):
        assert len(list(task.train_batches(0, Shard()))) == 3
        task.networks["model"].eval()
        with torch.no_grad():
            records = [task.predict(task.networks, batch, {}) for batch in task.eval_batches(Shard())["val"]]
    assert caplog.text.count("unreadable image left out") == 2
    assert "val/ap" in task.score("val", records)
    assert task.notices() == {"corrupt_images": 2}
    damage(tmp_path, "train2017", 106)
    with pytest.raises(InputError, match="2 unreadable train images of 12"):
        list(make(tmp_path, data={"max_corrupt": 1}).train_batches(0, Shard()))


def test_what_the_annotation_files_hold_too_much_is_noted_in_the_record(tmp_path):
    layouts.write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append(layouts.annotation(900, 100, 1, (3, 3, 0, 5)))
    path.write_text(json.dumps(content))
    assert make(tmp_path).notices() == {"boxes_without_area": 1}


def test_a_stopped_run_goes_on_without_a_changed_bit(root, tmp_path):
    whole = fit(make(root), tmp_path / "whole")
    assert metrics(tmp_path / "whole")[-1]["val/ap"] >= 0
    for step in (2, 5):  # inside the first epoch and the second
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Stopped):
            fit(make(root), folder, stop_at=step)
        resumed = fit(make(root), folder)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert (folder / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_stopped_run_of_ssd_goes_on_without_a_changed_bit(root, tmp_path):
    whole = fit(make(root, SMALL_SSD), tmp_path / "whole")
    with pytest.raises(Stopped):
        fit(make(root, SMALL_SSD), tmp_path / "stopped", stop_at=4)
    resumed = fit(make(root, SMALL_SSD), tmp_path / "stopped")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def main(root: Path, folder: Path) -> None:
    """What each process of a pair does."""
    torch.set_num_threads(1)
    with process_group("cpu", timeout_minutes=1) as world:
        fit(make(root, without_norm), folder, world=world)


def test_two_processes_equal_one(root, tmp_path):
    training.run_pair("tests.tasks.detection.test_task", root, tmp_path / "two", seconds=180)
    fit(make(root, without_norm), tmp_path / "one")
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        assert one.keys() == two.keys()
        # float32 sums in another order; the cosine and the oscillation divide small differences
        keys = [key for key in one if not {"cosine", "margin", "oscillation"} & set(key.split("/"))]
        assert [two[key] for key in keys] == pytest.approx([one[key] for key in keys], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (partial(SMALL, image_size=256), (2, 3, 128, 128)),
        (SMALL_SSD, (1, 3, 300, 300)),
        (partial(SMALL_SSD, bn_extras=True), (4, 3, 300, 300)),
    ],
)
def test_pictures_for_the_probe_are_few_and_enough_for_every_batch_norm(root, model, shape):
    task = make(root, model)
    (pictures,) = task.example_inputs()["model"]
    assert pictures.shape == shape
    norms = [m for m in task.networks["model"].modules() if isinstance(m, nn.BatchNorm2d)]
    seen = []
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].numel() // args[0].shape[1]))
    task.networks["model"](pictures)
    assert min(seen) > 2


def test_the_probe_finds_the_weights_without_scale_from_training_pictures(root):
    task = make(root)
    (pictures,) = task.example_inputs()["model"]
    assert pictures.shape == (2, 3, 64, 64)
    found = scale_invariant_parameters(task.networks["model"], pictures)
    assert "up.3.weight" in found  # a transposed convolution, as a whole
    assert not any("heads" in name for name in found)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "train.batch_size=0"),
        ({"eval_batch_size": 0}, "task.eval_batch_size=0"),
        ({"num_workers": -1}, "train.num_workers=-1"),
        ({"colours": "bgr"}, "task.colours=bgr: choose one of rgb, centernet_bgr"),
        ({"evaluator": "mine"}, "task.evaluator=mine: choose one of pycocotools"),
    ],
)
def test_options_out_of_range_are_refused(root, options, words):
    with pytest.raises(InputError, match=words):
        make(root, **options)


def test_a_batch_that_does_not_divide_or_exceeds_the_set_is_refused(root):
    with pytest.raises(InputError, match="must divide by processes"):
        make(root).train_batches(0, Shard(0, 3))
    with pytest.raises(InputError, match="exceeds the 12 training images"):
        make(root, batch_size=13).train_batches(0, Shard())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
