"""Every task's update is that of the global batch, however processes and micro-batches cut it, or is refused by name.

In float64, so that only the order of sums is left to differ. Networks are in evaluation mode: BatchNorm's batch
statistics and dropout's draws are those of a micro-batch by definition.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tasks.adversarial import Adversarial
from tasks.audio import AudioClassifier, HarmonicCnn, official_set
from tasks.base import InputError, Task
from tasks.data import FashionMnist
from tasks.detection import CenterNet, CocoSet, Detection, Ssd
from tasks.engine.distributed import World, process_group
from tasks.engine.train_state import TrainState
from tasks.engine.train_step import train_step
from tasks.imagenet import ImageNet
from tasks.language import Corpus, DropoutLstm, LanguageModel, TransformerXL
from tasks.networks import resnet18
from tasks.retrieval import EmbeddingNet, EmojiDesigns, Retrieval
from tests.engine import toys
from tests.tasks.audio import layouts as audio_layouts
from tests.tasks.data.pictures import write_fashion_mnist
from tests.tasks.detection import layouts as detection_layouts
from tests.tasks.rebias.sets import biased_mnist
from tests.tasks.training import run_pair

BATCH = 12
SMALL = partial(resnet18, width=0.0625)
REFUSED = ("rebias", "proxy-anchor", "triplets")  # their losses compare the examples of a whole batch


def prepare(root: Path) -> None:
    """Write the sets that are read from files."""
    write_fashion_mnist(root / "fashion")
    detection_layouts.write_coco(root / "coco")
    for name in ("speech_commands", "mtat"):
        (root / f"{name}.path").write_text(str(getattr(audio_layouts, name)(root)))


def text() -> Corpus:
    draw = np.random.RandomState(0)
    tokens = {
        split: draw.randint(0, 60, count).astype(np.int32)
        for split, count in (("train", 900), ("valid", 90), ("test", 90))
    }
    return Corpus("words", [f"w{i}" for i in range(60)], np.bincount(tokens["train"], minlength=60), tokens)


def audio(name: str, root: Path, **options: Any) -> Task:
    data = official_set(name, (root / f"{name}.path").read_text(), cache=str(root / "cache"), **options)
    model = partial(HarmonicCnn, width=1 / 32, time_pools=(2, 2, 2, 2, 2, 2, 1))
    return AudioClassifier(
        data, model, batch_size=BATCH, seed=0, input_length=16_384, chunks=1, select="loss", select_after=0,
        eval_batch_size=4,
    )  # fmt: skip


def detection(model: Callable[..., Any], root: Path) -> Task:
    return Detection(
        CocoSet(str(root / "coco"), categories="file", name="squares", licence="none"), model, batch_size=BATCH, seed=0
    )


def retrieval(loss: str, root: Path) -> Task:
    model = partial(EmbeddingNet, "resnet18", width=0.0625, features=16)
    return Retrieval(EmojiDesigns(num_classes=8, image_size=32), model, batch_size=BATCH, seed=0, loss=loss)


def fashion(root: Path) -> FashionMnist:
    return FashionMnist(root=str(root / "fashion"), image_size=16)


CASES: dict[str, Callable[[Path], Task]] = {
    "imagenet": lambda root: ImageNet(fashion(root), SMALL, batch_size=BATCH, seed=0, label_smoothing=0.1),
    "adversarial": lambda root: Adversarial(fashion(root), SMALL, batch_size=BATCH, seed=0, train_steps=2),
    "keywords": partial(audio, "speech_commands"),
    "tags": partial(audio, "mtat", num_tags=5),
    "centernet": partial(detection, partial(CenterNet, image_size=64, width=0.0625, head_channels=8, init="random")),
    "ssd": partial(detection, partial(Ssd, width=0.03125, init="random")),
    "lstm": lambda root: LanguageModel(
        text(), lambda words: DropoutLstm(words, width=8, hidden=12, layers=2), columns=BATCH, length=10, seed=0
    ),
    "transformer-xl": lambda root: LanguageModel(
        text(),
        lambda words: TransformerXL(
            words, layers=2, width=16, heads=2, head_width=8, inner_width=16, memory=4, dropout=0.0, cutoffs=(20, 40)
        ),
        columns=BATCH, length=10, seed=0, random_lengths=True,
    ),
    "rebias": lambda root: biased_mnist(),
    "proxy-anchor": partial(retrieval, "proxy_anchor"),
    "triplets": partial(retrieval, "triplet"),
}  # fmt: skip


def one_step(case: str, root: Path, world: World, *, accumulation: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Take one step of SGD in float64, and return the mean losses that it logs and the weights after it."""
    torch.manual_seed(0)
    task, train = CASES[case](root), toys.options(batch_size=BATCH, accumulation=accumulation)
    for net in task.networks.values():
        net.double().eval()
        net.register_forward_pre_hook(to_float64)
    state = TrainState.initial(task.networks, train, world)
    state.optimizers = {role: torch.optim.SGD(net.parameters(), lr=0.01) for role, net in state.modules.items()}
    wrapped = {role: world.wrap(net) for role, net in state.modules.items()}
    batches = list(islice(task.train_batches(0, world.shard(accumulation)), accumulation))
    train_step(state, task, wrapped, batches, train=train, world=world)
    losses = {name: value for name, value in state.meter.read(world).items() if name.endswith("loss")}
    return losses, {
        f"{role}.{name}": p.detach().clone()
        for role, net in state.modules.items()
        for name, p in net.named_parameters()
    }


def to_float64(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def compare(root: Path, world: World, case: str, *, accumulation: int) -> None:
    losses, weights = one_step(case, root, toys.CPU, accumulation=1)
    other_losses, other_weights = one_step(case, root, world, accumulation=accumulation)
    where = f"{case}, {world.size} processes, {accumulation} micro-batches"
    assert other_losses == pytest.approx(losses, rel=1e-11, abs=1e-12), where
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-11, atol=1e-12, msg=f"{where}: {name}")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sets")
    prepare(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_an_update_of_micro_batches_is_that_of_the_whole_batch_or_refused(root: Path, case: str) -> None:
    if case in REFUSED:
        with pytest.raises(InputError, match=r"train\.accumulation=3"):
            one_step(case, root, toys.CPU, accumulation=3)
    else:
        compare(root, toys.CPU, case, accumulation=3)


def test_an_update_of_two_processes_is_that_of_one(root: Path) -> None:
    run_pair("tests.tasks.test_global_batch", root, seconds=300)


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=4) as here:
        for each in CASES:
            for pieces in (1,) if each in REFUSED else (1, 2):
                compare(Path(sys.argv[1]), here, each, accumulation=pieces)
