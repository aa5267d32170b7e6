"""Tiles of aerial photographs: how boxes are cut, and what is refused."""

import pytest
from PIL import Image

from evidence.runs.run import ReadError
from scripts.prepare import tree_crowns
from tasks.base import InputError
from tasks.detection import TreeCrowns

VOC = b"""<annotation><object><name>Tree</name><bndbox><xmin>100</xmin><ymin>20</ymin><xmax>140</xmax><ymax>70</ymax>
</bndbox></object></annotation>"""


def test_boxes_are_read_from_pascal_vocs_format():
    assert tree_crowns.boxes(VOC) == [(100, 20, 140, 70)]


def test_a_tile_shows_what_lies_in_it_and_no_slivers():
    whole, half, sliver, thin = (300, 40, 340, 80), (200, 10, 300, 60), (170, 10, 270, 60), (190, 0, 260, 9)
    assert tree_crowns.inside([whole, half, sliver, thin], 256, top=0) == [[44, 40, 40, 40], [0, 10, 44, 50]]


def test_the_splits_share_no_pixel():
    def tiles(split):
        return [(name, x, y) for name, lefts, tops in tree_crowns.TILES[split] for x in lefts for y in tops]

    side = tree_crowns.SIDE
    for name, x, y in tiles("train"):
        for other, u, v in tiles("val"):
            assert name != other or abs(x - u) >= side or abs(y - v) >= side


def write(tmp_path, monkeypatch):
    """Prepare tiles of one made-up photograph."""
    image = Image.new("RGB", (600, 300), "green")
    photographs = {"one": (image, [*tree_crowns.boxes(VOC), (400, 50, 450, 99)])}
    monkeypatch.setattr(
        tree_crowns, "TILES", {split: [("one", [0, 300], [0])] for split in ("train", "val", "test_site")}
    )
    monkeypatch.setattr(tree_crowns, "COUNTS", dict.fromkeys(("train", "val", "test_site"), (2, 2)))
    monkeypatch.setattr(tree_crowns, "read", lambda wheel: photographs)
    return tree_crowns.prepare(tmp_path, tmp_path / "wheel.whl")


def test_prepared_tiles_are_a_set_like_cocos(tmp_path, monkeypatch):
    folder = write(tmp_path, monkeypatch)
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    data = TreeCrowns()
    assert folder == tmp_path / "tree_crowns"
    assert data.num_examples == {"train": 2, "val": 2}
    assert data.classes == ("tree crown",)
    assert data.objects("train", 1)[0].tolist() == [[100, 50, 150, 99]]
    assert data.image("val", 0).size == (256, 256)
    assert TreeCrowns(site=True).location("val", 0).endswith("test_site/one_0_0.jpg")


def test_other_files_and_other_counts_are_refused(tmp_path, monkeypatch):
    (tmp_path / "wheel.whl").write_bytes(b"another")
    with pytest.raises(ReadError, match="another file"):
        tree_crowns.prepare(tmp_path, tmp_path / "wheel.whl")
    with pytest.raises(ReadError, match="cannot be read"):
        tree_crowns.prepare(tmp_path, tmp_path / "nothing.whl")
    assert not (tmp_path / "tree_crowns").exists()


def test_a_set_that_is_not_there_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAMP_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"scripts\.prepare\.tree_crowns"):
        TreeCrowns()
