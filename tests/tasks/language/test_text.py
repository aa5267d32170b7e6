"""Reading texts: vocabularies, caches, layouts, and what is wrong with a file."""

import lzma
import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tasks.base import InputError
from tasks.language import Corpus, text_corpus
from tasks.language import text as reader


def test_words_are_numbered_by_frequency_in_the_training_text_with_eos_first(wikitext: Path, corpus: Corpus) -> None:
    lines = (wikitext / "wiki.train.tokens").read_text().splitlines()
    counts = Counter(word for line in lines for word in line.split())
    assert corpus.words[0] == "<eos>" and set(corpus.words[1:]) == set(counts)
    ranks = [counts[word] for word in corpus.words[1:]]
    assert ranks == sorted(ranks, reverse=True)
    appearance = list(counts)
    ties = [word for word in corpus.words[1:] if counts[word] == ranks[-1]]
    assert ties == sorted(ties, key=appearance.index)
    assert corpus.counts[0] == len(lines) and corpus.counts.sum() == len(corpus.tokens["train"])


def test_every_line_ends_in_eos_blank_ones_too(wikitext: Path, corpus: Corpus) -> None:
    text = [corpus.words[i] for i in corpus.tokens["train"][:8]]
    assert text[:5] == ["=", "Heading", "=", "<eos>", "<eos>"]
    lines = (wikitext / "wiki.test.tokens").read_text().splitlines()
    assert len(corpus.tokens["test"]) == sum(len(line.split()) + 1 for line in lines)
    assert corpus.tokens["test"].dtype == np.int32 and isinstance(corpus.tokens["test"], np.memmap)


def test_a_word_that_the_training_text_lacks_is_unknown(wikitext: Path, corpus: Corpus) -> None:
    assert "only-in-valid" not in corpus.words
    assert corpus.words[corpus.tokens["valid"][-2]] == "<unk>"


def test_a_capped_vocabulary_keeps_the_most_frequent_words_under_a_name_of_its_own(
    wikitext: Path, corpus: Corpus, tmp_path: Path
) -> None:
    size = corpus.words.index("<unk>") + 1
    capped = text_corpus(wikitext, name="fixture", max_words=size, vocabulary_size=size, cache=tmp_path)
    assert (capped.name, capped.words) == (f"fixture_top{size}", corpus.words[:size])
    expected = np.where(corpus.tokens["valid"] < size, corpus.tokens["valid"], size - 1)
    assert np.array_equal(capped.tokens["valid"], expected)
    assert capped.counts.sum() == corpus.counts.sum()
    with pytest.raises(InputError, match=rf"data\.max_words={size - 1}: .*wiki\.train\.tokens has no <unk>"):
        text_corpus(wikitext, name="fixture", max_words=size - 1, cache=tmp_path)
    with pytest.raises(InputError, match=r"data\.max_words=9: must be at least 2, of a text of words"):
        text_corpus(wikitext, name="fixture", unit="char", max_words=9, cache=tmp_path)


