"""The files of a run: whole, honest, and one process at a time."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence.records.row import as_run, result_row
from evidence.runs.run import read_run
from tasks.base import InputError
from tasks.engine import checkpoint, run_record
from tasks.engine.config import config_hash, differing_keys, result_keys
from tasks.engine.errors import Stopped
from tasks.engine.provenance import git_state
from tasks.engine.run_record import RunRecord
from tests.engine import toys

CONFIG: dict[str, Any] = {
    "experiment_name": "e", "opt_name": "sgd", "scale_name": "mini", "opt": {"lr": 0.1}, "data_root": "/a",
    "train": {"seed": 3, "num_workers": 0}, "data": {"name": "x", "root": "/a"},
}  # fmt: skip


def record(folder: Path, config: dict[str, Any] = CONFIG) -> RunRecord:
    return RunRecord(folder, name="r", config=config)


def finish(folder: Path) -> None:
    made = record(folder)
    made.open_metrics(0)
    made.update(status="finished", scores={"val/top1": 1.0}, data={"name": "x"})
    made.close()


def test_the_record_holds_what_a_reviewer_asks_for(tmp_path: Path) -> None:
    finish(tmp_path / "r")
    stored = json.loads((tmp_path / "r" / "run.json").read_text())
    assert stored["config"] == CONFIG and stored["seed"] == 3 and stored["config_hash"] == config_hash(CONFIG)
    assert len(stored["git"]["commit"] or "0" * 40) == 40 and isinstance(stored["git"]["dirty"], bool | None)
    assert {"python", "torch", "adamp"} <= stored["versions"].keys()
    assert stored["hardware"]["cores"] >= 1 and stored["hardware"]["machine"]
    assert stored["wall_time_s"] >= 0 and stored["peak_memory_mib"] > 0


def test_a_finished_run_with_the_same_configuration_is_finished(tmp_path: Path) -> None:
    finish(tmp_path / "r")
    before = (tmp_path / "r" / "run.json").read_bytes()
    again = record(tmp_path / "r", {**CONFIG, "data_root": "/elsewhere", "gpus": 4})
    assert again.finished
    again.close()
    assert (tmp_path / "r" / "run.json").read_bytes() == before


def test_a_changed_configuration_lists_its_keys_and_keeps_the_run(tmp_path: Path) -> None:
    finish(tmp_path / "r")
    before = (tmp_path / "r" / "run.json").read_bytes()
    with pytest.raises(InputError, match=r"opt\.lr: 0\.1 -> 0\.2; opt\.momentum: absent -> 0\.9") as error:
        record(tmp_path / "r", {**CONFIG, "opt": {"lr": 0.2, "momentum": 0.9}})
    assert "tag=NAME" in str(error.value) and len(str(error.value).splitlines()) == 2
    assert (tmp_path / "r" / "run.json").read_bytes() == before


def test_a_run_that_saved_nothing_may_start_anew_with_another_configuration(tmp_path: Path) -> None:
    made = record(tmp_path / "r")
    made.update(status="failed", error="no data")
    made.close()
    again = record(tmp_path / "r", {**CONFIG, "opt": {"lr": 0.2}})
    assert not again.finished
    again.close()


def test_two_processes_cannot_run_the_same_folder(tmp_path: Path) -> None:
    first = record(tmp_path / "r")
    with pytest.raises(InputError, match=r"is being run by process \d+ now"):
        record(tmp_path / "r")
    first.close()


def test_a_folder_in_which_nothing_was_written_is_removed(tmp_path: Path) -> None:
    record(tmp_path / "r").close()
    assert not (tmp_path / "r").exists()


def test_a_broken_record_is_named_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "run.json").write_text('{"half": ')
    with pytest.raises(InputError, match=r"run\.json is not readable JSON"):
        record(folder)
    assert (folder / "run.json").read_text() == '{"half": '


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
def test_a_record_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "RETRY_SECONDS", (0.0,))
    (tmp_path / "run.json").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"run\.json cannot be read now: Input/output error\nNothing was changed"):
        record(tmp_path)


def commit(folder: Path) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "--allow-empty", "-m", "m"]):
        subprocess.run(["git", "-C", folder, *words], check=True, env=environment)
    words = ["git", "-C", folder, "rev-parse", "HEAD"]
    return subprocess.run(words, check=True, env=environment, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_that_of_the_checkout_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("outer/inner", "foreign"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "foreign" / "f").write_text("f")
    commit(tmp_path / "outer")
    commit(tmp_path / "foreign")
    inner = tmp_path / "outer" / "inner"
    assert git_state(inner) == {"commit": None, "dirty": None}
    own = commit(inner)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "foreign" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(inner))
    assert git_state(inner) == {"commit": own, "dirty": False}
    (inner / "new").write_text("n")
    assert git_state(inner) == {"commit": own, "dirty": True}


def test_lines_are_readable_while_the_run_runs_and_hold_no_nan(tmp_path: Path) -> None:
    made = record(tmp_path / "r")
    made.open_metrics(0)
    made.log_metrics({"step": 1, "train/loss": float("nan"), "lr": 0.1})
    line = json.loads((tmp_path / "r" / "metrics.jsonl").read_text())
    assert line == {"step": 1, "train/loss": None, "lr": 0.1}
    offset = made.metrics_offset()
    made.log_metrics({"step": 2})
    made.close()
    again = record(tmp_path / "r")
    again.open_metrics(offset)
    again.log_metrics({"step": 2, "again": 1})
    again.close()
    lines = (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2] and "again" in lines[1]


def test_a_checkpoint_before_the_first_line_of_a_resumed_run_knows_how_long_the_file_is(tmp_path: Path) -> None:
    made = record(tmp_path / "r")
    made.open_metrics(0)
    made.log_metrics({"step": 1})
    offset = made.metrics_offset()
    made.log_metrics({"step": 2})
    made.close()
    again = record(tmp_path / "r")
    again.open_metrics(offset)
    assert again.metrics_offset() == offset == (tmp_path / "r" / "metrics.jsonl").stat().st_size
    again.close()


def test_what_decides_a_result_leaves_out_where_and_how_fast() -> None:
    keys = result_keys(CONFIG).keys()
    assert "opt.lr" in keys and "train.seed" in keys
    assert not keys & {"data_root", "data.root", "train.num_workers"}
    assert differing_keys({**CONFIG, "train": {"seed": 3, "num_workers": 8}}, CONFIG) == []


def segments(folder: Path) -> list[dict[str, Any]]:
    stored: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["segments"]
    return stored


def stopped_at(folder: Path, step: int) -> None:
    task = toys.Toy()
    task.before_step = toys.kill_at(step)
    made = toys.trainer(task, folder, progress=False)
    with pytest.raises(Stopped):
        made.fit()
    assert made.state.progress.step == step, "a signal from elsewhere, e.g. of timeout(1), stopped it"
    toys.close(made)


OTHER_FACTS: dict[str, tuple[Any, str]] = {
    "commit": ({"git_state": lambda root: {"commit": "b" * 40, "dirty": False}}, "commit a{10} -> b{10}"),
    "changes": (
        {"git_state": lambda root: {"commit": "a" * 40, "dirty": True}},
        "uncommitted changes: without -> with",
    ),
    "torch": ({"versions": lambda: {"torch": "9.9", "python": "3.11"}}, "torch 1.0 -> 9.9"),
    "processes": ({"hardware": lambda n: {"machine": "m", "cpu": "c", "processes": 2}}, "processes 1 -> 2"),
    "processor": ({"hardware": lambda n: {"machine": "o", "cpu": "other", "processes": 1}}, "cpu c -> other"),
    "threads": ({}, "threads 1 -> 3"),
    "nothing": ({}, ""),
}


@pytest.mark.parametrize("case", OTHER_FACTS)
def test_a_run_resumed_on_something_else_says_and_keeps_what_trained_each_part(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {
        "git_state": lambda root: {"commit": "a" * 40, "dirty": False}, "versions": lambda: {"torch": "1.0"},
        "hardware": lambda n: {"machine": "m", "cpu": "c", "processes": 1},
    }  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for name, fact in facts.items():
        monkeypatch.setattr(run_record, name, fact)
    stopped_at(tmp_path / "r", 5)
    assert not caplog.messages
    others, said = OTHER_FACTS[case]
    for name, fact in others.items():
        monkeypatch.setattr(run_record, name, fact)
    if case == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    made = toys.trainer(toys.Toy(), tmp_path / "r", progress=False)
    made.fit()
    assert bool(said) == bool(caplog.messages)
    assert re.search(f"resumed at step 5 with differences.*{said}" if said else "^$", "\n".join(caplog.messages))
    made.record.update(status="finished", steps=12)  # type: ignore[union-attr]
    toys.close(made)
    first, second = segments(tmp_path / "r")
    assert [(each["from_step"], each["to_step"]) for each in (first, second)] == [(0, 5), (5, 12)]
    run = read_run(tmp_path / "r")
    expected = {"commit": ("a" * 10 + "/" + "b" * 10, "1.0", "m"), "changes": ("a" * 10 + "+", "1.0", "m"),
                "torch": ("a" * 10, "1.0/9.9", "m"), "processes": ("a" * 10, "1.0", "m, 1 then 2 processes"),
                "processor": ("a" * 10, "1.0", "m / o"), "threads": ("a" * 10, "1.0", "m"),
                "nothing": ("a" * 10, "1.0", "m")}  # fmt: skip
    assert (run.commit, run.torch, run.machine) == expected[case]
    restored = as_run(result_row(run), tmp_path)
    assert (restored.commit, restored.torch, restored.machine) == expected[case]


def test_steps_after_the_last_checkpoint_belong_to_the_segment_that_trains_them_again(tmp_path: Path) -> None:
    for step, most in ((0, None), (7, 9), (4, 6), (4, 12)):
        made = record(tmp_path / "r")
        made.begin_segment(step, threads=1)
        if most:
            made.update(steps=most, status="failed")
        made.close()
        (tmp_path / "r" / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "r" / "checkpoints" / "last.pt").touch()
    assert [(each["from_step"], each["to_step"]) for each in segments(tmp_path / "r")] == [(0, 4), (4, 12)]


def test_a_record_of_an_earlier_version_keeps_its_last_start_as_a_segment(tmp_path: Path) -> None:
    made = record(tmp_path / "r")
    made.update(status="interrupted", resumed_from=[3])
    made.close()
    stored = json.loads((tmp_path / "r" / "run.json").read_text())
    del stored["segments"]
    (tmp_path / "r" / "run.json").write_text(json.dumps({**stored, "git": {"commit": "c" * 40, "dirty": True}}))
    (tmp_path / "r" / "checkpoints").mkdir()
    (tmp_path / "r" / "checkpoints" / "last.pt").touch()
    again = record(tmp_path / "r")
    assert any("commit cccccccccc -> " in change for change in again.begin_segment(5, threads=1))
    again.close()
    assert [(each["from_step"], each["to_step"]) for each in segments(tmp_path / "r")] == [(3, 5), (5, None)]


@pytest.mark.parametrize(("key", "value", "refused"), [
    ("train.accumulation", 2, True), ("train.precision", "bf16", True), ("train.threads", 2, True),
    ("train.device", "cuda", True), ("train.batch_size", 8, True), ("train.compile", True, True),
    ("train.num_workers", 3, False), ("train.checkpoint_minutes", 1, False), ("gpus", 2, False), ("jobs", 2, False),
    ("data_root", "/b", False), ("launcher", "slurm", False),
])  # fmt: skip
def test_a_resumed_run_may_change_only_what_changes_no_number(
    key: str, value: object, refused: bool, tmp_path: Path
) -> None:
    made = record(tmp_path / "r")
    made.update(status="interrupted")
    made.close()
    (tmp_path / "r" / "checkpoints").mkdir()
    (tmp_path / "r" / "checkpoints" / "last.pt").touch()
    *parents, leaf = key.split(".")
    changed = {**CONFIG, parents[0]: {**CONFIG[parents[0]], leaf: value}} if parents else {**CONFIG, key: value}
    if refused:
        with pytest.raises(InputError, match=f"{key}: .* -> {value}") as error:
            record(tmp_path / "r", changed)
        assert "tag=NAME" in str(error.value)
    else:
        record(tmp_path / "r", changed).close()


def test_a_folder_whose_letters_the_locale_lacks_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has letters that the locale's encoding utf-8 lacks; set PYTHONUTF8=1"):
        RunRecord(tmp_path / "a\ud800", name="r", config=CONFIG)
