"""The GPU benchmark without a GPU: its refusal, its options, and its pages from a tiny measurement on the CPU."""

from __future__ import annotations

import csv
import gc
import subprocess
import sys
import weakref
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks import gpu_optimizers as benchmark
from evidence.runs.run import ReadError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so_in_one_line(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_optimizers"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: this benchmark measures on a CUDA device, and torch finds none here\n"


def test_a_measurement_is_written_with_ratios_and_provenance(tmp_path: Path) -> None:
    words = ["sets=tiny", "gradients=random", "rounds=2", "training=0", "fetch=false", f"out={tmp_path}"]
    text = benchmark.measure(benchmark.read_options(words), words, device=torch.device("cpu"))
    with (tmp_path / "optimizers.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = {row["optimizer"] for row in rows}
    assert {"torch AdamW fused", "torch SGD fused", "AdamP foreach", "SGDP foreach", "AdamP single"} <= names
    assert {float(row["ratio"]) for row in rows if row["optimizer"] == "torch AdamW fused"} == {1.0}
    assert (tmp_path / "optimizers.md").read_text() == text
    assert "commit " in text and f"torch {torch.__version__.split('+')[0]}" in text


def test_the_share_of_a_training_step_is_what_the_same_round_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"torch AdamW fused": [2.0, 4.0], "AdamP fused": [2.5, 5.0], benchmark.ALONE: [1.0, 2.0]}
    kept = {"torch AdamW fused": torch.optim.AdamW, "AdamP fused": torch.optim.AdamW}
    monkeypatch.setattr(benchmark, "contenders", lambda family, fetch: (kept, []))
    monkeypatch.setattr(benchmark, "take_turns", lambda acts, read, rounds: {name: seconds[name] for name in acts})
    words = ["training=2", "batch=2", "pixels=32", "precision=float32"]
    found, shares = benchmark.training(benchmark.read_options(words), "adam", device=torch.device("cpu"))
    assert shares["torch AdamW fused"][0] == 50.0
    assert shares["AdamP fused"][0] == 60.0
    assert [r.ratio for r in found] == [1.0, 1.25, 0.5]


def test_a_captured_step_keeps_what_its_graph_writes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("Stream", "current_stream", "stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, mock.MagicMock())
    optimizers: list[weakref.ref[torch.optim.Optimizer]] = []

    def make(params: list[torch.Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=0.1)
        optimizers.append(weakref.ref(optimizer))
        return optimizer

    replay = benchmark.graph_of(make, [torch.ones(2)], [torch.ones(2)])
    gc.collect()
    optimizer = optimizers[0]()
    assert optimizer is not None and optimizer.param_groups[0]["params"][0].grad is not None
    replay()
    del replay, optimizer
    gc.collect()
    assert optimizers[0]() is None


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("rounds=0", "rounds=0 is not valid; it must be a whole number of at least 1"),
        ("batch=many", "batch=many is not valid"),
        ("sets=vgg", "sets=vgg is not known; choose among resnet18"),
        ("precision=int8", "precision=int8 is not known"),
        ("pixel=3", "unknown argument"),
    ],
)
def test_a_wrong_option_is_named(word: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        benchmark.read_options([word])
