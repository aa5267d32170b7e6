"""Unreadable pictures are counted once a run, and limited once a run, over processes and stops."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.base import InputError
from tasks.data import ImageFolderSet
from tasks.data.images import SPLITS
from tasks.engine.distributed import World, process_group
from tasks.engine.errors import Stopped
from tasks.imagenet import ImageNet
from tests.engine import toys
from tests.tasks.data.pictures import write_image_folder
from tests.tasks.training import run_pair

SIZE = 8
SPOILT = (("train", 0, 1), ("train", 1, 4), ("val", 0, 0), ("val", 2, 1))  # split, class, picture


def network(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, num_classes))


def fit(root: Path, folder: Path, world: World, *, stop_at: int | None = None, max_corrupt: int = 2) -> dict[str, int]:
    """Train two epochs of 24 pictures, and return the notices."""
    torch.manual_seed(0)
    task = ImageNet(
        ImageFolderSet(str(root), image_size=SIZE, max_corrupt=max_corrupt), network, batch_size=8, seed=0,
        eval_batch_size=2,
    )  # fmt: skip
    if stop_at is not None and world.is_main:
        kill, updates = toys.kill_at(stop_at), task.updates

        def killed(*arguments):
            kill()
            yield from updates(*arguments)

        task.updates = killed
    trainer = toys.trainer(task, folder, phases=toys.one_phase(2), epochs=2, batch_size=8, world=world)
    try:
        trainer.fit()
    finally:
        toys.close(trainer)
    assert trainer.notices is not None
    return trainer.notices


def check(root: Path, folder: Path, world: World) -> None:
    assert fit(root / "both", folder / "whole", world) == {"corrupt_images": 4}
    for step in (2, 3, 5):  # inside the first epoch, at its evaluation, inside the last, which may meet none anew
        with pytest.raises(Stopped):
            fit(root / "both", folder / f"stopped-{step}", world, stop_at=step)
        assert fit(root / "both", folder / f"stopped-{step}", world) == {"corrupt_images": 4}
    for split in ("train", "val"):  # in validation each of two processes meets one of two
        if split == "val" or world.size == 1:  # in training one may meet both, and ends the other
            with pytest.raises(InputError, match=rf"2 unreadable {split} images of .* data\.max_corrupt allows \(1\)"):
                fit(root / split, folder / f"limited-{split}", world, max_corrupt=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of three sets with unreadable pictures: in both splits, or in one of them."""
    path = tmp_path_factory.mktemp("set")
    for root, splits in ((path / "both", SPLITS), (path / "train", SPLITS[:1]), (path / "val", SPLITS[1:])):
        write_image_folder(root)
        for split, label, item in SPOILT:
            if split in splits:
                (root / split / f"n{label:08d}" / f"{split}_{item:04d}.JPEG").write_bytes(b"damaged")
    return path


def test_one_process_counts_each_once_whether_it_is_stopped_or_not(root: Path, tmp_path: Path) -> None:
    check(root, tmp_path, toys.CPU)


def test_two_processes_count_each_once_and_share_the_limit(root: Path, tmp_path: Path) -> None:
    run_pair("tests.tasks.test_unreadable_runs", root, tmp_path, seconds=240)


if __name__ == "__main__":
    with process_group("cpu", timeout_minutes=2) as here:
        check(Path(sys.argv[1]), Path(sys.argv[2]), here)