@pytest.mark.parametrize("names", ["{}.txt", "ptb.{}.txt", "wiki.{}.tokens.xz"])
def test_other_layouts_give_the_same_numbers(names: str, wikitext: Path, corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        content = (wikitext / f"wiki.{split}.tokens").read_bytes()
        (tmp_path / names.format(split)).write_bytes(lzma.compress(content) if names.endswith(".xz") else content)
    other = text_corpus(tmp_path, name="fixture", cache=tmp_path / "cache")
    assert other.words == corpus.words
    assert all(np.array_equal(other.tokens[split], corpus.tokens[split]) for split in other.tokens)


def test_in_order_of_appearance_words_of_all_three_files_count(wikitext: Path, tmp_path: Path) -> None:
    ptb = text_corpus(wikitext, name="ptb", order="appearance", cache=tmp_path)
    assert ptb.words[:4] == ["=", "Heading", "<eos>", ptb.words[3]]
    assert "only-in-valid" in ptb.words


def test_characters_keep_their_spaces(wikitext: Path, tmp_path: Path) -> None:
    chars = text_corpus(wikitext, name="chars", unit="char", cache=tmp_path)
    assert " " in chars.words and max(map(len, chars.words)) == len("<eos>")


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(
    wikitext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(wikitext, folder)
    first = text_corpus(folder, name="t", cache=tmp_path / "cache")
    monkeypatch.setattr(reader, "_build", lambda *a, **k: pytest.fail("built again"))
    assert text_corpus(folder, name="t", cache=tmp_path / "cache").words == first.words
    monkeypatch.undo()
    with (folder / "wiki.train.tokens").open("a") as file:
        file.write(" a new word \n")
    assert len(text_corpus(folder, name="t", cache=tmp_path / "cache").words) == len(first.words) + 3


def test_a_reading_that_fails_leaves_no_half_cache(wikitext: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(wikitext, folder)
    (folder / "wiki.test.tokens").write_bytes(b" good line \n bad \xff\xfe line \n")
    with pytest.raises(InputError, match=r"wiki\.test\.tokens: line 2 is not UTF-8"):
        text_corpus(folder, name="t", cache=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]


def test_a_byte_order_mark_is_no_word(wikitext: Path, corpus: Corpus, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        content = (wikitext / f"wiki.{split}.tokens").read_bytes()
        (tmp_path / f"{split}.txt").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    marked = text_corpus(tmp_path, name="fixture", cache=tmp_path / "cache")
    assert marked.words == corpus.words
    assert all(np.array_equal(marked.tokens[split], corpus.tokens[split]) for split in marked.tokens)


def test_a_carriage_return_alone_is_white_space(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_bytes(b"a b\rc\r\nd\n")
    text = text_corpus(tmp_path, name="t", cache=tmp_path / "cache")
    assert [text.words[i] for i in text.tokens["train"]] == ["a", "b", "c", "<eos>", "d", "<eos>"]


def test_other_token_counts_than_published_are_refused(
    wikitext: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {split: (wikitext / f"wiki.{split}.tokens").read_text() for split in ("train", "valid", "test")}
    published = {split: len(text.split()) + text.count("\n") for split, text in contents.items()}
    monkeypatch.setitem(reader.PUBLISHED_TOKENS, "published", published)
    text_corpus(wikitext, name="published", cache=tmp_path)
    for split, text in contents.items():
        lines = [line for line in text.splitlines() if line.strip() or split != "test"]
        (tmp_path / f"{split}.txt").write_text("\n".join(lines) + "\n")
    num = published["test"] - sum(not line.strip() for line in contents["test"].splitlines())
    message = rf"test\.txt: {num} tokens, 9 fewer than the {published['test']} of published.*data\.name=NAME"
    with pytest.raises(InputError, match=message):
        text_corpus(tmp_path, name="published", cache=tmp_path)
    assert len(text_corpus(tmp_path, name="without_blanks", cache=tmp_path).tokens["test"]) == num


def test_a_line_of_ten_megabytes_is_a_line(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("word " * (2_000_000 if split == "train" else 20) + "\n")
    long = text_corpus(tmp_path, name="long", cache=tmp_path / "cache")
    assert len(long.tokens["train"]) == 2_000_001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "wiki.valid.tokens").unlink(), r"holds no valid text; expected one of wiki\.valid\.tokens"),
        (lambda f: (f / "wiki.valid.tokens").write_bytes(b""), "holds no text"),
        (lambda f: (f / "wiki.train.tokens").write_text("a a b\n"), "the training text has neither it nor <unk>"),
    ],
)
def test_a_wrong_file_is_named(change: object, message: str, wikitext: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(wikitext, folder)
    change(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        text_corpus(folder, name="t", cache=tmp_path / "cache")


def test_a_broken_compressed_file_is_named(wikitext: Path, tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        content = lzma.compress((wikitext / f"wiki.{split}.tokens").read_bytes())
        (tmp_path / f"wiki.{split}.tokens.xz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"wiki\.train\.tokens\.xz: broken after line"):
        text_corpus(tmp_path, name="t", cache=tmp_path / "cache")


def test_another_vocabulary_than_stated_is_refused(wikitext: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.vocabulary_size says 267735"):
        text_corpus(wikitext, name="wikitext103", vocabulary_size=267_735, cache=tmp_path)


def test_guessing_by_frequency_scores_the_entropy_of_an_even_text(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b c\n" * 500)
    even = text_corpus(tmp_path, name="even", cache=tmp_path / "cache")
    assert even.unigram_loss("valid") == pytest.approx(math.log(4), abs=1e-12)


def test_the_text_in_this_repository_is_what_its_manifest_says(tmp_path: Path) -> None:
    from scripts.prepare import shakespeare  # the recipe that wrote it

    assert shakespeare.split_of(18) == "valid" and shakespeare.split_of(29) == "test"
    manifest = __import__("json").loads((reader.EMBEDDED / "manifest.json").read_text())
    path = reader.EMBEDDED / "wiki.valid.tokens.xz"
    count = sum(len(reader.tokenise(line, "word")) for line in reader.lines(path))
    assert count == manifest["files"][path.name]["tokens"]


def test_the_recipe_cuts_words_and_marks_rare_ones() -> None:
    from scripts.prepare.shakespeare import tokenised

    works = {f"{n:02}": "He sees a thing , 'tis seal'd !\nHe sees a thing\n\nHe sees a thing" for n in range(10)}
    works["08"] += " never-seen"
    splits = tokenised(works)
    assert splits["train"][0] == ["He", "sees", "a", "thing", ",", "'", "tis", "seal'd", "!"]
    assert len(splits["train"]) == 24 and splits["valid"][-1][-3:] == ["<unk>", "<unk>", "<unk>"]
