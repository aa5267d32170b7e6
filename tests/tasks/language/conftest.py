"""A small text in each of the known layouts, and small networks."""

import random
from pathlib import Path

import pytest

from tasks.language import Corpus, text_corpus


def sentences(seed: int, count: int, *, extra: str = "") -> str:
    """A grammar with falling frequencies, headings, blank lines and unknown words, as WikiText has them."""
    generator = random.Random(seed)
    lines = [" = Heading = ", ""]
    for number in range(count):
        words = [f"w{min(int(generator.expovariate(0.08)), 70)}" for _ in range(generator.randint(3, 9))]
        lines += [" " + " ".join([*words, "<unk>" if number % 7 == 0 else "."]) + " "]
        lines += [""] if number % 5 == 0 else []
    return "\n".join([*lines, *([extra] if extra else [])]) + "\n"


@pytest.fixture(scope="session")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wikitext-103")
    for split, seed, count in (("train", 0, 300), ("valid", 1, 40), ("test", 2, 40)):
        extra = " only-in-valid " if split == "valid" else ""
        (folder / f"wiki.{split}.tokens").write_text(sentences(seed, count, extra=extra), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(wikitext: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return text_corpus(wikitext, name="fixture", cache=tmp_path_factory.mktemp("cache"))
