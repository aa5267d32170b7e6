"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import adamp

MODULES = ["adamp", *(f"adamp.{module.name}" for module in pkgutil.iter_modules(adamp.__path__))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", [name for name in adamp.__all__ if isinstance(getattr(adamp, name), type)])
def test_public_classes_have_an_example(name):
    assert ">>>" in getattr(adamp, name).__doc__
