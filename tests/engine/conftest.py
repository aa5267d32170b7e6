"""Closes the files of runs that a test left open, e.g. because the trainer refused its arguments."""

from collections.abc import Iterator

import pytest

from tests.engine import toys


@pytest.fixture(autouse=True)
def records_are_closed() -> Iterator[None]:
    yield
    while toys.OPEN:
        toys.OPEN.pop().close()
