"""The benchmark of detection's pictures runs and compares like with like; its times are not tested."""

from pathlib import Path

import pytest

from benchmarks import detection
from evidence.runs.run import ReadError


def test_every_path_delivers_pictures_and_both_ways_to_draw_agree(tmp_path: Path) -> None:
    data = detection.write_pictures(tmp_path, pictures=2)
    rates = detection.picture_rates(data, size=64, rounds=1)
    assert rates.keys() == {"centernet", "ssd", "reference ssd", "reference hflip"}
    assert all(rate > 0 for values in rates.values() for rate in values)
    times = detection.heat_times(size=64, rounds=1)  # compares the maps
    shares = {"pictures": 0.1, "targets": 0.1, "rest": 0.8, "seconds a step": 1.0}
    found = {"rates": rates, "heat": times, "shares": shares, "options": {"size": 64}, "where": "here"}
    assert "pictures a second" in detection.summary(found)


def test_options_that_are_no_counts_are_refused() -> None:
    with pytest.raises(ReadError, match="rounds=0"):
        detection.main(["rounds=0"])
