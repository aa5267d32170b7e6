import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

from tasks.base import InputError, Shard, StepContext
from tasks.data import CutMix, FashionMnist, ImageFolderSet, RandAugment, Synthetic
from tasks.imagenet import ImageNet
from tasks.networks import resnet18
from tests.tasks.data.pictures import write_fashion_mnist, write_image_folder
from tests.tasks.training import evaluate, losses_on_one_batch

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = partial(resnet18, width=0.125)


class Linear(nn.Module):
    """The smallest classifier: one linear map of the pixels."""

    def __init__(self, num_classes, size):
        super().__init__()
        self.map = nn.Linear(3 * size * size, num_classes)

    def forward(self, x):
        return self.map(x.flatten(1))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    return FashionMnist(root=str(write_fashion_mnist(tmp_path_factory.mktemp("set"))), image_size=16)


def make(data, model=SMALL, **options):
    torch.manual_seed(0)
    return ImageNet(data, model, **{"batch_size": 8, "seed": 0, **options})


def test_one_step_lowers_the_loss_on_the_same_batch(fashion):
    task = make(fashion, label_smoothing=0.1)
    model = task.networks["model"]
    batch = next(iter(task.train_batches(0, Shard())))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = losses_on_one_batch(task, batch, optimizer)
    assert losses[1] < losses[0]


def test_the_loss_is_cross_entropy_with_smoothing_over_all_classes(fashion):
    task = make(fashion, partial(Linear, size=16), label_smoothing=0.2)
    images, labels = batch = next(iter(task.train_batches(0, Shard())))
    (update,) = task.updates(task.networks, batch, StepContext())
    log_p = task.networks["model"](task.normalise(images)).log_softmax(1)
    target = 0.8 * F.one_hot(labels, 10) + 0.2 / 10
    assert update.network == "model"
    assert update.loss.item() == pytest.approx(-(target * log_p).sum(1).mean().item(), rel=1e-5)
    assert update.log["train/top1"].item() == pytest.approx(100 * (log_p.argmax(1) == labels).float().mean().item())


def test_under_cutmix_the_two_labels_share_the_loss_by_area_and_accuracy_has_a_name_of_its_own(fashion):
    task = make(fashion, partial(Linear, size=16), mix=CutMix())
    images, labels, others, share = batch = next(iter(task.train_batches(0, Shard())))
    (update,) = task.updates(task.networks, batch, StepContext())
    log_p = task.networks["model"](task.normalise(images)).log_softmax(1)
    target = share * F.one_hot(labels, 10) + (1 - share) * F.one_hot(others, 10)
    assert 0 < share < 1
    assert update.loss.item() == pytest.approx(-(target * log_p).sum(1).mean().item(), rel=1e-5)
    assert set(update.log) == {"train/mixed_top1"}


def test_augmented_pictures_reach_the_network_and_evaluation_is_plain(fashion):
    plain, changed = make(fashion), make(fashion, augment=RandAugment)
    images, _ = next(iter(plain.train_batches(0, Shard())))
    others, _ = next(iter(changed.train_batches(0, Shard())))
    assert not torch.equal(images, others)
    for one, other in zip(plain.eval_batches(Shard())["val"], changed.eval_batches(Shard())["val"], strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_scores_equal_a_count_over_all_pictures(fashion, count):
    task = make(fashion, partial(Linear, size=16), eval_batch_size=6)
    scores = task.score("val", evaluate(task, count=count))
    model, first, five, losses = task.networks["model"], 0, 0, []
    for index in range(20):
        image, label = fashion.eval_example(index)
        with torch.no_grad():
            logits = model(task.normalise(image.unsqueeze(0)))[0].double()
        rank = int((logits > logits[label]).sum())
        first, five = first + (rank < 1), five + (rank < 5)
        losses.append(float(logits.logsumexp(0) - logits[label]))
    assert scores["val/top1"] == 100 * first / 20
    assert scores["val/top5"] == 100 * five / 20
    assert scores["val/loss"] == pytest.approx(math.fsum(losses) / 20, rel=1e-5)


def test_scores_do_not_depend_on_the_order_of_records(fashion):
    task = make(fashion, eval_batch_size=3)
    records = evaluate(task)
    assert task.score("val", records) == task.score("val", records[::-1])


def test_a_single_picture_right_or_wrong_scores_all_or_nothing(fashion):
    task = make(fashion)
    right, wrong, loss = torch.tensor([True]), torch.tensor([False]), torch.tensor([0.5], dtype=torch.float64)
    assert task.score("val", [(loss, right, right)]) == {"val/loss": 0.5, "val/top1": 100.0, "val/top5": 100.0}
    assert task.score("val", [(loss, wrong, wrong)]) == {"val/loss": 0.5, "val/top1": 0.0, "val/top5": 0.0}


def test_equal_outputs_count_one_class_in_ten_as_right(fashion):
    task = make(fashion, partial(Linear, size=16))
    nn.init.zeros_(task.networks["model"].map.weight)
    nn.init.zeros_(task.networks["model"].map.bias)
    scores = task.score("val", evaluate(task))
    assert (scores["val/top1"], scores["val/top5"]) == (10.0, 50.0)
    assert scores["val/loss"] == pytest.approx(math.log(10))


def test_no_records_are_an_error_in_words(fashion):
    with pytest.raises(InputError, match="no readable image in the val split"):
        make(fashion).score("val", [])


def test_five_classes_or_fewer_have_no_top5(tmp_path):
    task = make(ImageFolderSet(str(write_image_folder(tmp_path)), image_size=16), partial(Linear, size=16))
    assert set(task.score("val", evaluate(task))) == {"val/loss", "val/top1"}


def test_corrupt_pictures_are_noticed_and_the_rest_is_scored(tmp_path):
    root = write_image_folder(tmp_path)
    for item in range(3):  # the whole first evaluation batch
        (root / "val" / "n00000000" / f"val_{item:04d}.JPEG").write_bytes(b"")
    (root / "train" / "n00000001" / "train_0002.JPEG").write_bytes(b"no picture")
    task = make(ImageFolderSet(str(root), image_size=32), eval_batch_size=3)
    assert task.notices() == {}
    records = evaluate(task)
    assert [len(loss) for loss, _, _ in records] == [0, 3, 3]
    assert task.notices() == {"corrupt_images": 3}
    assert 0 <= task.score("val", records)["val/top1"] <= 100
    list(task.train_batches(0, Shard()))
    assert task.notices() == {"corrupt_images": 4}


def test_normalised_training_pictures_have_mean_zero_and_deviation_one():
    task = make(FashionMnist(image_size=28, crop_scale=(1.0, 1.0)), batch_size=512)
    images, _ = next(iter(task.train_batches(0, Shard())))
    x = task.normalise(images)
    assert x.dtype == torch.float32
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05


def test_example_inputs_fit_the_network_and_move_no_generator(fashion):
    task = make(fashion)
    torch.manual_seed(4)
    drawn = torch.rand(2)
    torch.manual_seed(4)
    inputs = task.example_inputs()
    assert torch.equal(torch.rand(2), drawn)
    assert set(inputs) == set(task.networks)
    assert task.networks["model"](*inputs["model"]).shape == (8, 10)
    assert torch.equal(inputs["model"][0], task.example_inputs()["model"][0])


def test_the_record_names_the_data_really_used(fashion):
    facts = make(fashion).describe()
    assert {"name", "train_examples", "val_examples", "classes", "image_size", "licence"} <= set(facts)
    assert make(fashion).monitor in make(fashion).score("val", [(torch.ones(1), torch.ones(1), torch.ones(1))])


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("batch_size", 0, "train.batch_size=0"),
        ("eval_batch_size", 0, "task.eval_batch_size=0"),
        ("num_workers", -1, "train.num_workers=-1"),
        ("label_smoothing", 1.0, "task.label_smoothing=1.0"),
        ("label_smoothing", float("nan"), "task.label_smoothing=nan"),
    ],
)
def test_a_wrong_option_is_named(fashion, option, value, name):
    with pytest.raises(InputError, match=name):
        make(fashion, **{option: value})


