"""`make retry`: which runs it takes, and by which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evidence.runs import progress
from evidence.runs.run import ReadError
from scripts import retry
from tests import commands

Make = Callable[..., Path]


def made(write_run: Make, root: Path, seed: int, argv: list[str] | None = None, **values: object) -> None:
    change = {"status": "interrupted", **values, **({"argv": argv} if argv is not None else {})}
    write_run(root, seed=seed, change=change)


def test_it_takes_what_may_succeed_by_the_recorded_words_and_leaves_out_where_they_ran(
    tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made(write_run, tmp_path, 0, ["opt=sgd", "launcher=slurm", "jobs=8", "train.seed=0"])
    made(write_run, tmp_path, 1, ["--config-dir=/mine", "gpus=2", "opt=sgd"], status="failed", error="out of memory")
    made(write_run, tmp_path, 2, ["opt=sgd"], status="failed", error="not finite", diverged_at=3)
    made(write_run, tmp_path, 3, ["opt=sgd"], status="finished")
    made(write_run, tmp_path, 4)  # of an earlier version
    assert retry.main([f"runs={tmp_path}", "--dry", "trusted=true", "launcher=local", "jobs=2"]) == 0
    said = capsys.readouterr().out
    assert f"python scripts/train.py opt=sgd train.seed=0 paths.runs={tmp_path}\n" in said
    shared = "1 runs trusted=true --config-dir=/mine gpus=2"
    assert f"{shared}\n  python scripts/train.py gpus=2 opt=sgd paths.runs={tmp_path}\n" in said
    assert said.count("python scripts/train.py") == 2
    assert "1 diverged" in said
    assert "1 are of an earlier version" in said


@pytest.mark.parametrize(("word", "trusted"), [
    ("--config-dir=elsewhere", True), ("hydra.searchpath=[file://elsewhere]", True), ("opt=../../elsewhere", True),
    ("opt={_target_:os.mkdir}", True), ("figures=[os.mkdir]", True), ("+figures=[os.mkdir]", True),
    ("--experimental-rerun=elsewhere", False), ("+hydra.callbacks.a._target_=os.mkdir", False),
    ("opt@hydra.callbacks.a=sgd", False), ("hydra/job_logging=elsewhere", False), ("tag=${oc.env:HOME}", True),
    ("train.epochs=9", False), ("opt.lr=0.1,0.2", False), ("not a word", False),
])  # fmt: skip
def test_what_chooses_code_is_not_taken_from_a_record_that_nobody_trusts(
    word: str, trusted: bool, tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made(write_run, tmp_path, 0, [word, "train.seed=0"], config={"figures": ["os.mkdir"]})
    made(write_run, tmp_path, 1, ["opt=sgd", "data_root=/data/imagenet", "train.seed=1"])
    assert retry.main([f"runs={tmp_path}", "--dry"]) == 0
    said = capsys.readouterr().out
    assert f"its record says {word}, which is not taken" in said
    assert said.count("python scripts/train.py") == 1
    assert "train.py opt=sgd data_root=/data/imagenet train.seed=1" in said
    assert retry.main([f"runs={tmp_path}", "--dry", "trusted=true"]) == 0
    assert capsys.readouterr().out.count("python scripts/train.py") == 1 + trusted


def test_only_one_kind_may_be_asked_for(tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made(write_run, tmp_path, 0, ["opt=sgd"])
    assert retry.main([f"runs={tmp_path}", "--dry", "only=failed"]) == 0
    assert "nothing to start again" in capsys.readouterr().out
    with pytest.raises(ReadError, match="only=all"):
        retry.main([f"runs={tmp_path}", "only=all"])
    with pytest.raises(ReadError, match="chooses nothing"):
        retry.main([f"runs={tmp_path}", "opt=sgd"])


def test_an_unfinished_run_of_today_records_the_words_that_find_it_again(tmp_path: Path) -> None:
    assert commands.call(*commands.options(tmp_path, "train.epochs=1")).code == 0
    record = commands.record(tmp_path)
    assert "opt=sgd" not in record["argv"]  # exactly what was typed
    assert "train.epochs=1" in record["argv"]
    assert commands.call(*record["argv"]).out.count("was finished before") == 1
    assert json.dumps(record["argv"])


def test_runs_that_were_moved_go_on_where_they_are(
    tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["opt=sgd", "train.seed=0", "paths.runs=/before/runs"]
    made(write_run, tmp_path / "a b", 0, words)
    renamed = write_run(tmp_path / "a b", seed=1, change={"status": "interrupted", "argv": ["opt=sgd"]})
    renamed.rename(renamed.with_name("renamed"))
    assert retry.main([f"runs={tmp_path}/a b", "--dry"]) == 0
    said = capsys.readouterr().out
    assert f"train.py opt=sgd train.seed=0 paths.runs={tmp_path}/a b\n" in said
    assert f"its record names it {renamed.name}" in said and said.count("scripts/train.py") == 1


def test_a_moved_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    task = commands.options(tmp_path / "old", "train.epochs=2")
    assert commands.call(*task).code == 0
    (tmp_path / "old").rename(tmp_path / "new")
    path = commands.run_folder(tmp_path / "new") / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "interrupted"}))
    assert retry.main([f"runs={tmp_path}/new/runs", f"out={tmp_path}/out"]) == 0
    record = commands.record(tmp_path / "new")
    assert (record["status"], record["resumed_from"]) == ("finished", [8])
    assert not (tmp_path / "old").exists() and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("change", "offered"), [
    ({}, False), ({"host": "elsewhere"}, False), ({"begun": 1}, True), ({"host": "elsewhere", "begun": 1}, True),
    ({"pid": (1 << 22) + 1, "host": "elsewhere"}, True), ({"boot": "another"}, True),
    ({"boot": "another", "host": "elsewhere"}, False), ({"boot": ""}, False),
])  # fmt: skip
def test_a_cell_is_offered_once_its_launcher_is_gone_and_always_by_force(
    change: dict[str, object], offered: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "toys" / "r"
    folder.mkdir(parents=True)
    note = {**progress.this_process(), "launcher": "local", "argv": ["opt=sgd"], **change}
    (folder / "launch.json").write_text(json.dumps(note))
    for force in (False, True):
        assert retry.main([f"runs={tmp_path}", "--dry", f"force={str(force).lower()}"]) == 0
        assert ("train.py opt=sgd" in capsys.readouterr().out) == (offered or force)


def test_two_retries_at_once_hand_on_their_cells_in_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = []

    class Process:
        def __init__(self, line: list[str]) -> None:
            (self.file,) = (word.partition("=")[2].strip("'") for word in line if "cells=" in word)
            handed.append((self.file, json.loads(Path(self.file).read_text())))

        def wait(self) -> int:
            if len(handed) < 2:  # another starts while this one runs
                retry.launch([], [["opt=adamp"]], [], out=tmp_path)
            return int(json.loads(Path(self.file).read_text()) != handed[0][1]) if len(handed) < 2 else 0

    monkeypatch.setattr(retry.subprocess, "Popen", Process)
    assert retry.launch([], [["opt=sgd"]], [], out=tmp_path) == 0
    assert [cells for _, cells in handed] == [[["opt=sgd"]], [["opt=adamp"]]]
    assert handed[0][0] != handed[1][0] and not list(tmp_path.iterdir())
