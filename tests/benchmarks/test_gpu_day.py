"""The one call on a device, rehearsed on the CPU: on a bare tree, without the suite's packages, kernels interpreted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_day
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
    for folder in ("adamp", "tasks", "evidence", "launch", "scripts", "benchmarks", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", "data"))
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
    assert {r["part"] for r in records} == {"machine", "tests", "steps", "training steps", "training"}
    assert all("skipped" in r["summary"] and "error" not in r["summary"] for r in records if r["part"] == "tests")
    fused = [r for r in records if r.get("optimizer") == "AdamP fused" and r["part"] == "steps"]
    assert [round(r["bytes_per_weight"]) for r in fused] == [16, 8]
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


@pytest.mark.parametrize(
    ("word", "message"), [("minutes=0", "minutes=0 is not valid"), ("size=huge", "choose among tiny, full")]
)
def test_a_wrong_option_is_named(word: str, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        gpu_day.main([word])
