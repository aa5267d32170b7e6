"""The one call on a device, rehearsed on the CPU: on a bare tree, without the suite's packages, kernels interpreted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_day, gpu_networks
from evidence.runs.run import ReadError

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf", "wandb"):
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
"""
REHEARSAL = """
import sys
from adamp import kernels
kernels._MODULES["cpu"] = "adamp.kernels.triton_launch"
from tests.adamp.kernel_cases import patch_the_language_once_a_launch
patch_the_language_once_a_launch()
from benchmarks import gpu_day
sys.exit(gpu_day.main(sys.argv[1:]))
"""


@pytest.mark.slow  # a minute
def test_the_whole_call_on_a_bare_tree(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    tree = tmp_path / "tree"
    for folder in ("adamp", "tasks", "evidence", "launch", "scripts", "benchmarks", "tests", "data/fashion_mnist_20k"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCKED)
    env = {
        **os.environ, "PYTHONPATH": f"{tmp_path / 'blocked'}:{tree}", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
        "ADAMP_COMMIT": "0" * 40, "PYTEST_ADDOPTS": "-p no:hydra_pytest",
    }  # fmt: skip
    words = ["device=cpu", "size=tiny", "minutes=30", "workers=1", f"out={tmp_path / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", REHEARSAL, *words], cwd=tree, env=env, capture_output=True, text=True, timeout=1800
    )
    records = [json.loads(line) for line in (tmp_path / "out" / "day.jsonl").read_text().splitlines()]
    failures = [r for r in records if "error" in r or "skipped" in r]
    assert (done.returncode, failures) == (0, []), done.stderr
    assert records[0]["commit"] == "0" * 40
    assert {r["part"] for r in records} == {"machine", "tests", "steps", "training steps", "many networks"}
    assert all("skipped" in r["summary"] and "error" not in r["summary"] for r in records if r["part"] == "tests")
    fused = [r for r in records if r.get("optimizer") == "AdamP fused" and r["part"] == "steps"]
    assert [round(r["bytes_per_weight"]) for r in fused] == [16, 8]
    networks = [r for r in records if r["part"] == "many networks"]
    assert [r["seed"] for r in networks if "seed" in r] == [0] * 4 + [1] * 4
    assert [r["name"] for r in networks[8:]] == ["SGDP - SGD", "AdamP - AdamW"]
    assert "## training steps" in (tmp_path / "out" / "day.md").read_text()


def test_failures_and_lack_of_time_are_results(tmp_path: Path) -> None:
    day = gpu_day.Day(tmp_path, minutes=1, device=torch.device("cpu"))

    def fail() -> object:
        yield {"ms": 1.0}
        raise RuntimeError("the device is gone")

    day.attempt("steps", "first", fail)  # type: ignore[arg-type]
    day.attempt("steps", "second", fail, needs=100)  # type: ignore[arg-type]
    first, failed, skipped = (json.loads(line) for line in day.file.read_text().splitlines())
    assert first == {"part": "steps", "name": "first", "ms": 1.0}
    assert failed["error"] == "RuntimeError: the device is gone"
    assert "s were left" in skipped["skipped"]


def test_cells_beside_others_end_as_they_do_alone() -> None:
    cells = gpu_networks.TINY.cells

    def losses(of: Sequence[gpu_networks.Cell]) -> list[float]:
        experiment = replace(gpu_networks.TINY, cells=of, seeds=1)
        return [r["loss"] for r in gpu_networks.trainings(experiment, torch.device("cpu")) if "seed" in r]

    assert losses(cells) == pytest.approx([*losses(cells[:2]), *losses(cells[2:])], rel=1e-5)


def test_no_seed_is_begun_without_time_for_it() -> None:
    results = list(gpu_networks.trainings(gpu_networks.TINY, torch.device("cpu"), lambda: 0.0))
    assert [r["seed"] for r in results if "seed" in r] == [0] * 4
    assert "s were left" in results[4]["skipped"]
    assert results[5]["seeds"] == 1


@pytest.mark.parametrize(
    ("word", "message"), [("minutes=0", "minutes=0 is not valid"), ("size=huge", "choose among tiny, full")]
)
def test_a_wrong_option_is_named(word: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        gpu_day.main([word])
