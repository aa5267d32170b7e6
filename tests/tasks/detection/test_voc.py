"""Sets in Pascal VOC's layout, converted to COCO's."""

import json
from pathlib import Path

import pytest
from PIL import Image

from evidence.runs.run import ReadError
from scripts.prepare import voc
from tasks.detection import CocoSet

SIZE = (40, 30)


def write_voc(root: Path, objects: dict[str, str], *, lists: dict[str, str], size: tuple[int, int] = SIZE) -> Path:
    """Write pictures of 40 x 30, their annotation files with the given objects, and the lists."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for name, text in objects.items():
        Image.new("RGB", SIZE, "gray").save(root / "JPEGImages" / f"{name}.jpg")
        stated = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{stated}{text}</annotation>")
    for name, text in lists.items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text(text)
    return root


def obj(name: str, *corners: float | str, difficult: int = 0) -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


LISTS = {"train": "a\nb\n", "val": "c  1\n"}
OBJECTS = {
    "a": obj("red", 1, 1, 40, 30) + obj("blue", 11, 6, 20, 15),  # the whole picture; ten by ten pixels
    "b": obj("red", -4, 20, 60, 99) + obj("red", 8, 8, 8, 8) + obj("blue", 41, 2, 50, 9),
    "c": obj("white", 5, 5, 9, 9) + obj("red", 2, 2, 12, 12, difficult=1),
}


@pytest.fixture
def converted(tmp_path, capsys):
    write_voc(tmp_path / "voc", OBJECTS, lists=LISTS)
    assert voc.main([f"root={tmp_path / 'voc'}", f"out={tmp_path / 'coco'}"]) == 0
    return tmp_path / "coco", capsys.readouterr().out


def test_a_converted_set_reads_as_cocos(converted):
    data = CocoSet(str(converted[0]), name="cells", categories="file", licence="MIT")
    assert data.classes == ("blue", "red", "white")
    assert data.num_examples == {"train": 2, "val": 1}
    assert data.skipped == {}
    assert data.objects("train", 0)[0].tolist() == [[0, 0, 40, 30], [10, 5, 20, 15]]
    assert data.image("val", 0).size == SIZE


def test_a_box_beyond_the_picture_is_clipped_and_one_without_pixels_named(converted):
    folder, said = converted
    data = CocoSet(str(folder), name="cells", categories="file")
    assert data.objects("train", 1)[0].tolist() == [[0, 19, 40, 30]]
    assert "b.xml: red has the corners 8, 8, 8, 8: empty or outside" in said
    assert "b.xml: blue has the corners 41, 2, 50, 9: empty or outside" in said
    assert "train  2 pictures, 3 boxes of 3 classes" in said


def test_difficult_objects_are_crowds(converted):
    entries = json.loads((converted[0] / "annotations" / "instances_val2017.json").read_text())["annotations"]
    assert [entry["iscrowd"] for entry in entries] == [0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lists": {"train": "a\n"}}, r"val\.txt: is missing; .*train= and val= name its lists"),
        ({"lists": LISTS | {"val": "b\n"}}, r"train=train and val=val share 1 pictures: b"),
        ({"lists": LISTS | {"val": "c\nc\n"}}, r"val\.txt: lists 2 pictures, 1 of them different"),
        ({"lists": LISTS | {"val": "d\n"}}, r"JPEGImages/d: there is no such picture"),
        ({"size": (30, 40)}, r"a\.xml: states 30 x 40 pixels; the picture has 40 x 30"),
        ({"objects": OBJECTS | {"c": obj("red", 1, 2, 3, "x")}}, r"c\.xml: the object 'red' has the corners .*'x'"),
        ({"objects": OBJECTS | {"c": "<object>"}}, r"c\.xml: cannot be read"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path, change, message):
    write_voc(tmp_path / "voc", **({"objects": OBJECTS, "lists": LISTS} | change))
    with pytest.raises(ReadError, match=message):
        voc.main([f"root={tmp_path / 'voc'}", f"out={tmp_path / 'coco'}"])
    assert not (tmp_path / "coco").exists()


def test_nothing_is_written_over(tmp_path):
    write_voc(tmp_path / "voc", OBJECTS, lists=LISTS)
    with pytest.raises(ReadError, match=r"out=.*: exists; give a new folder"):
        voc.main([f"root={tmp_path / 'voc'}", f"out={tmp_path}"])
