"""The soak itself: what it compares, and a few kills of one task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scripts.options import ReadError
from tests.engine import toys
from tests.reliability import soak, soak_runs
from tests.reliability.faults import write_page


def place(base: Path, name: str) -> Path:
    folder = base / name / "runs" / "toys" / "r"
    made = toys.trainer(toys.Toy(), folder)
    made.fit()
    made.record.update(status="finished", scores=made.state.scores)  # type: ignore[union-attr]
    toys.close(made)
    return base / name


def test_equal_runs_have_no_difference_and_each_kind_of_difference_is_found(tmp_path: Path) -> None:
    whole = place(tmp_path, "whole")
    assert not list(soak.differences(whole, place(tmp_path, "same")))
    for change, said in {
        "metrics": "metrics.jsonl differs", "status": "status running", "weights": "last.pt differs",
        "missing": "runs differ", "rest": "left behind",
    }.items():  # fmt: skip
        other = tmp_path / change
        shutil.copytree(whole, other)
        run = other / "runs" / "toys" / "r"
        if change == "metrics":
            with (run / "metrics.jsonl").open("a") as file:
                file.write("{}\n")
        elif change == "status":
            record = json.loads((run / "run.json").read_text())
            (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
        elif change == "weights":
            made = toys.trainer(toys.Toy(seed=1), other / "more")
            made.fit()
            toys.close(made)
            shutil.copy(other / "more" / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt")
        elif change == "missing":
            shutil.rmtree(run)
        else:
            (run / "checkpoints" / "last.tmp").write_bytes(b"half")
        assert any(said in line for line in soak.differences(whole, other)), change


def test_unknown_tasks_and_counts_are_refused() -> None:
    with pytest.raises(ReadError, match="tasks=none is not known; choose among: classification"):
        soak.main(["tasks=none"])
    with pytest.raises(ReadError, match="processes is 1, 2 or 1,2"):
        soak.main(["processes=3"])


def test_every_task_and_the_sweep_have_words_of_their_own(tmp_path: Path) -> None:
    seen = {
        tuple(soak_runs.words(task, data=tmp_path, place=tmp_path, processes=2))
        for task in [*soak_runs.RUNS, *soak_runs.SWEEPS]
    }
    assert len(seen) == len(soak_runs.RUNS) + len(soak_runs.SWEEPS)
    assert all("gpus=2" in words for words in seen)
    assert not [word for words in seen for word in words if "{" in word]


def test_the_page_names_every_task_and_what_was_lost(tmp_path: Path) -> None:
    kills = [{"task": task, "processes": 1, "number": "SIGKILL", "stage": "start", "whom": "all"} for task in "aab"]
    figures = soak.summary(kills, ["b x1: weights differ"], where=["here"], seconds=61)
    page = tmp_path / "page.md"
    page.write_text("<!-- soak: written by make soak -->\nold\n<!-- end of soak -->\nrest\n")
    write_page(page, soak.table(figures), command="soak")
    text = page.read_text()
    assert "| a | 2 | 0 |\n| b | 1 | 1 |\n| **all** | **3** | **1** |" in text
    assert "old" not in text and text.endswith("<!-- end of soak -->\nrest\n")


@pytest.mark.slow
def test_a_few_kills_of_two_tasks_change_no_bit(tmp_path: Path) -> None:
    words = ["kills=6", "tasks=classification,language", f"folder={tmp_path}/work", f"out={tmp_path}/soak.json"]
    assert soak.main(words) == 0
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["kills"] == 6 and not found["faults"]
