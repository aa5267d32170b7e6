import pytest

from tasks.retrieval import EmojiDesigns
from tests.engine import toys


@pytest.fixture(autouse=True)
def close():
    """Close the records of runs that a test has left open."""
    yield
    while toys.OPEN:
        toys.OPEN.pop().close()


@pytest.fixture(scope="session")
def emoji():
    return EmojiDesigns(num_classes=16, image_size=32)  # 8 classes train, 8 are searched
