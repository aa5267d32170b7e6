"""Run folders whose files are spoiled: readers refuse them by name or leave them out, and resuming loses nothing."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from evidence.runs import run as runs
from tasks.base import InputError
from tasks.engine import checkpoint
from tasks.engine.run_record import RunRecord
from tasks.engine.run_spec import RunSpec
from tests.engine import toys
from tests.reliability import spoil

CONFIG: dict[str, Any] = {
    "experiment_name": "toys", "opt_name": "sgd", "scale_name": "mini", "opt": {"lr": 0.1}, "train": {"seed": 0},
    "tag": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped half way, with every file that a run leaves."""
    folder = tmp_path_factory.mktemp("whole") / "toys" / "r"
    record = RunRecord(folder, name="r", config=CONFIG)
    task = toys.Toy()
    made = toys.Trainer(
        task, toys.one_phase(), toys.options(max_steps=6), (), folder, toys.CPU, name="toys/r", record=record
    )
    made.fit()
    record.update(
        status="interrupted",
        scores=made.state.scores,
        best=vars(made.state.best),
        data={"name": "toy"},
        monitor="val/top1",
    )
    record.close()
    return folder


def spoiled(whole: Path, tmp_path: Path, file: str) -> Any:
    """Yield (way, folder) for every way to spoil one file of the run."""
    kind = "json" if file.endswith("run.json") else "binary"
    for number, (way, spoiling) in enumerate(spoil.ways(whole / file, kind, found=False)):
        folder = tmp_path / "runs" / f"e{number}" / "r"
        shutil.copytree(whole, folder)
        spoiling(folder / file)
        yield way, folder
        shutil.rmtree(folder)


def looked_at(folder: Path) -> None:
    """Ask a run for everything that pages and tables ask for."""
    logging.disable(logging.WARNING)
    try:
        run = runs.load_run(folder)
        if run is not None:
            for name in dir(type(run)):
                if isinstance(getattr(type(run), name), property):
                    getattr(run, name)
            run.throughput()
            run.layers("norm")
            for key in ("norm/mean", "train/loss", "val/top1", "lr"):
                run.series(key), run.first_and_last(key)
    finally:
        logging.disable(logging.NOTSET)


def resumed(folder: Path) -> str | None:
    """Begin the run again, as `make` would; return what it refuses with."""
    plan = RunSpec(
        "toys",
        "r",
        folder,
        CONFIG,
        toys.options(),
        (),
        make_task=toys.Toy,
        make_phases=toys.one_phase,
        make_loggers=list,
    )
    plan.finished()
    try:
        RunRecord(folder, name="r", config=CONFIG).close()
    except InputError as error:
        assert len(str(error).splitlines()) <= 2
        return str(error)
    return None


def test_a_spoiled_record_breaks_neither_reading_nor_resuming(whole: Path, tmp_path: Path) -> None:
    refused, cases = 0, 0
    for way, folder in spoiled(whole, tmp_path, "run.json"):
        cases += 1
        try:
            looked_at(folder)
            refused += resumed(folder) is not None
        except (InputError, runs.ReadError):
            refused += 1
        except Exception as error:
            raise AssertionError(f"run.json: {way}: {type(error).__name__}: {error}") from error
    assert cases > 100 and refused > 10


@pytest.mark.parametrize("file", ["metrics.jsonl", "timing.jsonl"])
def test_spoiled_lines_break_no_reader(file: str, whole: Path, tmp_path: Path) -> None:
    extra = [
        b'{"step": NaN, "epoch": 1}\n', b'{"step": "x"}\n', b"[1]\n", b"null\n", b"\xff\xfe\n",
        spoil.DEEP.encode() + b"\n", b'{"step": 1e400, "epoch": -1}\n', b"a" * 2**20 + b"\n",
        b'{"step": 3, "epoch": 1, "norm/mean": {"a": 1}}\n', b'{"step": 2, "epoch": 0.5, "train/loss": [1]}\n',
        b'{"step": true, "epoch": null}\n',
    ]  # fmt: skip
    for number, line in enumerate(extra):
        folder = tmp_path / f"e{number}" / "r"
        shutil.copytree(whole, folder)
        with (folder / file).open("ab") as stream:
            stream.write(line + b'{"step": 99, "epoch": 9.0, "norm/mean": 1.0}\n')
        looked_at(folder)
        if file == "metrics.jsonl":
            assert runs.load_run(folder).metrics[-1]["step"] == 99  # type: ignore[union-attr]
    for way, folder in spoiled(whole, tmp_path, file):
        if way != "of a terabyte":  # nothing but zeros, which no program writes there
            looked_at(folder)


def test_a_spoiled_checkpoint_is_set_aside_and_the_one_before_is_taken(whole: Path, tmp_path: Path) -> None:
    for way, folder in spoiled(whole, tmp_path, "checkpoints/last.pt"):
        path = folder / "checkpoints" / "last.pt"
        if way in ("missing", "of a terabyte"):
            continue
        try:
            state = checkpoint.load(path, run="toys/r")
        except InputError as error:
            assert len(str(error).splitlines()) <= 2 and "last.pt" in str(error), way
            continue
        except Exception as error:
            raise AssertionError(f"last.pt: {way}: {type(error).__name__}: {error}") from error
        assert state["step"] == json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])["step"], way
