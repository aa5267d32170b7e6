import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evidence.runs.run import ReadError
from scripts.prepare import imagenet_shards as writer
from tasks.base import InputError, Shard
from tasks.data import CorruptImages, ImageFolderSet, ImageShardSet, UnreadableImageError, eval_batches, train_batches
from tasks.data import shards as reader
from tests.tasks.data.pictures import picture, write_image_folder

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 and later, for fork
]


@pytest.fixture
def folder(tmp_path):
    root = write_image_folder(tmp_path / "folder", classes=3, train=8, val=3)
    Image.fromarray(picture(40)).convert("CMYK").save(root / "train" / "n00000001" / "a b.c.JPEG")
    Image.fromarray(picture(41)).save(root / "train" / "n00000002" / "x.png")
    return root


@pytest.fixture
def shards(folder, tmp_path):
    assert writer.main([f"data_root={folder}", f"out={tmp_path / 'shards'}", "shard_size=7", "workers=1"]) == 0
    return tmp_path / "shards"


def both(folder, shards, **options):
    return ImageFolderSet(str(folder), image_size=16, **options), ImageShardSet(str(shards), image_size=16, **options)


def batches(data, *, epoch=0, shard=None, start=0, num_workers=0):
    return train_batches(
        data, shard or Shard(), batch_size=8, seed=1, epoch=epoch, start=start, corrupt=CorruptImages(data),
        num_workers=num_workers,
    )  # fmt: skip


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def damage(path, content):
    path.chmod(0o644)
    path.write_bytes(content)


def test_pictures_labels_classes_and_order_are_those_of_the_folders(folder, shards):
    one, other = both(folder, shards)
    assert other.num_examples == one.num_examples == {"train": 26, "val": 9}
    assert (other.classes, other.describe()) == (one.classes, one.describe())
    for index in range(26):
        assert other.location("train", index).endswith(
            str(Path(one.location("train", index)).relative_to(folder / "train"))
        )
        assert other._splits["train"].open(index).read() == one._splits["train"].open(index).read_bytes()
    assert_same(batches(one, epoch=3), batches(other, epoch=3))
    corrupt = CorruptImages(one)
    scored = [eval_batches(data, Shard(), batch_size=4, corrupt=corrupt, num_workers=0) for data in (one, other)]
    assert_same(*scored)


def test_any_process_from_any_step_with_any_workers_gets_its_share_of_the_same_epoch(folder, shards):
    one, other = both(folder, shards)
    for shard in (Shard(1, 2, 2), Shard(0, 4)):
        whole = list(batches(one, epoch=2, shard=shard))
        for start, num_workers in ((0, 2), (1, 0), (2, 1)):
            rest = batches(other, epoch=2, shard=shard, start=start, num_workers=num_workers)
            assert_same(rest, whole[start * shard.accumulation_steps :])


def test_the_set_can_be_sent_to_a_started_worker_and_closes_what_it_opened(folder, shards):
    _, other = both(folder, shards)
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208
    first = other.eval_example(0)[0]
    sent = pickle.loads(pickle.dumps(other))
    assert torch.equal(sent.eval_example(0)[0], first)
    del other, sent
    if before:
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_no_more_files_stay_open_than_allowed(folder, shards, monkeypatch):
    monkeypatch.setattr(reader, "MOST_OPEN", 2)
    one, other = both(folder, shards)
    assert_same(batches(one), batches(other))
    assert len(other._splits["train"]._files._numbers) == 2


