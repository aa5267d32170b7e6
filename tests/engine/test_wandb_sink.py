"""A real W&B run, offline."""

from pathlib import Path
from typing import Any

import pytest

from tasks.engine.wandb_sink import WandbSink

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
    sink = WandbSink()
    sink.start(RECORD, tmp_path)
    assert sink.run is not None and sink.run.settings.mode == "offline"
    assert set(sink.run.tags) == {"sgd", "mini", "toy_data"} and sink.run.group == "toys"
    identity = sink.run.id
    sink.log({"step": 1, "epoch": 0.1, "train/loss": 1.0, "norm/mean": 1.2})
    sink.finish(RECORD, tmp_path)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))) == 1
    again = WandbSink()
    again.start(RECORD, tmp_path)
    assert again.run is not None and again.run.id == identity  # a resumed run is one run there too
    again.finish(RECORD, tmp_path)


def test_a_logger_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = WandbSink()
    monkeypatch.setattr(sink, "_init", lambda *args: 1 / 0)
    sink.start(RECORD, tmp_path)
    sink.log({"step": 1})
    sink.finish(RECORD, tmp_path)
    assert sink.run is None
