"""The site of `make docs`: complete, free of the network, and refused when something on it is wrong."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(source: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("myst_parser", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-E", "-W", "--keep-going", "-c", str(ROOT / "docs"), *options]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(source), str(out)], capture_output=True, text=True, env={**os.environ, **threads}
    )


def test_drawings_of_the_architecture_show_the_imports_of_the_code() -> None:
    drawings = runpy.run_path(str(ROOT / "docs" / "architecture.py"))["drawings"]()
    assert len(drawings) > 2
    wrong = [path.name for path, text in drawings.items() if not path.exists() or path.read_text() != text]
    assert not wrong, "run python docs/architecture.py"
    assert sorted((ROOT / "docs" / "architecture").iterdir()) == sorted(drawings), "a drawing of nothing"


def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    load = re.compile(r"""<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
    style = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//""")
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    assert not [page.name for page in pages if load.search(page.read_text())]
    assert not [sheet.name for sheet in tmp_path.rglob("*.css") if style.search(sheet.read_text())]


@pytest.mark.slow  # a second build: it checks the checks, not the pages
def test_a_mistake_on_a_page_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "# Page\n\n[link](nowhere.md)\n\n```{eval-rst}\n.. autofunction:: tasks.data.folder.nothing\n\n"
        ".. automodule:: adamp.layers\n\nSee `adamp.nothing`.\n\n.. autofunction:: adamp.layers._filter_dims\n```\n"
    )
    done = build(tmp_path, tmp_path / "out", "-D", "root_doc=page", "-D", "include_patterns=page.md")
    assert done.returncode != 0
    for complaint in (
        "'myst' cross-reference target not found: 'nowhere.md'",
        "failed to import 'nothing' from module 'tasks.data.folder'",
        "reference target not found: adamp.nothing",
        "adamp.layers._filter_dims has no docstring",
        "adamp.AdamP is on no page",
    ):
        assert complaint in done.stderr, done.stderr
