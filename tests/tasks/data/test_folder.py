import os

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tasks.base import InputError
from tasks.data import ImageFolderSet, ImageParquetSet, UnreadableImageError, folder
from tasks.data.images import RandomView
from tests.tasks.data.pictures import picture, write_image_folder


def test_order_and_labels_are_those_of_torchvision(tmp_path):
    root = write_image_folder(tmp_path, classes=3, train=4)
    nested = root / "train" / "n00000001" / "nested" / "deeper"
    nested.mkdir(parents=True)
    (root / "train" / "n00000001" / "a.JPEG").symlink_to(root / "val" / "n00000000" / "val_0000.JPEG")
    for name in ("x.jpg", "y.PNG", "notes.txt"):
        Image.fromarray(picture(1)).save(nested / name, format="PNG")
    data = ImageFolderSet(str(root))
    reference = ImageFolder(str(root / "train"))
    listed = [(data.location("train", i), data.label("train", i)) for i in range(data.num_examples["train"])]
    assert listed == reference.samples
    assert list(data.classes) == reference.classes


def test_files_that_macos_adds_are_no_pictures(tmp_path):
    root = write_image_folder(tmp_path, classes=1, train=2, val=1)
    (root / "train" / "n00000000" / "._train_0000.JPEG").write_bytes(b"Mac OS X")
    assert ImageFolderSet(str(root)).num_examples == {"train": 2, "val": 1}


def test_only_a_whole_copy_is_called_imagenet(tmp_path, monkeypatch):
    root = str(write_image_folder(tmp_path, classes=2, train=3, val=2))
    part = ImageFolderSet(root, image_size=16)
    assert (part.name, part.mean, part.std) == ("imagenet_subset", folder.IMAGENET_MEAN, folder.IMAGENET_STD)
    assert part.licence == folder.IMAGENET_LICENCE
    assert ImageFolderSet(root, name="imagenet2").name == "imagenet2"
    monkeypatch.setattr(folder, "IMAGENET_COUNTS", {"train": 6, "val": 4, "classes": 2})
    assert ImageFolderSet(root).name == "imagenet"
    monkeypatch.setattr(folder, "IMAGENET_COUNTS", {"train": 6, "val": 2, "classes": 2})
    assert ImageFolderSet(root).name == "imagenet_unverified"


def test_a_set_of_other_classes_needs_a_name_and_gets_statistics_of_its_own(tmp_path):
    root = write_image_folder(tmp_path, classes=2, train=3, val=2)
    for split in ("train", "val"):
        (root / split / "n00000001").rename(root / split / "tulip")
    with pytest.raises(InputError, match=r"data\.name=imagenet: .*2 classes.*data\.name=NAME.*data\.licence"):
        ImageFolderSet(str(root))
    broken = root / "train" / "tulip" / "train_0002.JPEG"
    broken.write_bytes(b"no picture")
    data = ImageFolderSet(str(root), name="flowers", image_size=16, resize_ratio=1.0)
    pixels = []
    for path in sorted(set((root / "train").rglob("*.JPEG")) - {broken}):
        with Image.open(path) as image:
            whole = v2.functional.center_crop(v2.functional.resize(image, [16], antialias=True), [16, 16])
        pixels.append(np.asarray(whole, dtype=np.float64).reshape(-1, 3) / 255)
    stacked = np.concatenate(pixels)
    assert data.mean == pytest.approx(stacked.mean(0), abs=1e-4)
    assert data.std == pytest.approx(stacked.std(0), abs=1e-4)
    facts = data.describe()
    assert (facts["mean"], facts["licence"]) == (list(data.mean), "not stated; set data.licence")
    given = ImageFolderSet(str(root), name="flowers", mean=(0.5, 0.5, 0.5), std=(1, 1, 1), licence="CC0")
    assert (given.mean, given.std, given.licence) == ((0.5, 0.5, 0.5), (1, 1, 1), "CC0")


def test_a_test_folder_in_place_of_val_is_named(tmp_path):
    write_image_folder(tmp_path)
    (tmp_path / "val").rename(tmp_path / "test")
    with pytest.raises(InputError, match=r"no folder val/ but test/.*ln -s test "):
        ImageFolderSet(str(tmp_path))


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"data=imagenet_parquet needs the package pyarrow: .*\[parquet\]"):
        ImageParquetSet(str(tmp_path))


def test_evaluation_is_a_resize_and_a_centre_crop(tmp_path):
    root = write_image_folder(tmp_path)
    data = ImageFolderSet(str(root), image_size=14)
    image, label = data.eval_example(4)
    with Image.open(data.location("val", 4)) as stored:
        transform = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(14), v2.PILToTensor()])
        assert torch.equal(image, transform(stored.convert("RGB")))
    assert label == 1
    assert image.dtype == torch.uint8


def test_default_sizes_are_256_and_224(tmp_path):
    data = ImageFolderSet(str(write_image_folder(tmp_path, classes=1, train=1, val=1)))
    assert (data._short_side, data.image_size) == (256, 224)
    assert data.eval_example(0)[0].shape == data.train_example(0)[0].shape == (3, 224, 224)


