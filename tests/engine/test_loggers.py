"""A real W&B run, offline."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.engine.loggers import WandbLogger
from tests.engine.wandb_file import records

RECORD: dict[str, Any] = {
    "experiment": "toys", "name": "sgd,seed=0", "opt_name": "sgd", "scale": "mini", "seed": 0, "status": "finished",
    "config": {"opt": {"lr": 0.1}}, "config_hash": "0" * 12, "git": {"commit": None, "dirty": None},
    "data": {"name": "toy_data"}, "scores": {"val/top1": 50.0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.filterwarnings("default")  # W&B's own dependencies warn
def test_without_a_key_the_run_is_logged_offline_beside_the_run(tmp_path: Path) -> None:
    sink = WandbLogger()
    sink.start(RECORD, tmp_path)
    assert sink.run is not None and sink.run.settings.mode == "offline"
    assert set(sink.run.tags) == {"sgd", "toys", "mini", "toy_data", "seed=0"} and sink.run.group == "toys"
    identity = sink.run.id
    sink.log({"step": 1, "epoch": 0.1, "train/loss": 1.0, "norm/mean": 1.2})
    sink.finish(RECORD, tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    again = WandbLogger()
    again.start(RECORD, tmp_path)
    assert again.run is not None and again.run.id == identity  # a resumed run is one run there too
    again.finish(RECORD, tmp_path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("monitor", "key"), [("-val/loss", "val/loss"), ("val/ap", "val/ap")])
def test_the_file_of_an_offline_run_holds_what_was_logged(tmp_path: Path, monitor: str, key: str) -> None:
    record = {**RECORD, "monitor": monitor}
    lines = [{"step": k, "epoch": k / 2, key: 1.0 / k, "train/loss": 2.0 / k} for k in (1, 2, 3)]
    sink = WandbLogger("a-project", group="table-1", tags=("more",))
    sink.start(record, tmp_path)
    for line in lines:
        sink.log(line)
    sink.finish(record, tmp_path)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    kinds: dict[str, list[Any]] = {}
    for found in records(path):
        kinds.setdefault(found.WhichOneof("record_type"), []).append(found)
    run = kinds["run"][0].run
    assert (run.project, run.run_group, run.display_name) == ("a-project", "table-1", "sgd,seed=0")
    assert {"sgd", "toys", "mini", "more"} <= set(run.tags)
    history = [
        {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in h.history.item} for h in kinds["history"]
    ]
    assert [{k: line[k] for k in lines[0]} for line in history[:3]] == lines
    metrics = {m.metric.name or m.metric.glob_name: m.metric for m in kinds["metric"]}
    watched = metrics[key]
    assert watched.step_metric == "epoch" and not (watched.summary.min or watched.summary.max)
    assert metrics["norm/*"].step_metric == "step"
    assert kinds["exit"][0].exit.exit_code == 0  # what `wandb sync` uploads is whole


def summary(folder: Path) -> dict[str, Any]:
    """Return the summary that the last offline file of a folder leaves, as W&B's service adds it up."""
    path = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda each: each.stat().st_mtime)[-1]
    values: dict[str, Any] = {}
    for record in records(path):
        for item in record.summary.update:
            values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return values


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("monitor", "scores", "best"),
    [
        ("val/top1", [0.5, 0.9, 0.7], 0.9),
        ("-val/loss", [0.5, 0.2, 0.7], 0.2),
        ("val/top1", [float("nan"), 0.9, float("nan"), 0.7], 0.9),
        ("-val/loss", [float("nan"), 0.2, 0.7], 0.2),
    ],
)  # fmt: skip
def test_the_written_summary_has_the_best_and_the_last_score(
    tmp_path: Path, monitor: str, scores: list[float], best: float
) -> None:
    key = monitor.lstrip("-")
    average = key.replace("val/", "val_ema/")
    record = {**RECORD, "monitor": monitor, "scores": {key: scores[-1]}}
    sink = WandbLogger()
    sink.start(record, tmp_path)
    for number, score in enumerate(scores):
        sink.log({"step": number, "epoch": number, key: score, average: score})
        sink.log({"step": number, "epoch": number, "train/loss": 1.0})
    sink.finish(record, tmp_path)
    values = summary(tmp_path)
    assert {values[f"best/{key}"], values[f"best/{average}"]} == {best}
    assert {values[f"last/{key}"], values[f"last/{average}"]} == {0.7}
    assert values["status"] == "finished"


@pytest.mark.filterwarnings("default")
def test_a_resumed_run_keeps_its_best_score(tmp_path: Path) -> None:
    lines = [{"step": 1, "val/top1": 0.9}, {"step": 2, "train/loss": 1.0}, {"step": 3, "val/top1": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"val/top1": 9')
    sink = WandbLogger()
    sink.start({**RECORD, "monitor": "val/top1"}, tmp_path)
    sink.log({"step": 4, "epoch": 2, "val/top1": 0.7})
    sink.finish(RECORD, tmp_path)
    values = summary(tmp_path)
    assert (values["best/val/top1"], values["last/val/top1"]) == (0.9, 0.7)


def test_a_logger_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = WandbLogger()
    monkeypatch.setattr(sink, "_init", lambda *args: 1 / 0)
    sink.start(RECORD, tmp_path)
    sink.log({"step": 1})
    sink.finish(RECORD, tmp_path)
    assert sink.run is None
