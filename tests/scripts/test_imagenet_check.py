import pytest
from PIL import Image

from evidence.runs.run import ReadError
from scripts import imagenet_check as check
from scripts.prepare import imagenet_shards
from tasks.data import imagenet_check as checks
from tests.tasks.data.pictures import picture, write_image_folder

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # Python 3.12 and later, for fork


@pytest.fixture
def root(tmp_path):
    return write_image_folder(tmp_path / "set", classes=3, train=8, val=3)


def checked(root, tmp_path, *words):
    """Return the exit code and the report."""
    given = [f"data_root={root}", f"out={tmp_path / 'out'}", "workers=1", "expect=any"]
    code = check.main([*(w for w in given if w.split("=")[0] not in {x.split("=")[0] for x in words}), *words])
    return code, (tmp_path / "out" / "imagenet-check.md").read_text()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_good_set_is_counted_and_passes(root, tmp_path, workers, capsys):
    code, report = checked(root, tmp_path, f"workers={workers}")
    assert code == 0
    assert "All is well" in report
    assert "train: 24 pictures in 3 classes, 8 to 8 each" in report
    assert "val: 9 decoded, on average" in report and "24 x 20 pixels" in report
    assert "problem" not in capsys.readouterr().out


def test_pictures_that_cannot_be_decoded_are_named_by_kind(root, tmp_path):
    folder = root / "train" / "n00000001"
    Image.fromarray(picture(5, width=200, height=150)).save(folder / "train_0003.JPEG")
    whole = (folder / "train_0003.JPEG").read_bytes()
    (folder / "train_0003.JPEG").write_bytes(whole[: len(whole) // 2])
    (folder / "train_0004.JPEG").write_bytes(b"")
    (folder / "train_0005.JPEG").unlink()
    (folder / "train_0005.JPEG").symlink_to(tmp_path / "nothing")
    code, report = checked(root, tmp_path)
    assert code == 1
    assert "- 1 truncated pictures" in report and "- 2 unreadable pictures" in report
    for number in (3, 4, 5):
        assert f"train_000{number}.JPEG (" in report


def test_every_chosen_picture_is_decoded_by_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "CHUNK", 2)  # 20 chunks of train/: more than two workers have waiting
    root = write_image_folder(tmp_path / "set", classes=2, train=20, val=1)
    broken = root / "train" / "n00000000" / "train_0017.JPEG"  # in the ninth chunk
    broken.write_bytes(broken.read_bytes()[:-200])
    code, report = checked(root, tmp_path, "workers=2")
    assert code == 1
    assert "train: 39 decoded" in report and "- 1 truncated pictures" in report


def test_pictures_that_were_not_looked_at_are_a_problem():
    found = checks.Found()
    checks.check_pictures("val", iter([checks.Seen("a", trouble="truncated: b")]), found, num_chosen=3)
    assert found.problems == ["val: 1 pictures were checked of 3 chosen"]


def test_other_colours_and_formats_are_notes(root, tmp_path):
    folder = root / "val" / "n00000000"
    Image.fromarray(picture(1)).convert("CMYK").save(folder / "val_0000.JPEG")
    Image.fromarray(picture(2)).save(folder / "val_0001.JPEG", format="PNG")
    Image.fromarray(picture(3)).convert("L").save(folder / "val_0002.JPEG")
    code, report = checked(root, tmp_path)
    assert code == 0
    for kind in ("CMYK", "not JPEG", "grey"):
        assert f"1 pictures are {kind}" in report
    assert "val_0001.JPEG (PNG)" in report


def test_classes_that_differ_empty_ones_and_loose_files_are_named(root, tmp_path):
    (root / "train" / "n9").mkdir()
    (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"")
    code, report = checked(root, tmp_path)
    assert code == 1
    assert "1 class folders of train/ are not in val/: n9" in report
    assert "train/ has 1 empty class folders: n9" in report
    assert "val/ holds 1 files beside its class folders" in report and "ILSVRC2012_val_00000001.JPEG" in report


def test_the_counts_of_imagenet_are_asked_for_by_default(root, tmp_path):
    code, report = checked(root, tmp_path, "expect=imagenet")
    assert code == 1
    assert "train/ holds 24 pictures, ILSVRC 2012 has 1,281,167" in report
    assert "val/ has 3 classes, ILSVRC 2012 has 1,000" in report
    assert "3 classes of val/ do not hold 50 pictures" in report


def test_a_sample_is_spread_over_the_set(root, tmp_path):
    code, report = checked(root, tmp_path, "pictures=6")
    assert code == 0
    assert "train: 6 decoded" in report and "only 6 pictures of each split" in report
    assert checks.chosen(24, "6") == [0, 4, 8, 12, 16, 20]


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_checked_too(root, tmp_path, workers):
    (root / "train" / "n00000002" / "train_0007.JPEG").write_bytes(b"broken")
    imagenet_shards.main([f"data_root={root}", f"out={tmp_path / 'shards'}", "shard_size=10", "workers=1"])
    code, report = checked(tmp_path / "shards", tmp_path, f"workers={workers}")
    assert code == 1
    assert "- 1 unreadable pictures" in report and ".tar:n00000002/train_0007.JPEG" in report
    tar = tmp_path / "shards" / "train-000001.tar"
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes()[:-700])
    with pytest.raises(ReadError, match=r"train-000001\.tar is truncated"):
        checked(tmp_path / "shards", tmp_path)


@pytest.mark.parametrize(
    "words",
    [["data_root="], ["data_root=nowhere"], ["expect=cifar"], ["pictures=some"], ["workers=0"], ["speed=1"]],
)
def test_a_wrong_option_is_named(root, tmp_path, words):
    with pytest.raises(ReadError, match=words[0].split("=")[0]):
        checked(root, tmp_path, *words)
