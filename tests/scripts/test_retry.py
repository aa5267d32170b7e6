"""`make retry`: which runs it takes, and by which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evidence.runs.run import ReadError
from scripts import retry

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
    assert "python scripts/train.py opt=sgd train.seed=0\n" in said
    assert "1 runs --config-dir=/mine gpus=2\n  python scripts/train.py gpus=2 opt=sgd\n" in said
    assert said.count("python scripts/train.py") == 2
    assert "1 diverged" in said
    assert "1 are of an earlier version" in said


@pytest.mark.parametrize(("word", "trusted"), [
    ("--config-dir=elsewhere", True), ("hydra.searchpath=[file://elsewhere]", True), ("opt=../../elsewhere", True),
    ("opt={_target_:os.mkdir}", True), ("figures=[os.mkdir]", True), ("+figures=[os.mkdir]", True),
    ("--experimental-rerun=elsewhere", False), ("+hydra.callbacks.a._target_=os.mkdir", False),
    ("opt@hydra.callbacks.a=sgd", False), ("hydra/job_logging=elsewhere", False),
])  # fmt: skip
def test_what_chooses_code_is_not_taken_from_a_record_that_nobody_trusts(
    word: str, trusted: bool, tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    made(write_run, tmp_path, 0, [word, "train.seed=0"])
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
    from tests import commands

    assert commands.call(*commands.options(tmp_path, "train.epochs=1")).code == 0
    record = commands.record(tmp_path)
    assert "opt=sgd" not in record["argv"]  # exactly what was typed
    assert "train.epochs=1" in record["argv"]
    assert commands.call(*record["argv"]).out.count("was finished before") == 1
    assert json.dumps(record["argv"])
