"""The sweeper and the local launcher: which cells, on which GPUs, and what a failure or Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from evidence.runs import progress
from launch import local, train
from launch.cell import Cell
from scripts import retry
from tasks.base import InputError
from tests import commands


def cells(folder: Path, number: int) -> list[Cell]:
    made = []
    for place in range(number):
        plan: Any = SimpleNamespace(
            experiment="e", name=f"run-{place}", folder=folder / f"run-{place}", argv=(), config={}
        )
        cell = Cell(place, (), plan)
        cell.note(launcher="local")
        made.append(cell)
    return made


def shell(script: str) -> Any:
    return lambda cell: ["/bin/sh", "-c", f"place={cell.place}; {script}"]


# Packing ----------------------------------------------------------------------------------------------------------


def test_gpus_are_cut_into_disjoint_groups() -> None:
    assert local.groups(["0", "1", "2", "3", "4"], 2) == ["0,1", "2,3"]
    assert local.groups([], 2) == []
    with pytest.raises(InputError, match="needs 2 GPUs and there are 1"):
        local.groups(["0"], 2)


def test_gpus_are_those_that_the_environment_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-ab12")
    assert local.visible_gpus() == ["3", "GPU-ab12"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.visible_gpus() == []


@pytest.mark.parametrize(("jobs", "share"), [(2, 1), (4, 2)])
def test_runs_at_a_time_spread_evenly_over_the_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int, share: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    script = f"echo $CUDA_VISIBLE_DEVICES $OMP_NUM_THREADS > {tmp_path}/env-$place; sleep 0.5"
    codes = local.Packing(jobs, ["0", "1"], command=shell(script)).run(cells(tmp_path, jobs))
    assert codes == dict.fromkeys(range(jobs), 0)
    seats = [(tmp_path / f"env-{place}").read_text().split() for place in range(jobs)]
    assert sorted(seat for seat, _ in seats) == sorted(["0", "1"] * share)
    assert {int(threads) for _, threads in seats} == {local.threads(jobs)}


def test_a_failed_run_stops_no_other_and_its_code_and_last_words_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing = local.Packing(2, [], command=shell("if [ $place = 0 ]; then echo no such file >&2; exit 2; fi"))
    assert packing.run(cells(tmp_path, 3)) == {0: 2, 1: 0, 2: 0}
    said = capsys.readouterr().out
    assert "failed with code 2" in said
    assert "no such file" in said
    found = progress.read_progress(tmp_path / "run-0")
    assert (found.status, found.reason) == ("failed", "no such file")


def test_a_killed_run_counts_like_in_a_shell(tmp_path: Path) -> None:
    assert local.Packing(1, [], command=shell("kill -9 $$")).run(cells(tmp_path, 1)) == {0: 137}


def test_ctrl_c_reaches_every_run_and_no_further_one_starts(tmp_path: Path) -> None:
    interrupt = f"if [ $place = 1 ]; then kill -INT {os.getpid()}; fi"
    script = f"trap 'echo saved; exit 130' INT; {interrupt}; while :; do sleep 0.1; done"
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests were started in the background
    with pytest.raises(SystemExit) as stopped:
        local.Packing(2, [], command=shell(script)).run(cells(tmp_path, 3))
    assert stopped.value.code == 130
    assert not (tmp_path / "run-2" / "log.txt").exists()
    assert "saved" in (tmp_path / "run-0" / "log.txt").read_text()
    assert signal.getsignal(signal.SIGINT) is before


# The sweeper ------------------------------------------------------------------------------------------------------


def planned(*words: str, runs: Path) -> list[str]:
    """Return the folders that a sweep would fill, from notes of runs that end at once."""
    done = commands.call(*words, "jobs=2", f"paths.runs={runs}", "pictures=false")
    assert done.code == 0, done.err
    return sorted(path.parent.name for path in runs.glob("*/*/launch.json"))


def test_all_blocks_of_a_sweep_are_one_launch_and_a_cell_of_two_blocks_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "one_run", lambda cell: ["true"])
    names = planned("sweep=adarem-table-1", "train.seed=0", "opt=sgd", "hydra.mode=MULTIRUN", runs=tmp_path / "a")
    again = planned("sweep=adarem-table-1", "train.seed=0,0", "opt=sgd", "hydra.mode=MULTIRUN", runs=tmp_path / "b")
    assert names
    assert names == again
    assert all("sgd," in name and "seed=0" in name for name in names)


def test_recorded_cells_are_launched_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "one_run", lambda cell: ["true"])
    tiny = [*commands.TINY, f"paths.runs={tmp_path / 'runs'}"]
    (tmp_path / "cells.json").write_text(json.dumps([[*tiny, "opt=sgd"], [*tiny, "opt=adamp", "train.seed=4"]]))
    words = [f"hydra.sweeper.cells={tmp_path}/cells.json", "hydra.mode=MULTIRUN", "jobs=2"]
    assert commands.call(*words).code == 0
    names = sorted(path.parent.name[:4] for path in tmp_path.glob("runs/*/*/launch.json"))
    assert names == ["adam", "sgd,"]
    (tmp_path / "cells.json").write_text("[[")
    done = commands.call(*words)
    assert done.code == 2
    assert "cells.json: cannot be read" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["jobs=0"], "jobs is 0"),
        (["jobs=many"], "jobs is many"),
        (["launcher=none"], "launcher=none is not known"),
        (["jobs=2", "opt.lr=1,x"], "opt.lr is 'x'"),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(tmp_path: Path, words: Sequence[str], part: str) -> None:
    done = commands.call("--multirun", *commands.options(tmp_path, *words))
    assert done.code == 2
    assert part in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "runs").exists()


# The whole --------------------------------------------------------------------------------------------------------


def test_runs_side_by_side_stopped_by_ctrl_c_and_retried_leave_the_bits_of_runs_one_after_another(
    tmp_path: Path, environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    grid = ["hydra.mode=MULTIRUN", "opt=sgd,adamp"]
    alone = commands.call(*commands.options(tmp_path / "alone", *grid))
    assert alone.code == 0, alone.err
    slow = ["train.checkpoint_minutes=0", "jobs=2"]
    process = commands.start(commands.options(tmp_path / "packed", *grid, *slow), environment)
    folder = tmp_path / "packed" / "runs" / "imagenet-resnet18"

    def both_run() -> bool:
        return sum(path.read_bytes().count(b"\n") > 2 for path in folder.glob("*/metrics.jsonl")) == 2

    commands.wait_until(both_run, process)
    process.send_signal(signal.SIGINT)
    stopped = commands.finish(process)
    assert stopped.code == 130, stopped.err
    assert "the same command goes on" in stopped.err
    assert [each.status for each in progress.iter_progress(folder.parent)] == ["interrupted", "interrupted"]

    with pytest.MonkeyPatch.context() as patch:
        for key, value in environment.items():
            patch.setenv(key, value)
        runs = f"runs={folder.parent}"
        assert retry.main([runs, "only=interrupted", "jobs=2", f"out={tmp_path}"]) == 0, capfd.readouterr().err
    for one in sorted((tmp_path / "alone" / "runs" / "imagenet-resnet18").iterdir()):
        (other,) = (path for path in folder.iterdir() if path.name == one.name)
        assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        a, b = (commands.weights(path / "checkpoints" / "last.pt") for path in (one, other))
        assert all(a[key].equal(b[key]) for key in a)


def test_a_single_run_is_a_grid_of_one_for_a_launcher() -> None:
    assert train.launched(["opt=sgd"]) == ["opt=sgd"]
    assert train.launched(["opt=sgd", "jobs=2", "launcher=local"])[-1] == "launcher=local"
    assert train.launched(["launcher=slurm"]) == ["launcher=slurm", "hydra.mode=MULTIRUN"]
    assert train.launched(["launcher=slurm", "hydra.mode=RUN"])[-1] == "hydra.mode=RUN"
    assert train.launched(["--multirun", "launcher=slurm"])[-1] == "launcher=slurm"


def test_a_launcher_without_its_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    done = commands.call("--multirun", "launcher=slurm", "experiment=imagenet-resnet18")
    assert done.code == 2
    assert "pip install '.[slurm]'" in done.err