def test_training_tars_hold_mixed_classes_and_writing_again_gives_the_same_bytes(folder, shards, tmp_path):
    with tarfile.open(shards / "train-000000.tar") as tar:
        labels = {tar.extractfile(member).read() for member in tar if member.name.endswith(".cls")}
    assert labels == {b"0", b"1", b"2"}
    writer.main([f"data_root={folder}", f"out={tmp_path / 'again'}", "shard_size=7", "workers=2"])
    names = sorted(path.name for path in shards.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert len([name for name in names if name.startswith("train-0")]) == 4
    for name in names:
        if not name.endswith("npz"):  # zip entries carry the time
            assert (shards / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_writer_keeps_whole_shards_and_writes_the_others_again(folder, shards):
    whole, cut = shards / "train-000000.tar", shards / "train-000001.tar"
    stamps = whole.stat().st_mtime_ns, whole.stat().st_ino
    content = cut.read_bytes()
    for kept in (len(content) - 20_000, 700):
        damage(cut, content[:kept])
        writer.main([f"data_root={folder}", f"out={shards}", "shard_size=7", "workers=1"])
        assert cut.read_bytes() == content
    assert (whole.stat().st_mtime_ns, whole.stat().st_ino) == stamps
    other = picture(77)
    Image.fromarray(other).save(folder / "train" / "n00000000" / "train_0000.JPEG", quality=50)
    writer.main([f"data_root={folder}", f"out={shards}", "shard_size=7", "workers=1"])
    assert_same(*(batches(data) for data in both(folder, shards)))


def test_webdataset_and_timm_stream_the_same_files(folder, shards):
    webdataset = pytest.importorskip("webdataset")
    found = []
    for path in sorted(shards.glob("val-0*.tar")):
        with path.open("rb") as stream:
            members = webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
            samples = webdataset.tariterators.group_by_keys(members)
            found += [(sample["__key__"], int(sample["cls"]), sample["jpg"]) for sample in samples]
    one = ImageFolderSet(str(folder), image_size=16)
    assert [key for key, _, _ in found] == [f"{i:08d}" for i in range(9)]
    assert [label for _, label, _ in found] == one._splits["val"].labels.tolist()
    assert found[4][2] == one._splits["val"].open(4).read_bytes()
    from timm.data.readers.reader_wds import _load_info, _parse_split_info

    info = _parse_split_info("train", _load_info(str(shards)))
    assert (info.num_samples, info.filenames) == (26, tuple(f"train-{k:06d}.tar" for k in range(4)))


@pytest.mark.parametrize(("change", "what"), [(-600, "truncated"), (512, "another file")])
def test_a_shard_of_another_length_is_named_before_training(shards, change, what):
    path = shards / "train-000002.tar"
    content = path.read_bytes() + bytes(512)
    damage(path, content[: len(content) - 512 + change])
    with pytest.raises(InputError, match=rf"train-000002\.tar is {what}"):
        ImageShardSet(str(shards))


def test_a_shard_that_is_cut_off_while_it_is_used_is_named_with_the_picture(folder, shards):
    data = ImageShardSet(str(shards), image_size=16)
    damage(shards / "val-000001.tar", (shards / "val-000001.tar").read_bytes()[:600])
    with pytest.raises(UnreadableImageError, match=r"val-000001\.tar:n00000002/val_0001\.JPEG: .*is truncated"):
        data.eval_example(7)
    assert data.eval_example(0)[0].shape == (3, 16, 16)


def test_what_is_missing_is_named(folder, shards):
    with pytest.raises(InputError, match="data_root is not set"):
        ImageShardSet(None)
    with pytest.raises(InputError, match=r"holds no _info\.json"):
        ImageShardSet(str(folder))
    damage(shards / "val-index.npz", b"nothing")
    with pytest.raises(InputError, match=r"val-index\.npz: cannot be read"):
        ImageShardSet(str(shards))
    (shards / "train-000003.tar").unlink()
    with pytest.raises(InputError, match=r"train-000003\.tar cannot be read"):
        ImageShardSet(str(shards))
    for content, message in ((b"{", "cannot be read"), (b'{"format": 0}', "format is 0")):
        damage(shards / "_info.json", content)
        with pytest.raises(InputError, match=message):
            ImageShardSet(str(shards))


def test_an_index_of_another_length_is_refused(shards):
    with np.load(shards / "val-index.npz") as stored:
        arrays = {key: stored[key][:-1] for key in stored}
    np.savez(shards / "val-index.npz", **arrays)
    with pytest.raises(InputError, match=r"lists 8 pictures, _info\.json 9"):
        ImageShardSet(str(shards))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "data_root is not set"),
        (["data_root=x"], "out is not set"),
        (["data_root=x", "out=y", "shard_size=0"], "shard_size is '0'"),
        (["data_root=x", "out=y", "workers=many"], "workers is 'many'"),
        (["data_root=x", "out=y"], "data_root=x: does not exist"),
    ],
)
def test_a_wrong_option_of_the_writer_is_named(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReadError, match=message):
        writer.main(words)
