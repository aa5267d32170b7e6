import logging
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tasks.base import InputError
from tasks.data.images import UnreadableImageError
from tasks.retrieval import EmojiDesigns, OfficialSet
from tasks.retrieval.sets import FACTS, read_rgb
from tests.tasks.retrieval import layouts


def small(name, root, **options):
    return OfficialSet(name, str(root), **{"image_size": 24, "strict_counts": False, **options})


def test_cub_is_split_by_class_and_its_odd_files_are_read(tmp_path):
    data = small("cub", layouts.write_cub(tmp_path), last_train_class=3)
    assert data.train_labels == [0] * 4 + [1] * 4 + [2] * 4  # the leftover of macOS is skipped
    assert data.val_labels == [0] * 4 + [1] * 4 + [2] * 4
    assert (data.num_queries, data.ks, data.queries_without_match) == (None, (1, 2, 4, 8, 16, 32), 0)
    for index in (0, 1):  # grey and CMYK
        image, label = data.train_example(index)
        assert (image.shape, image.dtype, label) == ((3, 24, 24), torch.uint8, 0)
    image, number = data.eval_example(5)
    assert (image.shape, number) == ((3, 24, 24), 5)
    assert data.describe()["val_classes"] == 3


def test_the_set_may_be_the_root_itself(tmp_path):
    inside = layouts.write_cub(tmp_path) / "CUB_200_2011"
    assert small("cub", inside, last_train_class=3).num_examples == {"train": 12, "val": 12}


@pytest.mark.parametrize("write", [layouts.write_cars, layouts.write_cars_devkit, layouts.write_cars_torchvision])
def test_cars_is_split_at_class_98_in_each_layout(tmp_path, write):
    data = small("cars", write(tmp_path))
    assert data.classes == ("1", "2", "98")
    assert data.train_labels == [0, 0, 1, 1, 2]
    assert data.val_labels == [0, 0, 1, 1, 2]
    assert data.queries_without_match == 1  # class 196 has one picture
    assert all(data.eval_example(i)[0].shape == (3, 24, 24) for i in range(5))


def test_sop_is_split_by_its_files(tmp_path):
    data = small("sop", layouts.write_sop(tmp_path))
    assert data.train_labels == [0] * 3 + [1] * 4 + [2] * 5
    assert data.val_labels == [0] * 2 + [1] * 3 + [2] * 4
    assert data.ks == (1, 10, 100, 1000)
    assert data.location("val", 0).endswith("4_0.JPG")


def test_inshop_has_queries_and_a_gallery_in_one_numbering(tmp_path):
    data = small("inshop", layouts.write_inshop(tmp_path))
    assert data.train_labels == [0, 0, 0, 1, 1]
    assert data.num_queries == 4
    assert data.val_labels == [0, 1, 1, 2, 0, 0, 1, 2]
    facts = data.describe()
    assert (facts["queries"], facts["gallery"], facts["queries_without_match"]) == (4, 4, 0)
    assert all(data.eval_example(i)[0].shape == (3, 24, 24) for i in range(8))


def test_held_out_training_classes_are_searched_instead_of_the_test_classes(tmp_path):
    data = small("cub", layouts.write_cub(tmp_path), last_train_class=4, held_out=0.25)
    assert (data.name, data.classes, data.num_examples) == (
        "cub_subset_held_out",
        ("1", "2", "3"),
        {"train": 12, "val": 4},
    )


def test_only_the_published_split_bears_the_name_of_the_set(tmp_path, monkeypatch):
    root = layouts.write_cub(tmp_path)
    assert small("cub", root, last_train_class=3).name == "cub_subset"
    published = {"train": (12, 3), "queries": (12, 3)}
    monkeypatch.setitem(FACTS, "cub", replace(FACTS["cub"], counts=published))
    assert small("cub", root, last_train_class=3).name == "cub"
    assert small("cub", root, last_train_class=4).name == "cub_unverified"


def test_the_published_counts_are_required_unless_told_otherwise(tmp_path):
    with pytest.raises(InputError, match="train has 12 pictures of 3 classes, published are 59551 of 11318"):
        OfficialSet("sop", str(layouts.write_sop(tmp_path)))
    assert sum(images for images, _ in FACTS["cub"].counts.values()) == 11788
    assert sum(images for images, _ in FACTS["cars"].counts.values()) == 16185
    assert sum(images for images, _ in FACTS["sop"].counts.values()) == 120053


@pytest.mark.parametrize(
    ("name", "write", "lost"),
    [
        ("cub", layouts.write_cub, "CUB_200_2011/image_class_labels.txt"),
        ("cub", layouts.write_cub, "CUB_200_2011/images.txt"),
        ("cars", layouts.write_cars, "cars196/cars_annos.mat"),
        ("cars", layouts.write_cars_devkit, "devkit/cars_test_annos_withlabels.mat"),
        ("sop", layouts.write_sop, "Stanford_Online_Products/Ebay_test.txt"),
        ("inshop", layouts.write_inshop, "Inshop_Clothes/Eval/list_eval_partition.txt"),
    ],
)
def test_a_missing_split_file_is_named(tmp_path, name, write, lost):
    root = write(tmp_path)
    (root / lost).unlink()
    with pytest.raises(InputError, match=lost.rsplit("/", 1)[-1]):
        small(name, root)


