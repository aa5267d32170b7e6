import csv

import numpy as np
import pytest

from benchmarks import loader
from evidence.runs.run import ReadError

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on a machine with one core
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded"),  # Python 3.12 and later, for fork
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # of timm
]


def test_all_loaders_are_timed_on_the_same_pictures_and_compared(tmp_path, capsys):
    words = ["images=8", "size=16", "batch=4", "workers=0,1", "rounds=2", "width=30", "height=20"]
    assert loader.main([*words, f"folder={tmp_path / 'pictures'}", f"out={tmp_path}"]) == 0
    with (tmp_path / "loader.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6  # ours whole and quick, of folders and shards, and the two libraries
    assert {row["loader"] for row in rows} == {*loader.OURS, *loader.REFERENCES, "decoding alone"}
    assert all(row["images"] == "8" and float(row["cpu_seconds"]) > 0 for row in rows)
    lines = [line for line in (tmp_path / "loader.md").read_text().splitlines() if line.startswith("| ")]
    assert [line.count("(") for line in lines] == [0, 0, *2 * [4, 4, 4, 2, 2, 4]]
    assert len(list((tmp_path / "pictures" / "folders" / "train").rglob("*.JPEG"))) == 8


def test_workers_time_counts():
    def passing(epoch):
        from torch.utils.data import DataLoader

        yield from ((np_batch, labels) for np_batch, labels in DataLoader(Busy(), batch_size=2, num_workers=1))

    images, cpu, wall = loader.timed(passing, 0, size=4)
    assert images == 2
    assert cpu >= 0.2
    assert wall > 0


class Busy:
    """Two pictures that take a tenth of a second of CPU time each."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        import time

        begun = time.process_time()
        while time.process_time() - begun < 0.1:
            pass
        return np.zeros((3, 4, 4), np.float32), index


def test_generated_pictures_repeat_and_look_like_photographs_to_the_encoder():
    one, again, other = (np.asarray(loader.picture(n, width=64, height=48)) for n in (1, 1, 2))
    assert one.shape == (48, 64, 3)
    assert (one == again).all() and (one != other).any()
    neighbours = np.abs(np.diff(one.astype(float), axis=1)).mean()
    assert neighbours < 0.7 * np.abs(one.astype(float)[:, :32] - one.astype(float)[:, 32:]).mean()


@pytest.mark.parametrize("word", ["images=2", "rounds=0", "workers=two", "batch=-1", "speed=1"])
def test_options_that_cannot_be_are_named(word, tmp_path):
    with pytest.raises(ReadError, match=word.partition("=")[0]):
        loader.main([word, f"out={tmp_path}"])
