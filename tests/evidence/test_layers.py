"""The direction of imports in evidence: runs, records, tables, then figures and claims, then the site."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RANKS = {"csv_files": 0, "metrics": 0, "stats": 0, "sweeps": 0, "runs": 1, "paper": 1,
         "records": 2, "tuning": 2, "contrasts": 3, "tables": 3, "papers": 4,
         "claims": 4, "figures": 4, "site": 5, "scorecard": 6}  # fmt: skip
SOURCES = sorted(path for path in (ROOT / "evidence").rglob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_module_of_evidence_imports_one_above_it() -> None:
    wrong = []
    for path in SOURCES:
        rank = RANKS[path.relative_to(ROOT / "evidence").parts[0].removesuffix(".py")]
        parts = [name.split(".") for name in imported(path) if name.startswith("evidence.")]
        wrong += [f"{path.name} imports {'.'.join(p)}" for p in parts if RANKS[p[1]] > rank]
    assert not wrong


def test_reading_and_tabulating_results_loads_neither_torch_nor_hydra_nor_matplotlib() -> None:
    core = [path for path in SOURCES if RANKS[path.relative_to(ROOT / "evidence").parts[0].removesuffix(".py")] < 4]
    core += sorted((ROOT / "evidence" / "claims").glob("*.py"))
    names = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in core]
    heavy = "{'torch', 'hydra', 'matplotlib'} & sys.modules.keys()"
    code = f"import sys; {'; '.join(f'import {name}' for name in names)}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
