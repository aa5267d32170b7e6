import json

import pytest

from benchmarks import recall
from evidence.runs.run import ReadError


def test_both_searches_find_the_same_and_the_result_is_written(tmp_path, capsys):
    recall.main(["rows=400", "features=16", "classes=90", "ks=1,5", "noise=1.5", "threads=1", f"out={tmp_path}"])
    found = json.loads((tmp_path / "recall.json").read_text())
    assert found["ours"]["recall"] == found["faiss"]["recall"]
    assert 0 < found["ours"]["recall"]["1"] < found["ours"]["recall"]["5"] < 1
    assert "Ours takes" in (tmp_path / "recall.md").read_text()


@pytest.mark.parametrize("word", ["rows=many", "rows=10", "classes=0", "speed=1"])
def test_options_that_cannot_be_are_named(word, tmp_path):
    with pytest.raises(ReadError):
        recall.main([word, f"out={tmp_path}"])
