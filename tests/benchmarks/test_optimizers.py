"""The comparison of step times: a tiny run of the real command, its inputs, and the peers it is made with."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import optimizers, peers
from evidence.runs.run import ReadError

ROOT = Path(__file__).resolve().parents[2]


def test_a_tiny_run_writes_every_contender_with_its_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sets=tiny", "rounds=2", "threads=1", "training=0", "gradients=random", "fetch=false", f"out={tmp_path}"]
    threads = torch.get_num_threads()
    assert optimizers.main(words) == 0
    assert torch.get_num_threads() == threads
    with (tmp_path / "optimizers.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["family"], row["optimizer"]) for row in rows}
    assert {("adam", "torch AdamW fused"), ("adam", "AdamP single"), ("sgd", "SGDP single")} <= names
    assert any("timm" in name for _, name in names)
    assert any("pytorch_optimizer" in name for _, name in names)
    for row in rows:
        assert float(row["low"]) <= float(row["ratio"]) <= float(row["high"])
        assert float(row["ms"]) > 0
    assert {
        float(row["ratio"]) for row in rows if row["optimizer"].startswith("torch") and "fused" in row["optimizer"]
    } == {1.0}
    text = (tmp_path / "optimizers.md").read_text()
    assert text in capsys.readouterr().out
    assert "1 thread, CPU time" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text


def test_orthogonal_gradients_are_so_row_by_row() -> None:
    weights, grads = optimizers.tensors("tiny", "orthogonal")
    for w, g in zip(weights, grads, strict=True):
        if w.ndim > 1:
            cosines = torch.nn.functional.cosine_similarity(w.flatten(1), g.flatten(1))
            assert float(cosines.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("resnet18", 11_689_512), ("resnet50", 25_557_032), ("mobilenet_v2", 3_504_872), ("vit_s16", 22_050_664)],
)
def test_the_sets_are_those_networks(name: str, parameters: int) -> None:
    assert sum(torch.Size(shape).numel() for shape in optimizers.shapes(name)) == parameters


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sets=vgg", "sets=vgg is not known; choose among resnet18"),
        ("rounds=few", "take whole numbers"),
        ("rounds=0", "must be at least 1"),
        ("threads=0", "must be at least 1"),
        ("fetch=maybe", "fetch=maybe is not known"),
        ("speed=9", "unknown argument 'speed=9'"),
    ],
)
def test_a_wrong_option_is_named(word: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        optimizers.read_options([word])


def test_an_optimizer_that_cannot_step_becomes_a_note() -> None:
    def broken(params: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        raise RuntimeError("no kernel\nfor this")

    notes: list[str] = []
    assert list(optimizers.usable({"SGD": lambda params: torch.optim.SGD(params, 0.1), "x": broken}, notes)) == ["SGD"]
    assert notes == ["x: no kernel"]


def test_what_is_not_there_or_not_the_published_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAMP_PEERS", str(tmp_path))
    with pytest.raises(peers.PeerError, match="is not in"):
        peers.published(fetch=False)
    (tmp_path / "adamp-0.3.0.tar.gz").write_bytes(b"something else")
    with pytest.raises(peers.PeerError, match="sha256 differs"):
        peers.published(fetch=False)
    with pytest.raises(peers.PeerError, match="nonesuch is not installed"):
        peers.installed("nonesuch", "nonesuch")


@pytest.mark.slow
def test_the_command_times_whole_training_steps(tmp_path: Path) -> None:
    words = ["sets=tiny", "rounds=1", "threads=1", "training=1", "fetch=false", f"out={tmp_path}"]
    command = [sys.executable, "-m", "benchmarks.optimizers", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "resnet18 training step, its own" in done.stdout
