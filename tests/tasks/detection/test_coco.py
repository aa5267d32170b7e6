"""The reader of COCO's layout: what it takes, what it leaves out and counts, what it refuses."""

import json
import logging
import math

import pytest

from tasks.base import InputError
from tasks.data.images import UnreadableImageError
from tasks.detection import CocoSet
from tasks.detection.annotations import COCO, read_annotations
from tests.tasks.detection import layouts
from tests.tasks.detection.layouts import annotation


def read(root, **options):
    return CocoSet(str(root), **{"name": "small", "categories": "file", **options})


def changed(root, folder="train2017", **entries):
    """Replace or extend parts of an annotation file."""
    path = root / "annotations" / f"instances_{folder}.json"
    content = json.loads(path.read_text())
    for key, values in entries.items():
        content[key] = values(content[key])
    path.write_text(json.dumps(content))
    return path


def test_cocos_80_categories_keep_their_91_numbers_and_lead_back():
    assert len(COCO) == 80
    assert (min(COCO), max(COCO), COCO[1], COCO[90]) == (1, 90, "person", "toothbrush")
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & COCO.keys()
    ids = list(COCO)
    assert [ids[ids.index(number)] for number in COCO] == ids  # label and back


def test_pictures_boxes_and_ids_are_those_of_the_files(tmp_path):
    data = read(layouts.write_coco(tmp_path))
    scenes = layouts.rectangles(12, seed=1)
    assert data.num_examples == {"train": 12, "val": 5}
    assert data.category_ids == (1, 7, 90)
    assert data.classes == ("red", "green", "blue")
    for index, objects in enumerate(scenes):
        boxes, labels = data.objects("train", index)
        assert boxes.tolist() == [[x, y, x + w, y + h] for _, (x, y, w, h) in objects]
        assert [data.category_ids[label] for label in labels] == [category for category, _ in objects]
        assert data.image("train", index).size == (64, 64)
    assert [data.image_id("val", index) for index in range(5)] == [900, 903, 906, 909, 912]


def test_annotations_may_stand_in_any_order(tmp_path):
    plain = read(layouts.write_coco(tmp_path))
    changed(tmp_path, annotations=lambda found: found[::-1])
    shuffled = read(tmp_path)
    for index in range(12):
        one, other = plain.objects("train", index), shuffled.objects("train", index)
        assert sorted(one[0].tolist()) == sorted(other[0].tolist())


def test_crowds_are_not_trained_on_but_the_evaluator_knows_them(tmp_path):
    layouts.write_coco(tmp_path)
    crowd = annotation(500, 900, 7, (0, 0, 60, 60), iscrowd=1, area=900.0)
    changed(tmp_path, "val2017", annotations=lambda found: [*found, crowd])
    plain, all_of_them = read(tmp_path), read(tmp_path, train_on_crowds=True)
    assert len(all_of_them.objects("val", 0)[0]) == len(plain.objects("val", 0)[0]) + 1
    (known,) = [each for each in plain.splits["val"].ground_truth()["annotations"] if each["iscrowd"]]
    assert (known["image_id"], known["category_id"], known["area"]) == (900, 7, 900.0)


def test_an_unknown_area_is_that_of_the_box_and_an_unknown_crowd_none(tmp_path):
    layouts.write_coco(tmp_path)
    unknown = annotation(500, 900, 7, (0, 0, 60, 50)) | {"area": None, "iscrowd": None}
    changed(tmp_path, "val2017", annotations=lambda found: [*found, unknown])
    (known,) = [a for a in read(tmp_path).splits["val"].ground_truth()["annotations"] if a["bbox"][2:] == [60, 50]]
    assert (known["area"], known["iscrowd"]) == (3000, 0)


def test_a_picture_without_a_box_is_kept_or_dropped_and_its_neighbours_stay_theirs(tmp_path):
    scenes = layouts.rectangles(4, seed=3)
    layouts.write_coco(tmp_path)
    layouts.write_split(tmp_path, "train2017", [scenes[0], [], *scenes[1:]])
    kept, dropped = read(tmp_path), read(tmp_path, keep_empty=False)
    assert (kept.num_examples["train"], dropped.num_examples["train"]) == (5, 4)
    assert kept.objects("train", 1)[0].shape == (0, 4)
    for index in range(1, 4):
        assert dropped.image_id("train", index) == kept.image_id("train", index + 1)
        assert dropped.objects("train", index)[0].equal(kept.objects("train", index + 1)[0])


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path, caplog):
    layouts.write_coco(tmp_path)
    bad = [
        annotation(501, 100, 1, (5, 5, 0, 10)), annotation(502, 100, 1, (5, 5, 10, -3)),
        annotation(503, 100, 1, (64, 5, 10, 10)), annotation(504, 100, 1, (-20, -20, 20, 30)),
        annotation(505, 77, 1, (5, 5, 10, 10)),
    ]  # fmt: skip
    changed(tmp_path, annotations=lambda found: [*found, *bad])
    with caplog.at_level(logging.WARNING):
        data = read(tmp_path)
    assert data.skipped == {"boxes_without_area": 2, "boxes_outside_the_image": 2, "annotations_without_image": 1}
    assert "left out 2 boxes without area" in caplog.text
    assert len(data.objects("train", 0)[0]) == len(layouts.rectangles(1, seed=1)[0])