@pytest.mark.parametrize(
    ("name", "write", "file", "text", "words"),
    [
        ("cub", layouts.write_cub, "CUB_200_2011/images.txt", "1 a.jpg b\n", "images.txt, line 1: 3 columns, not 2"),
        ("cub", layouts.write_cub, "CUB_200_2011/images.txt", "1 a.jpg\n", "stands in only one of"),
        ("cub", layouts.write_cub, "CUB_200_2011/image_class_labels.txt", "1 one\n", "'one' is no class number"),
        ("cars", layouts.write_cars, "cars196/cars_annos.mat", "nothing", "is no annotation file of Cars-196"),
        ("sop", layouts.write_sop, "Stanford_Online_Products/Ebay_train.txt", "a b c d\n", "lists no pictures"),
        ("inshop", layouts.write_inshop, "Inshop_Clothes/Eval/list_eval_partition.txt", "2\nh\na.jpg id_1 train\n",
         "says '2' pictures and lists 1"),
        ("inshop", layouts.write_inshop, "Inshop_Clothes/Eval/list_eval_partition.txt", "1\nh\na.jpg id_1 test\n",
         "is in part 'test'"),
    ],
)  # fmt: skip
def test_a_damaged_split_file_is_named_with_what_is_wrong(tmp_path, name, write, file, text, words):
    (write(tmp_path) / file).write_text(text)
    with pytest.raises(InputError, match=words):
        small(name, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "birds"}, "data.name=birds: choose one of cub, cars, sop, inshop"),
        ({"root": None}, "data_root is not set"),
        ({"root": "/nowhere"}, "data_root=/nowhere: does not exist"),
        ({"image_size": 0}, "data.image_size=0"),
        ({"resize_ratio": float("nan")}, "data.resize_ratio=nan"),
        ({"held_out": 1.0}, "data.held_out=1.0"),
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale"),
        ({"last_train_class": 6}, "no picture to search with"),
    ],
)
def test_options_that_cannot_be_are_named(tmp_path, change, words):
    options = {"name": "cub", "root": str(layouts.write_cub(tmp_path)), "last_train_class": 3} | change
    with pytest.raises(InputError, match=words):
        OfficialSet(options.pop("name"), options.pop("root"), **options)


def test_a_missing_or_damaged_picture_is_unreadable_and_transparency_is_white(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"none\.jpg"):
        read_rgb(tmp_path / "none.jpg")
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UnreadableImageError, match=r"bad\.jpg"):
        read_rgb(tmp_path / "bad.jpg")
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (4, 4), (10, 255)).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").getpixel((0, 0)) == (10, 10, 10)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "palette.png", transparency=bytes([255, 255]))
    assert read_rgb(tmp_path / "palette.png").getpixel((0, 0)) == (200, 100, 50)


@pytest.fixture(scope="module")
def emoji():
    return EmojiDesigns()


def test_the_embedded_set_has_disjoint_classes_of_five_or_six_designs(emoji):
    assert emoji.num_examples == {"train": 2740, "val": 2751}
    assert (emoji.num_classes, len(emoji.val_classes), emoji.queries_without_match) == (527, 526, 0)
    assert not set(emoji.classes) & set(emoji.val_classes)
    for labels in (emoji.train_labels, emoji.val_labels):
        counts = torch.bincount(torch.tensor(labels))
        assert counts.min() >= 5
        assert counts.max() <= 6


def test_embedded_pictures_are_drawings_and_their_training_views_vary_with_the_generator(emoji):
    image, number = emoji.eval_example(100)
    assert (image.shape, image.dtype, number) == ((3, 48, 48), torch.uint8, 100)
    assert image[:, 0, 0].tolist() == [230, 230, 230]
    views = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        views.append(emoji.train_example(3))
    assert torch.equal(views[0][0], views[2][0])
    assert not torch.equal(views[0][0], views[1][0])
    assert views[0][1] == emoji.train_labels[3]
    assert views[0][0].float().std() > 5


def test_the_recorded_channel_means_are_those_of_the_training_pictures(emoji):
    images = emoji._pictures["train"].float()
    opacity = images[:, 3:] / 255
    pixels = (images[:, :3] * opacity + 230 * (1 - opacity)) / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(list(emoji.mean), abs=0.001)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx(list(emoji.std), abs=0.001)


def test_fewer_classes_are_a_part_and_damaged_sheets_are_named(tmp_path):
    few = EmojiDesigns(num_classes=9, image_size=16)
    assert (few.name, few.num_classes, len(few.val_classes)) == ("emoji_designs_subset", 5, 4)
    with pytest.raises(InputError, match=r"data\.num_classes=3"):
        EmojiDesigns(num_classes=3)
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        EmojiDesigns(str(tmp_path))
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="is no manifest"):
        EmojiDesigns(str(tmp_path))
    text = '{"size": 32, "classes": ["a"], "sheets": {"x": {"file": "x.webp", "sha256": "0", "absent": []}}}'
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.webp: cannot be read"):
        EmojiDesigns(str(tmp_path))
    (tmp_path / "x.webp").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"x\.webp: is damaged"):
        EmojiDesigns(str(tmp_path))


def test_a_class_with_one_picture_is_announced(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "tasks.retrieval"):
        small("cars", layouts.write_cars(tmp_path))
    assert "1 of the queries have no other picture of their class" in caplog.text
