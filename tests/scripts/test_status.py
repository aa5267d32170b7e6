"""`make status`: every kind of run folder, whole, broken or being written, and many of them at once."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evidence.runs import progress
from evidence.runs.run import ReadError
from evidence.runs.status_text import describe
from scripts import status
from tests import commands

Make = Callable[..., Path]
DEAD = (1 << 22) + 1  # above the kernel's largest process number


def edit(folder: Path, **values: Any) -> Path:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **values}))
    return folder


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def note(folder: Path, **values: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"argv": ["opt=sgd"], "host": socket.gethostname(), "pid": os.getpid(), "launcher": "local", **values}
    (folder / "launch.json").write_text(json.dumps(facts))
    return folder


def test_a_finished_run_shows_its_score(tmp_path: Path, write_run: Make) -> None:
    folder = edit(write_run(tmp_path), monitor="val/top1")
    found = progress.read_progress(folder)
    assert (found.status, found.step, found.steps) == ("finished", 80, 80)
    assert found.score.startswith("val/top1 9")
    assert not found.retriable


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "run.json").write_text('{"status": "finis'), "run.json is no whole JSON"),
        (lambda f: (f / "run.json").write_text("[1, 2]"), "run.json holds no object"),
        (lambda f: (f / "run.json").unlink(), "run.json is missing"),
        (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl is missing"),
        (lambda f: append(f / "metrics.jsonl", '{"step": 99, "ep'), "half a line"),
        (lambda f: edit(f, status="dancing"), "dancing"),
        (lambda f: edit(f, config=[1], status="running"), "what no run writes"),
    ],
)
def test_a_broken_folder_is_listed_with_what_is_wrong_and_hides_no_other(
    tmp_path: Path, write_run: Make, damage: Callable[[Path], object], reason: str
) -> None:
    damage(write_run(tmp_path, seed=0))
    write_run(tmp_path, seed=1)
    broken, whole = progress.iter_progress(tmp_path)
    assert broken.status == "broken"
    assert reason in broken.reason
    assert whole.status == "finished"
    text = "\n".join(status.report([broken, whole], rows=5))
    assert reason in text


def test_a_run_whose_folder_is_held_runs_and_its_time_left_follows_from_its_last_lines(
    tmp_path: Path, write_run: Make
) -> None:
    folder = edit(write_run(tmp_path, epochs=4), status="running", scores={})
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:9]  # two of four epochs
    (folder / "metrics.jsonl").write_text("".join(lines) + '{"step": 45, "epo')
    timing = [{"step": s, "seconds": s / 4, "examples_per_s": 256.0} for s in (5, 30, 35, 40)]
    (folder / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timing))
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = progress.read_progress(folder)
    assert (found.status, found.step, found.steps, found.rate) == ("running", 40, 80, 256.0)
    assert found.left_s == pytest.approx(10.0)
    assert found.loss == json.loads(lines[-1])["train/loss"]
    shown = "\n".join(describe(found))
    assert "step 40 of 80; loss" in shown
    assert "256 examples/s; 0:00:10 left" in shown


def test_a_run_that_no_process_holds_was_interrupted(tmp_path: Path, write_run: Make) -> None:
    folder = edit(write_run(tmp_path), status="running", argv=["opt=sgdp"])
    (folder / ".lock").write_text(str(DEAD))
    found = progress.read_progress(folder)
    assert (found.status, found.reason, found.argv) == ("interrupted", "its process is gone", ("opt=sgdp",))
    assert found.retriable


def test_a_run_on_another_machine_runs_as_long_as_it_writes(tmp_path: Path, write_run: Make) -> None:
    folder = note(edit(write_run(tmp_path), status="running"), launcher="ray", host="elsewhere")
    assert progress.read_progress(folder).status == "running"
    for name in ("timing.jsonl", "run.json"):
        os.utime(folder / name, (time.time() - 7200,) * 2)
    assert progress.read_progress(folder).status == "interrupted"


def test_a_failed_run_says_why_and_one_that_diverged_is_not_tried_again(tmp_path: Path, write_run: Make) -> None:
    failed = edit(write_run(tmp_path, seed=0), status="failed", error="the disk is full\nsecond line", log="/logs/0")
    diverged = edit(write_run(tmp_path, seed=1), status="failed", error="not finite", diverged_at=7)
    a, b = progress.read_progress(failed), progress.read_progress(diverged)
    assert (a.status, a.reason, a.log, a.retriable) == ("failed", "the disk is full", "/logs/0", True)
    assert (b.status, b.diverged, b.retriable) == ("failed", True, False)
    text = "\n".join(status.report([a, b], rows=5))
    assert "log /logs/0" in text
    assert "make retry starts 1" in text


def test_a_cell_that_was_asked_for_waits_until_its_launcher_ends(tmp_path: Path) -> None:
    waiting = progress.read_progress(note(tmp_path / "e" / "waits"))
    assert (waiting.status, waiting.stranded) == ("waiting", False)
    stranded = progress.read_progress(note(tmp_path / "e" / "left", pid=DEAD))
    assert (stranded.status, stranded.stranded, stranded.retriable) == ("waiting", True, True)
    log = tmp_path / "log.txt"
    log.write_text("error: opt.lr is no number\n\n")
    early = progress.read_progress(note(tmp_path / "e" / "early", pid=DEAD, log=str(log)))
    assert (early.status, early.reason) == ("failed", "error: opt.lr is no number")
    coded = progress.read_progress(note(tmp_path / "e" / "coded", code=2))
    assert (coded.status, coded.reason) == ("failed", "ended with code 2 before it began")


def test_a_job_in_the_queue_waits_or_will_go_on(
    tmp_path: Path, write_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "queue", lambda: frozenset({"12_3"}))
    assert progress.read_progress(note(tmp_path / "e" / "new", job="12_3")).status == "waiting"
    assert progress.read_progress(note(tmp_path / "e" / "gone", job="12_4")).stranded
    again = progress.read_progress(note(edit(write_run(tmp_path), status="interrupted"), job="12_3"))
    assert (again.status, again.reason) == ("waiting", "queued again as job 12_3")


def test_the_end_of_ten_million_lines_is_read_without_the_rest(tmp_path: Path, write_run: Make) -> None:
    folder = edit(write_run(tmp_path, epochs=4), status="interrupted")
    last = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)[-2:]
    with (folder / "metrics.jsonl").open("wb") as file:
        file.seek(10_000_000 * len(last[0]))  # a hole: as long as ten million lines, and takes no disk
        file.write(b"\n" + b"".join(last))
    begun = time.process_time()
    found = progress.read_progress(folder)
    assert time.process_time() - begun < 0.5
    assert found.step == 80
    assert found.loss is not None


def test_long_lines_of_layers_do_not_hide_the_loss(tmp_path: Path, write_run: Make) -> None:
    folder = edit(write_run(tmp_path), status="interrupted")
    wide = {f"norm/layer{i}": 1.0 for i in range(5000)}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 81, "epoch": 4.0, **wide}) + "\n")
    found = progress.read_progress(folder)
    assert found.step == 81
    assert found.loss is not None


def many(root: Path, first: Path, number: int) -> None:
    """Copy a run folder's files `number` times, a twentieth of them damaged in turn."""
    files = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    for i in range(number):
        folder = root / f"experiment-{i % 20}" / f"run-{i}"
        folder.mkdir(parents=True)
        for name, content in files.items():
            if i % 100 == 5 and name == "run.json":
                content = content[: len(content) // 2]
            if i % 100 == 25 and name == "metrics.jsonl":
                continue
            (folder / name).write_bytes(content)


def test_many_folders_take_little_time_and_memory(tmp_path: Path, write_run: Make) -> None:
    first = write_run(tmp_path / "one")
    many(tmp_path / "runs", first, 300)
    begun, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(progress.iter_progress(tmp_path / "runs"))
    assert time.process_time() - begun < 300 * 60 / 10_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held < 64 * 1024  # KiB
    assert sum(each.status == "broken" for each in found) == 6
    assert sum(each.status == "finished" for each in found) == 294
    assert len(status.report(found, rows=2)) < 60


@pytest.mark.slow
def test_ten_thousand_folders_are_told_within_a_minute_and_two_gibibytes(tmp_path: Path, write_run: Make) -> None:
    many(tmp_path / "runs", write_run(tmp_path / "one"), 10_000)
    cost = commands.measured(["scripts/status.py", f"runs={tmp_path}/runs"], tmp_path / "out")
    assert cost.code == 0, cost.text
    assert cost.cpu_seconds < 60 and cost.peak_mib < 2048
    assert "9800" in cost.text.splitlines()[21]


def test_the_cells_of_a_sweep_without_a_folder_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(["sweep=claims-norms", "opt=sgd", "opt.weight_decay=0", f"runs={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "not asked for yet" in said
    assert "sgd,wd=0" in said


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["experiment=none"], "no runs of experiment=none"),
        (["rows=-1"], "rows=-1"),
        (["colour=red"], "colour"),
        (["red"], "red"),
        (["sweep=table-99"], "table-99"),
    ],
)
def test_wrong_words_are_refused_in_a_line(tmp_path: Path, words: list[str], part: str) -> None:
    with pytest.raises(ReadError, match=part):
        status.main([*words, f"runs={tmp_path}"])