def test_a_box_that_reaches_beyond_its_picture_is_clipped_for_training_alone(tmp_path):
    layouts.write_coco(tmp_path)
    changed(tmp_path, annotations=lambda found: [annotation(1, 100, 1, (-4, 50, 20, 30)), *found[1:]])
    data = read(tmp_path)
    assert data.objects("train", 0)[0][0].tolist() == [0, 50, 16, 64]
    assert data.splits["train"].ground_truth()["annotations"][0]["bbox"] == [-4, 50, 20, 30]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (annotation(601, 100, 5, (1, 1, 5, 5)), "annotation id 601 has category_id 5"),
        (annotation(602, 100, 1, (1, 1, 5)), "annotation id 602"),
        (annotation(603, 100, 1, (1, 1, math.nan, 5)), "annotation id 603"),
        (annotation(604, 100, 1, (1, 1, "wide", 5)), "annotation id 604"),
        ({"id": 605, "image_id": 100}, "annotation id 605"),
        ("a word", r"annotations\["),
    ],
)
def test_an_annotation_that_cannot_be_meant_is_refused_by_file_and_id(tmp_path, entry, words):
    layouts.write_coco(tmp_path)
    path = changed(tmp_path, annotations=lambda found: [*found, entry])
    with pytest.raises(InputError, match=words) as refusal:
        read(tmp_path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": 100, "file_name": "x.jpg", "width": 4, "height": 4}, "image id 100 comes twice"),
        ({"id": 1, "file_name": "x.jpg", "width": 0, "height": 4}, "image id 1 has a size"),
        ({"id": 1, "file_name": "../../x.jpg", "width": 4, "height": 4}, "image id 1 has the file name"),
        ({"id": 1, "width": 4, "height": 4}, r"images\[12\] must have"),
    ],
)
def test_an_image_entry_that_cannot_be_meant_is_refused(tmp_path, entry, words):
    layouts.write_coco(tmp_path)
    changed(tmp_path, images=lambda found: [*found, entry])
    with pytest.raises(InputError, match=words):
        read(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '{"images": []}', '{"images": [], "annotations": [], "categories": []}']
)
def test_a_file_of_another_form_is_refused(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"instances\.json"):
        read_annotations(path)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(InputError, match="data_root is not set"):
        CocoSet(None)
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="has no folder train2017"):
        read(tmp_path)
    layouts.write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(InputError, match=r"instances_val2017.json: cannot be read"):
        read(tmp_path)


def test_the_pictures_may_lie_in_a_folder_of_images(tmp_path):
    before = [read(layouts.write_coco(tmp_path)).objects("train", index)[0].tolist() for index in range(12)]
    (tmp_path / "images").mkdir()
    for folder in ("train2017", "val2017"):
        (tmp_path / folder).rename(tmp_path / "images" / folder)
    data = read(tmp_path)
    assert data.location("val", 0) == str(tmp_path / "images" / "val2017" / "000000000900.jpg")
    assert [data.objects("train", index)[0].tolist() for index in range(12)] == before
    assert data.image("train", 3).size == (64, 64)


def test_a_part_of_coco_is_called_so_and_other_categories_need_a_name(tmp_path):
    layouts.write_coco(tmp_path)
    with pytest.raises(InputError, match=r"data\.name=coco: the categories .* are not COCO's.*data\.licence"):
        read(tmp_path, name="coco")
    assert (read(tmp_path).name, read(tmp_path).licence) == ("small", "not stated; set data.licence")
    for folder in ("train2017", "val2017"):
        changed(tmp_path, folder, categories=lambda _: [{"id": i, "name": name} for i, name in COCO.items()])
    assert read(tmp_path, name="coco").name == "coco_subset"
    assert read(tmp_path, name="coco", licence="mine").licence == "mine"


def test_other_categories_than_cocos_and_other_ones_in_validation_are_refused(tmp_path):
    layouts.write_coco(tmp_path)
    with pytest.raises(InputError, match=r"not COCO's 80 .*data.categories=file"):
        CocoSet(str(tmp_path))
    changed(tmp_path, "val2017", categories=lambda found: [*found, {"id": 91, "name": "more"}])
    with pytest.raises(InputError, match="differ in their categories"):
        read(tmp_path)


def test_a_set_without_any_box_is_refused(tmp_path):
    layouts.write_coco(tmp_path)
    changed(tmp_path, annotations=lambda found: [])
    with pytest.raises(InputError, match="has no box"):
        read(tmp_path)


def test_damaged_missing_and_wrongly_sized_pictures_are_said_to_be_unreadable(tmp_path):
    data = read(layouts.write_coco(tmp_path))
    places = [tmp_path / "train2017" / f"{100 + 3 * number:012d}.jpg" for number in range(3)]
    places[0].write_bytes(places[0].read_bytes()[:200])
    places[1].unlink()
    layouts.paint([], width=32).save(places[2])
    for index, place in enumerate(places):
        with pytest.raises(UnreadableImageError, match=place.name):
            data.image("train", index)