# Configuration --------------------------------------------------------------------------------------------------


def composed(*choices, **values):
    """Compose the task without the primary file, which belongs to the engine and fixes more than is tested here."""
    values = {"train.batch_size": 16, "train.seed": 0, "train.num_workers": 0, **values}
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        groups = [f"+{choice}" for choice in ("task=imagenet", *choices)]
        return compose(None, groups + [f"++{key}={value}" for key, value in values.items()])


@pytest.mark.parametrize(
    ("scale", "name", "target", "sizes"),
    [
        ("mini", "fashion_mnist_10k", "FashionMnist", {"image_size", "model_depth", "warmup_epochs"}),
        ("full", "imagenet", "ImageFolderSet", set()),
    ],
)
def test_each_scale_brings_its_data_into_the_same_place(scale, name, target, sizes):
    config = composed("model=resnet18", f"scale/{scale}@_global_=imagenet", data_root="/somewhere")
    assert config.data.name == name
    assert config.data._target_.endswith(target)
    assert set(config) == {"data", "data_root", "model", "task", "train"} | sizes


def test_a_task_is_built_from_its_configuration():
    values = {"model.width": 0.25, "data.image_size": 32}
    config = composed("data=fashion_mnist_10k", "model=resnet18", **values)
    task = instantiate(config.task, _convert_="all")
    assert isinstance(task, ImageNet)
    assert task.describe()["image_size"] == 32
    assert sum(p.numel() for p in task.networks["model"].parameters()) == 703_386


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
@pytest.mark.parametrize("data", ["imagenet", "fashion_mnist", "fashion_mnist_10k", "fashion_mnist_20k", "synthetic"])
def test_every_default_in_a_file_is_that_of_the_constructor(data, model):
    config = OmegaConf.to_container(composed(f"data={data}", f"model={model}", data_root="null"), resolve=True)
    for name in ("data", "model"):
        arguments = {key: value for key, value in config[name].items() if not key.startswith("_")}
        module, _, attribute = config[name]["_target_"].rpartition(".")
        target = getattr(__import__(module, fromlist=[attribute]), attribute)
        parameters = inspect.signature(target).parameters
        inspect.signature(target).bind_partial(**arguments)
        for key, value in arguments.items():
            default = parameters[key].default
            if default is not inspect.Parameter.empty and key not in ("name", "root"):
                assert value == (list(default) if isinstance(default, tuple) else default), key


def test_a_wrong_data_root_reaches_the_user_as_an_input_error():
    config = composed("data=imagenet", "model=resnet18", data_root="null")
    with pytest.raises(InstantiationException) as info:
        instantiate(config.task, _convert_="all")
    assert isinstance(info.value.__cause__, InputError)


def test_synthetic_data_trains_the_same_task():
    task = make(Synthetic(image_size=32, num_classes=6, train_examples=16, val_examples=4))
    batch = next(iter(task.train_batches(0, Shard())))
    (update,) = task.updates(task.networks, batch, StepContext())
    assert update.loss.isfinite()
