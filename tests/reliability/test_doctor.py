"""The doctor finds what is wrong, says what to do, and keeps secrets to itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launch import doctor as checks
from scripts import doctor
from scripts.options import ReadError

ROOT = Path(__file__).resolve().parents[2]


def examined(*words: str) -> tuple[int, list[str]]:
    said: list[str] = []
    return doctor.main([*words, "processes=0"], say=said.append), said


def test_every_finding_that_is_not_well_says_what_to_do(tmp_path: Path) -> None:
    code, said = examined(f"results={tmp_path}/results", f"data_root={tmp_path}/none", "--json")
    found = json.loads("\n".join(said))
    assert code == 1
    assert [f["what"] for f in found if f["level"] == "BAD"] == ["data root"]
    assert all(f["advice"] for f in found if f["level"] != "ok")
    expected = {"python", "packages", "machine", "results", "temporary", "shared memory", "open files", "data cache",
                "data root", "wandb", "torch", "gpu", "collectives", "cpu kernel"}  # fmt: skip
    assert {f["what"] for f in found} == expected
    assert not (tmp_path / "results").exists()  # looking leaves nothing behind


def test_a_small_shared_memory_few_open_files_and_a_full_disk_are_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        total, free = 64 * 2**20, 60 * 2**20

    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: Usage)
    assert "--shm-size" in checks.shared_memory(tmp_path).advice
    assert checks.folder("results", tmp_path, gib=5, option="ADAMP_RESULTS=FOLDER").level == checks.BAD
    assert checks.open_files(256).advice.startswith("ulimit -n")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="needs a folder nobody can write")
def test_a_folder_that_cannot_be_written_is_bad_and_names_the_option() -> None:
    found = checks.folder("results", Path("/proc/none"), gib=1, option="ADAMP_RESULTS=FOLDER")
    assert found.level == checks.BAD and "ADAMP_RESULTS" in found.advice


def test_the_key_of_wandb_is_never_said() -> None:
    found = checks.wandb({"WANDB_API_KEY": "sesame-0123456789"})
    assert "sesame" not in str(found)
    assert "a key is set" in found.fact or "not installed" in found.fact
    assert checks.wandb({"WANDB_MODE": "onlin"}).level == checks.BAD or "not installed" in found.fact


def test_an_argument_that_is_not_known_is_refused() -> None:
    with pytest.raises(ReadError, match="unknown argument"):
        doctor.main(["rsults=x"])
    with pytest.raises(ReadError, match="processes is 'two'"):
        doctor.main(["processes=two"])


def test_without_torch_the_doctor_says_so_instead_of_failing(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libtorch_cpu.so: cannot open')\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    words: Sequence[Any] = [sys.executable, str(ROOT / "scripts" / "doctor.py"), "processes=2"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "BAD  torch" in done.stdout and "libtorch_cpu.so: cannot open" in done.stdout
    assert "Traceback" not in done.stderr
