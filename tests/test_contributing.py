"""The worked examples of CONTRIBUTING.md are complete: written where they say, they run, and nothing else changes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands

DOCUMENT = commands.ROOT / "CONTRIBUTING.md"
FILES = {
    "adamp/signsgd.py", "configs/opt/signsgd.yaml", "tasks/spirals.py", "configs/task/spirals.yaml",
    "configs/data/spirals.yaml", "configs/scale/mini/spirals.yaml", "configs/experiment/spirals.yaml",
}  # fmt: skip


def examples() -> dict[str, str]:
    """Return path -> text of every code block whose introduction begins with a path in backticks."""
    introduction, block = r"^`([\w./-]+\.(?:py|yaml))`(?:(?!\n\n).)*:\n\n", r"```\w+\n(.*?)^```"
    return dict(re.findall(introduction + block, DOCUMENT.read_text(), re.M | re.S))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The suite as it stands, with the examples written into it."""
    root = tmp_path_factory.mktemp("clone") / "suite"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("adamp", "tasks", "configs", "evidence", "launch", "scripts", "hydra_plugins"):
        shutil.copytree(commands.ROOT / folder, root / folder, ignore=unwanted)
    for file in ("Makefile", "pyproject.toml"):
        shutil.copy(commands.ROOT / file, root / file)
    for path, text in examples().items():
        assert not (root / path).exists(), f"{path} exists: the example has become real"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_the_document_shows_every_file_that_it_speaks_of() -> None:
    assert examples().keys() == FILES


def test_the_new_optimizer_trains_the_new_task_with_nothing_else_changed(
    tree: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    words = ["experiment=spirals", "opt=signsgd", "opt.lr=3e-3", "train.epochs=10", "train.threads=1",
             "train.progress=false", "train.device=cpu", f"paths.runs={tmp_path}/runs",
             f"paths.reports={tmp_path}/reports"]  # fmt: skip
    done = commands.run(words, environment, root=tree)
    assert done.code == 0, done.err
    assert "Warning" not in done.err
    (folder,) = (tmp_path / "runs" / "spirals").iterdir()
    assert folder.name.startswith("signsgd,wd=0,lr=0.003,mini,seed=0")
    text = (folder / "run.json").read_text()
    assert '"status": "finished"' in text
    assert '"_target_": "adamp.signsgd.SignSGD"' in text
    scores = re.findall(r"val/top1 ([\d.]+)", done.out)
    assert float(scores[-1]) > 60  # of two classes
    assert '"scale_invariant_share": 0.' in text


def test_make_help_lists_the_new_experiment(tree: Path) -> None:
    done = subprocess.run(["make", "help"], cwd=tree, capture_output=True, text=True, check=True)
    assert re.search(r"^  spirals +two spirals, two hidden layers", done.stdout, re.M)


def test_the_examples_pass_the_projects_own_lint_and_format(tree: Path) -> None:
    files = [path for path in sorted(FILES) if path.endswith(".py")]
    for words in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *words, *files], cwd=tree, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