def test_grey_palette_cmyk_and_png_pictures_become_rgb(tmp_path):
    root = write_image_folder(tmp_path, classes=1, train=1, val=1)
    folder = root / "val" / "n00000000"
    (folder / "val_0000.JPEG").unlink()
    colour = Image.fromarray(picture(3))
    colour.convert("L").save(folder / "a_grey.JPEG")
    colour.convert("CMYK").save(folder / "b_cmyk.JPEG")
    colour.quantize(200).save(folder / "c_palette.JPEG", format="PNG")  # ImageNet has a PNG named .JPEG too
    colour.save(folder / "d_colour.JPEG")
    data = ImageFolderSet(str(root), image_size=16)
    images = [data.eval_example(i)[0].float() for i in range(4)]
    assert all(image.shape == (3, 16, 16) for image in images)
    assert torch.equal(images[0][0], images[0][1])
    for image in images[1:3]:
        assert (image - images[3]).abs().mean() < 12


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_picture_that_cannot_be_read_is_named(tmp_path, content):
    root = write_image_folder(tmp_path, classes=1, train=2, val=1)
    path = root / "train" / "n00000000" / "train_0001.JPEG"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    data = ImageFolderSet(str(root), image_size=16)
    with pytest.raises(UnreadableImageError, match=r"train_0001\.JPEG"):
        data.train_example(1)


def test_a_link_to_nothing_is_an_unreadable_picture(tmp_path):
    root = write_image_folder(tmp_path, classes=1, train=2, val=1)
    (root / "train" / "n00000000" / "gone.JPEG").symlink_to(tmp_path / "nothing.JPEG")
    with pytest.raises(UnreadableImageError, match=r"gone\.JPEG"):
        ImageFolderSet(str(root)).train_example(0)


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    root = write_image_folder(tmp_path / "real", classes=2, train=2, val=1)
    linked = tmp_path / "linked"
    (linked / "train").mkdir(parents=True)
    (linked / "val").symlink_to(root / "val")
    for name in ("n00000000", "n00000001"):
        (linked / "train" / name).symlink_to(root / "train" / name)
    (root / "train" / "n00000000" / "loop").symlink_to(root / "train" / "n00000000")
    assert ImageFolderSet(str(linked)).num_examples == {"train": 4, "val": 2}


def test_names_that_are_not_utf8_can_be_read(tmp_path):
    root = write_image_folder(tmp_path, classes=1, train=1, val=1)
    folder = os.fsencode(root / "train" / "n00000000")
    os.rename(folder + b"/train_0000.JPEG", folder + b"/caf\xe9 \xf0.JPEG")  # noqa: PTH104, bytes paths
    assert ImageFolderSet(str(root), image_size=8).train_example(0)[0].shape == (3, 8, 8)


@pytest.mark.parametrize("root", [None, ""])
def test_data_root_must_be_given(root):
    with pytest.raises(InputError, match="data_root is not set"):
        ImageFolderSet(root)


def test_data_root_must_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"data_root=.*file: not a folder"):
        ImageFolderSet(str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"data_root=.*nothing: does not exist"):
        ImageFolderSet(str(tmp_path / "nothing"))


@pytest.mark.parametrize("missing", ["train", "val"])
def test_both_splits_must_be_there(tmp_path, missing):
    write_image_folder(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"data_root=.*no folder {missing}/"):
        ImageFolderSet(str(tmp_path))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_class_folders_is_refused(tmp_path, split):
    write_image_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "elsewhere")
    (tmp_path / split).mkdir()
    (tmp_path / split / "loose.JPEG").touch()  # validation pictures as they come from the archive
    with pytest.raises(InputError, match=f"data_root=.*{split}/ has no class folders"):
        ImageFolderSet(str(tmp_path))


def test_a_split_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write_image_folder(tmp_path)

    def scandir(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"data_root=.*train/ cannot be read \(Permission denied\)"):
        ImageFolderSet(str(tmp_path))


def test_an_empty_class_is_named(tmp_path):
    write_image_folder(tmp_path)
    for path in (tmp_path / "train" / "n00000001").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"train/n00000001 holds no pictures"):
        ImageFolderSet(str(tmp_path))


@pytest.mark.parametrize(("more", "less"), [("train", "val"), ("val", "train")])
def test_classes_that_differ_are_counted_and_the_first_named(tmp_path, more, less):
    write_image_folder(tmp_path)
    for number in range(7):
        (tmp_path / more / f"x{number}").mkdir()
    with pytest.raises(InputError, match=rf"7 class folders of {more}/ are not in {less}/: x0, x1, x2, x3, x4, \.\.\."):
        ImageFolderSet(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"image_size": 0}, "data.image_size=0"),
        ({"resize_ratio": 0.9}, "data.resize_ratio=0.9"),
        ({"max_corrupt": -1}, "data.max_corrupt=-1"),
        ({"interpolation": "lanczos"}, "data.interpolation=lanczos"),
        ({"crop_scale": (0.5, 1.5)}, "data.crop_scale"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, arguments, option):
    with pytest.raises(InputError, match=option):
        ImageFolderSet(str(write_image_folder(tmp_path, classes=1, train=1, val=1)), **arguments)


def test_bicubic_pictures_differ_and_the_record_says_which(tmp_path):
    root = str(write_image_folder(tmp_path, classes=1, train=1, val=1))
    linear, cubic = (ImageFolderSet(root, image_size=20, interpolation=kind) for kind in ("bilinear", "bicubic"))
    assert not torch.equal(linear.eval_example(0)[0], cubic.eval_example(0)[0])
    assert cubic.describe()["interpolation"] == "bicubic, antialiased (Pillow)"
    assert linear.describe()["interpolation"] == "bilinear, antialiased (Pillow)"


def test_the_training_view_keeps_an_area_within_the_scale():
    # A ramp from left to right: the range of values in a view tells how wide the part it shows is.
    ramp = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8), (200, 1)))
    widths = [np.ptp(np.asarray(RandomView(50, (0.25, 0.25))(ramp))) / 200 for _ in range(50)]
    ratio = np.sqrt(4 / 3)
    assert 0.5 / ratio - 0.03 < min(widths) <= max(widths) < 0.5 * ratio + 0.03
