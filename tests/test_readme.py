"""The README is short, its code runs as it stands, its links lead somewhere."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_the_python_example_runs_and_prints_norms(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "norm/mean" in capsys.readouterr().out


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 900, "move what is not for a newcomer to docs/"


def test_every_relative_link_leads_somewhere() -> None:
    root = Path(__file__).resolve().parent.parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links and not [link for link in links if not (root / link).exists()]
