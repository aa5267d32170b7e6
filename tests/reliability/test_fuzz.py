"""Mutated files and made-up bytes never make a parser raise anything but its refusal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from tests.reliability import fuzz

PARSERS = fuzz.parsers()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of doubled names, which then are refused
        yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_refuses_or_reads_whatever_it_is_given(name: str) -> None:
    fed, fault = fuzz.fuzz(name, PARSERS[name], seconds=0, seed=0, examples=60)
    assert fault is None and fed >= 50


@pytest.mark.slow  # ten minutes in all
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_refuses_or_reads_whatever_it_is_given_for_long(name: str) -> None:
    fed, fault = fuzz.fuzz(name, PARSERS[name], seconds=600 / len(PARSERS), seed=1)
    assert fault is None and fed >= 200
