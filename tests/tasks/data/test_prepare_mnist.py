"""Fetching MNIST: what is taken, what is refused, what is said when nothing can be had."""

import hashlib
import io
import json
import pickle

import numpy as np
import pytest

from scripts.prepare import mnist as script
from scripts.prepare.fashion_mnist import FetchError
from tasks.base import InputError
from tasks.data.digits import MnistDigits
from tasks.data.idx import format_idx
from tests.tasks.rebias.sets import glyphs


def contents():
    found = {}
    for stem, count in (("train", 30), ("t10k", 12)):
        images, labels = glyphs(count, seed=0)
        found |= {f"{stem}-images-idx3-ubyte": format_idx(images), f"{stem}-labels-idx1-ubyte": format_idx(labels)}
    return found


def expected():
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents().items()}


def refuse(work):
    raise FetchError("no network")


def test_the_first_source_with_the_published_files_is_taken_and_kept(tmp_path, capsys):
    wrong = {**contents(), "train-labels-idx1-ubyte": b"else"}
    sources = {"a": refuse, "b": lambda work: wrong, "c": lambda work: contents(), "d": refuse}
    folder = script.prepare(tmp_path, sources=sources, expected=expected())
    assert folder == tmp_path / "mnist"
    assert len(MnistDigits(str(folder)).labels["train"]) == 30
    assert json.loads((folder / "manifest.json").read_text())["source"] == "c"
    assert script.prepare(tmp_path, sources={"d": refuse}, expected=expected()) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "mnist"]


def test_when_nothing_can_be_had_everything_tried_is_named(tmp_path):
    sources = {"a": refuse, "b": lambda work: {}}
    with pytest.raises(InputError, match=r"tried a \(no network\); b \(.* is not the published file\)"):
        script.prepare(tmp_path, sources=sources, expected=expected())
    assert not (tmp_path / "mnist").exists()


def test_pixels_over_256_and_three_parts_become_the_published_files():
    draw = np.random.RandomState(0)
    images = draw.randint(0, 256, (9, 784)).astype(np.uint8)
    parts = [((images[k : k + 3] / 256).astype(np.float32), np.arange(k, k + 3)) for k in (0, 3, 6)]
    old = pickle.dumps(parts, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    found = script.read_pickle(old)
    assert found["train-images-idx3-ubyte"] == format_idx(images[:6].reshape(-1, 28, 28))
    assert found["t10k-images-idx3-ubyte"] == format_idx(images[6:].reshape(-1, 28, 28))
    assert found["t10k-labels-idx1-ubyte"] == format_idx(np.arange(6, 9, dtype=np.uint8))


def test_a_pickle_that_asks_for_anything_else_is_refused():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    buffer = io.BytesIO()
    pickle.dump(Evil(), buffer, protocol=2)
    with pytest.raises(FetchError, match=r"its pickle asks for .*print"):
        script.read_pickle(buffer.getvalue())


def test_a_wrong_argument_is_named(capsys):
    assert script.main(["folder=/x"]) == 2
    assert "folder=/x: not an option" in capsys.readouterr().err
