"""The examples in the docstrings run, and the package needs torch alone."""

import ast
import doctest
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import adamp

NAMES = ["adamp", *(module.name for module in pkgutil.walk_packages(adamp.__path__, "adamp."))]
MODULES = [name for name in NAMES if not name.startswith("adamp.kernels.triton_")]  # which import triton


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_only_torch_and_the_standard_library_are_imported(name):
    tree = ast.parse(Path(importlib.import_module(name).__file__).read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found <= {"adamp", "torch"} | sys.stdlib_module_names


@pytest.mark.parametrize("name", [name for name in adamp.__all__ if isinstance(getattr(adamp, name), type)])
def test_public_classes_have_an_example(name):
    assert ">>>" in getattr(adamp, name).__doc__
