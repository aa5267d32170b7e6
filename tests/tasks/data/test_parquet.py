"""Parquet copies of ImageNet give the pictures and the order of the folders."""

import json
from pathlib import Path

import pytest
import torch

from tasks.base import InputError, Shard
from tasks.data import CorruptImages, ImageFolderSet, ImageParquetSet, UnreadableImageError, train_batches
from tests.tasks.data.pictures import write_image_folder

pa = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
pq = pytest.importorskip("pyarrow.parquet")

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 and later, for fork
]


def write_parquet(folder: Path, out: Path, *, files: int = 2, group: int = 3, named: bool = True) -> Path:
    """Write a folder's splits as the hub does: rows in another order, names with the synset, several files."""
    (out / "data").mkdir(parents=True)
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for split, prefix in (("train", "train"), ("val", "validation")):
        paths = sorted((folder / split).rglob("*.JPEG"), key=lambda path: (path.stem[::-1], path.parent.name))
        rows = [
            {
                "image": {
                    "bytes": path.read_bytes(),
                    "path": f"{path.stem}_{path.parent.name}.JPEG" if named else None,
                },
                "label": classes.index(path.parent.name),
            }
            for path in paths
        ]
        names = {"info": {"features": {"label": {"names": [f"class {name}" for name in classes]}}}}
        for number in range(files):
            part = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
            table = pa.Table.from_pylist(part).replace_schema_metadata({"huggingface": json.dumps(names)})
            target = out / "data" / f"{prefix}-{number:05d}-of-{files:05d}.parquet"
            pq.write_table(table, target, row_group_size=group)
    return out


@pytest.fixture
def folder(tmp_path):
    return write_image_folder(tmp_path / "folder", classes=3, train=8, val=3)


def batches(data, *, shard=None, start=0, num_workers=0):
    return list(
        train_batches(
            data, shard or Shard(), batch_size=8, seed=1, epoch=2, start=start, corrupt=CorruptImages(data),
            num_workers=num_workers,
        )
    )  # fmt: skip


def assert_same(one, other):
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_pictures_labels_classes_and_order_are_those_of_the_folders(folder, tmp_path):
    one = ImageFolderSet(str(folder), image_size=16)
    other = ImageParquetSet(str(write_parquet(folder, tmp_path / "hub")), image_size=16)
    assert other.describe() == one.describe()
    assert other.classes == one.classes
    for index in range(9):
        assert torch.equal(one.eval_example(index)[0], other.eval_example(index)[0])
    assert_same(batches(one), batches(other))
    assert "data/train-0000" in other.location("train", 5) and "row" in other.location("train", 5)


def test_any_process_from_any_step_with_any_workers_gets_its_share(folder, tmp_path):
    data = ImageParquetSet(str(write_parquet(folder, tmp_path / "hub")), image_size=16)
    whole = batches(data, shard=Shard(1, 2))
    assert_same(batches(data, shard=Shard(1, 2), start=1, num_workers=2), whole[1:])


def test_without_names_the_order_is_that_of_files_and_rows(folder, tmp_path):
    data = ImageParquetSet(str(write_parquet(folder, tmp_path / "hub", named=False)), name="mine", image_size=16)
    assert data.classes == ("class n00000000", "class n00000001", "class n00000002")
    places = [data.location("train", index) for index in range(8)]
    assert places == sorted(places)
    assert [data.label("train", index) for index in range(24)] == [0] * 8 + [1] * 8 + [2] * 8


def test_a_picture_that_cannot_be_decoded_is_named(folder, tmp_path):
    (folder / "train" / "n00000001" / "train_0002.JPEG").write_bytes(b"")
    data = ImageParquetSet(str(write_parquet(folder, tmp_path / "hub")), image_size=16)
    with pytest.raises(UnreadableImageError, match=r"row group \d+ \(train_0002\.JPEG\)"):
        data.train_example(10)


def cut(root):
    path = root / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-50])


def rename_column(root):
    path = root / "data" / "validation-00000-of-00002.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["picture", "label"]), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"train-00001-of-00002\.parquet: cannot be read as rows of image"),
        (rename_column, r"validation-00000-of-00002\.parquet: .*its columns are picture, label"),
        (lambda root: (root / "data" / "train-00000-of-00002.parquet").unlink(), "holds 1 of the 2 files of train"),
        (lambda root: [p.unlink() for p in (root / "data").glob("val*")], r"holds no val\*\.parquet"),
    ],
)
def test_a_damaged_or_missing_file_is_named(folder, tmp_path, damage, message):
    root = write_parquet(folder, tmp_path / "hub")
    damage(root)
    with pytest.raises(InputError, match=message):
        ImageParquetSet(str(root))
