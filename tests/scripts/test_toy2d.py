import shutil

import pytest
from PIL import Image

from evidence.csv_files import read_csv
from evidence.figures import toy2d as toy2d_figures
from evidence.runs.run import ReadError
from scripts import toy2d


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the pictures out: they have a test of their own."""
    for name in ("draw", "animate"):
        monkeypatch.setattr(toy2d_figures, name, lambda *args, **kwargs: None)


def test_all_published_numbers_are_reproduced_printed_and_written(undrawn, tmp_path, capsys):
    assert toy2d.main([f"out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "PASS: 14 of 14 agree" in printed and "27.8715" in printed
    rows = read_csv(tmp_path / "toy2d-numbers.csv")
    assert sum(row["verdict"] == "PASS" for row in rows) == 14
    assert {row["published"] for row in rows if row["run"] == "projected 0.99"} == {"1.15", "0.0000", "–"}
    assert printed.startswith((tmp_path / "toy2d.md").read_text())


def test_running_twice_writes_the_same(undrawn, tmp_path):
    for name in ("a", "b"):
        toy2d.main([f"out={tmp_path / name}", "steps=30"])
    assert (tmp_path / "a" / "toy2d-numbers.csv").read_bytes() == (tmp_path / "b" / "toy2d-numbers.csv").read_bytes()


def test_other_settings_do_not_reproduce_and_say_so(undrawn, tmp_path, capsys):
    assert toy2d.main([f"out={tmp_path}", "steps=30", "loss=linear"]) == 1
    assert "FAIL" in capsys.readouterr().out


def test_figure_and_animation_are_drawn(tmp_path):
    assert toy2d.main([f"out={tmp_path}", "steps=12"]) == 1
    assert {path.name for path in tmp_path.iterdir()} >= {
        "toy2d-paths.svg", "toy2d-paths.png", "toy2d-paths.csv", "toy2d.gif", "toy2d.md",
    }  # fmt: skip
    with Image.open(tmp_path / "toy2d.gif") as animation:
        assert animation.n_frames == 4  # iterations 0, 5, 10 and 12
        assert animation.info["loop"] == 0
        pictures = []
        for frame in range(4):
            animation.seek(frame)
            pictures.append(animation.convert("RGB").tobytes())
    assert len(set(pictures)) == 4


def test_mp4_is_refused_without_ffmpeg(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ReadError, match="needs ffmpeg"):
        toy2d.main(["animation=mp4", f"out={tmp_path}"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["loss=cubic", "lr=-1", "lr=nan", "lr=x", "steps=0", "steps=2.5", "animation=webm"])
def test_bad_values_are_refused_with_the_value(word, tmp_path):
    with pytest.raises(ReadError, match=word):
        toy2d.main([word, f"out={tmp_path}", *(["steps=2"] if "steps" not in word else [])])
