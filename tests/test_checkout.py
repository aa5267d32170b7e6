"""Which code a command runs: that of its own checkout, from every folder, and never silently another clone's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import adamp
from launch import checkout

ROOT = Path(__file__).resolve().parents[1]


def test_a_wheel_holds_adamp_alone_and_an_editable_install_is_one_line_with_the_folder(tmp_path: Path) -> None:
    for part in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / part, tmp_path)
    for part in ("adamp", "tasks", "launch"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = "from setuptools import build_meta as build; print(build.build_wheel('out'), build.build_editable('out2'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel, editable = (zipfile.ZipFile(next((tmp_path / out).glob("*.whl"))) for out in ("out", "out2"))
    assert {file.split("/")[0] for file in wheel.namelist()} == {
        "adamp",
        f"adamp_optimizers-{adamp.__version__}.dist-info",
    }
    (line,) = (editable.read(file).decode() for file in editable.namelist() if file.endswith(".pth"))
    assert line == f"{tmp_path}\n"


@pytest.mark.parametrize("file", ["scripts/train.py", "scripts/status.py"])
def test_a_file_of_another_clone_is_refused_by_name(tmp_path: Path, file: str) -> None:
    for part in (file, "launch/checkout.py"):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / part, tmp_path / part)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}  # as the editable install of this checkout
    done = subprocess.run([sys.executable, tmp_path / file], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert f"{tmp_path / file} is started, but this Python imports the code of {ROOT}" in done.stderr


def test_processes_that_a_command_starts_import_its_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["/elsewhere", str(ROOT)]))
    checkout.enter()
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), "/elsewhere"]
