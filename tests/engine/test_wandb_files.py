"""The parts of a run that was stopped and resumed offline, appended to the file of one that was not."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from scripts import wandb_sync
from tasks.engine.loggers import WandbLogger
from tasks.engine.wandb_files import find_parts, merge, read_records, write_records
from tests.engine.wandb_file import records

RECORD: dict[str, Any] = {
    "experiment": "toys", "name": "sgd,seed=0", "opt_name": "sgd", "scale": "mini", "seed": 0, "status": "finished",
    "config": {}, "config_hash": "0" * 12, "git": {}, "data": {"name": "toy"}, "monitor": "val/top1",
}  # fmt: skip
START = {"step": 0, "epoch": 0.0, "norm/mean": 1.0}
LINES = [
    START, *({"step": k, "epoch": k / 4, "train/loss": 1 / k, **({"val/top1": 10.0 * k} if k % 4 == 0 else {})}
             for k in range(1, 13)), {"step": 12, "epoch": 3.0, "test/top1": 7.0},
]  # fmt: skip


def log(folder: Path, lines: list[dict[str, float]], *, status: str = "finished") -> None:
    sink = WandbLogger()
    sink.start(RECORD, folder)
    assert sink.run is not None
    for line in lines:
        sink.log(line)
    sink.finish({**RECORD, "status": status}, folder)
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        records(path)  # waits for W&B's own process, which writes the file


def history(found: list[Any]) -> list[dict[str, Any]]:
    lines = [record.history for record in found if record.HasField("history")]
    assert [line.step.num for line in lines] == list(range(len(lines)))
    values = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in line.item} for line in lines
    ]
    assert [line["_step"] for line in values] == list(range(len(lines)))
    return [{key: value for key, value in line.items() if not key.startswith("_")} for line in values]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.filterwarnings("default")  # W&B's own dependencies warn
def test_the_parts_of_a_run_become_the_file_of_one_that_was_not_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "toys" / "sgd"
    run.mkdir(parents=True)
    log(run, LINES[:7], status="interrupted")  # killed after step 6; its checkpoint is of step 4
    log(run, LINES[5:13], status="interrupted")  # stopped while the test split was scored
    log(run, LINES[13:])
    assert wandb_sync.main([f"runs={tmp_path / 'runs'}", "--dry"]) == 0
    folder, count, _ = capsys.readouterr().out.split()
    assert count == "3" and Path(folder).parent == run / "wandb" / "merged"
    (path,) = Path(folder).glob("run-*.wandb")
    found = records(path)
    assert history(found) == LINES
    assert [record.num for record in found] == list(range(1, len(found) + 1))
    kinds = [record.WhichOneof("record_type") for record in found]
    assert kinds[0] == "header" and (kinds.count("run"), kinds.count("exit")) == (1, 1)
    assert found[-1].exit.exit_code == 0
    summary = {item.key: item.value_json for record in found for item in record.summary.update if item.key}
    assert (summary["status"], json.loads(summary["last/val/top1"])) == ('"finished"', 120.0)


@pytest.mark.filterwarnings("default")
def test_a_part_whose_process_was_killed_is_read_up_to_its_last_whole_record(tmp_path: Path) -> None:
    log(tmp_path, LINES[:5])
    ((first,),) = find_parts(tmp_path).values()
    whole = len(read_records(first))
    assert merge([first]) == first.parent
    log(tmp_path, LINES[5:])
    first.write_bytes(first.read_bytes()[:-5])
    assert len(read_records(first)) == whole - 1  # the exit is gone
    ((one, other),) = find_parts(tmp_path).values()
    (path,) = merge([one, other]).glob("run-*.wandb")
    assert history(records(path)) == LINES


def test_records_longer_than_a_block_are_written_as_they_are_read(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    written = []
    for size in (0, 1, 32747, 32748, 32754, 32755, 100_000, 3):  # around the ends of blocks
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        record.output_raw.line = "x" * size
        written.append(record)
    write_records(tmp_path / "run-x.wandb", written, header=b":W&B\xe1\xbe\x00")
    assert read_records(tmp_path / "run-x.wandb") == written
