"""Text corpora: a vocabulary, and one sequence of token numbers per split.

Layouts read: WikiText (`wiki.train.tokens`, `wiki.valid.tokens`, `wiki.test.tokens`), the names that the Transformer-XL
code gives the same files and Penn Treebank's (`train.txt`, ...), and `ptb.train.txt`, ...; each also compressed as
`.xz`. Words are separated by white space, and each line, blank or not, ends in `<eos>`. Lines end in a line feed or in
carriage return and line feed; a carriage return alone is white space between words. A byte order mark is left out.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tasks.base import InputError
from tasks.data.cache import cache_folder, locked

Tokens = NDArray[np.int32]
Order = Literal["frequency", "appearance"]
Unit = Literal["word", "char"]

EOS = "<eos>"
SPLITS = ("train", "valid", "test")
NAMES = ("wiki.{}.tokens", "{}.txt", "ptb.{}.txt")
EMBEDDED = Path(__file__).resolve().parents[2] / "data" / "shakespeare"
# Tokens of published sets with one <eos> per line: Merity et al., arXiv:1609.07843, Table 1; Mikolov's Penn Treebank;
# the text in this repository.
PUBLISHED_TOKENS = {
    "wikitext103": {"train": 103_227_021, "valid": 217_646, "test": 245_569},
    "penn_treebank": {"train": 929_589, "valid": 73_760, "test": 82_430},
    "shakespeare": {"train": 1_085_070, "valid": 113_955, "test": 116_903},
}
_FORMAT = 2  # of the cache; a change of what is stored changes it


@dataclass(frozen=True)
class Corpus:
    """A text as numbers.

    Attributes:
        name: Name of the set, as tables and records show it.
        words: The vocabulary; a token is an index into it.
        counts: How often each word occurs in the training split, (V,).
        tokens: Split ("train", "valid", "test") -> its tokens, (T,) int32, memory-mapped.
        unit: Whether a token is a word or a character.
        licence: Of the text.
    """

    name: str
    words: list[str]
    counts: NDArray[np.int64]
    tokens: dict[str, Tokens]
    unit: Unit = "word"
    licence: str = ""

    def unigram_loss(self, split: str) -> float:
        """Return the mean loss in nats of guessing by training frequency with add-one smoothing: a floor to beat."""
        logs = np.log((self.counts + 1) / (self.counts.sum() + len(self.counts)))
        return float(-logs[self.tokens[split]].mean())


def text_corpus(
    root: str | Path | None,
    *,
    name: str,
    order: Order = "frequency",
    unit: Unit = "word",
    max_words: int | None = None,
    vocabulary_size: int | None = None,
    licence: str = "",
    cache: str | Path | None = None,
) -> Corpus:
    """Read a text, from the cache of an earlier reading of the very same bytes where there is one.

    Args:
        root: Folder of the three files; null for the text in this repository.
        name: Name of the set; of a name in `PUBLISHED_TOKENS` the numbers of tokens are checked. With `max_words` N
            records call it NAME_topN: its perplexities are others.
        order: "frequency": `<eos>` first, then the words of the training file by falling frequency, ties by first
            appearance, which is what gives an adaptive softmax's cutoffs their meaning; a word of another file that the
            training file lacks counts as `<unk>`. "appearance": all words of all three files as they come (Penn
            Treebank).
        unit: "word", or "char" for single characters, where a space is one too.
        max_words: Of the order "frequency", how many tokens the vocabulary keeps, `<eos>` and `<unk>` among them; all
            others count as `<unk>`. None: every word of the training file.
        vocabulary_size: What the vocabulary must hold, a check that this is the right text; null for no check.
        licence: Of the text, for the records.
        cache: Folder for the numbers; null for $ADAMP_DATA or ~/.cache/adamp/data.

    Raises:
        InputError: A file is missing, empty, not UTF-8, or gives another vocabulary than stated or
            other numbers of tokens than published.
    """
    if order not in ("frequency", "appearance"):
        raise InputError(f"data.order is {order!r}; choose frequency or appearance")
    if unit not in ("word", "char"):
        raise InputError(f"data.unit is {unit!r}; choose word or char")
    if max_words is not None and not (max_words >= 2 and (order, unit) == ("frequency", "word")):
        raise InputError(
            f"data.max_words={max_words}: must be at least 2, of a text of words in the order of their frequency"
        )
    folder = EMBEDDED if root is None else Path(root)
    paths = {split: find(folder, split) for split in SPLITS}
    base = Path(cache) if cache is not None else cache_folder()
    rule: dict[str, Any] = {"order": order, "unit": unit, "format": _FORMAT}
    rule |= {} if max_words is None else {"max_words": max_words}
    target = base / "tokens" / f"{name}-{_digest(list(paths.values()), rule)}"
    if not (target / "vocabulary.json").exists():
        try:
            with locked(target):
                if not (target / "vocabulary.json").exists():
                    _build(paths, target, order=order, unit=unit, max_words=max_words)
        except OSError as error:
            raise InputError(
                f"the cache {target.parent} cannot be written ({error.strerror}); set ADAMP_DATA"
            ) from None
    stored = json.loads((target / "vocabulary.json").read_text(encoding="utf-8"))
    words: list[str] = stored["words"]
    if vocabulary_size is not None and len(words) != vocabulary_size:
        raise InputError(
            f"{folder} gives a vocabulary of {len(words)}, data.vocabulary_size says {vocabulary_size}: another text, "
            "another tokenisation, or other white space"
        )
    tokens = {split: np.load(target / f"{split}.npy", mmap_mode="r") for split in SPLITS}
    _check_token_counts(name, paths, tokens)
    name += "" if max_words is None else f"_top{max_words}"
    return Corpus(name, words, np.asarray(stored["counts"], dtype=np.int64), tokens, unit, licence)


def _check_token_counts(name: str, paths: dict[str, Path], tokens: dict[str, Tokens]) -> None:
    for split, published in PUBLISHED_TOKENS.get(name, {}).items():
        if (num := len(tokens[split])) != published:
            difference = f"{abs(num - published):,} {'more' if num > published else 'fewer'}"
            raise InputError(
                f"{paths[split]}: {num:,} tokens, {difference} than the {published:,} of {name}; each line, blank or "
                "not, counts one <eos>, and copies without blank lines lack some. data.name=NAME takes the text as it "
                "is, under a name of its own"
            )


def find(folder: Path, split: str) -> Path:
    """Return the file of a split, whatever of the known names it has.

    Raises:
        InputError: None of them is there.
    """
    names = [name.format(split) for name in NAMES]
    for candidate in [*names, *(f"{name}.xz" for name in names)]:
        if (folder / candidate).is_file():
            return folder / candidate
    raise InputError(f"data_root: {folder} holds no {split} text; expected one of {', '.join(names)}")


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text without their ends or a byte order mark, one at a time however large the file.

    Raises:
        InputError: A line is not UTF-8, or the compressed stream is broken.
    """
    with cast(BinaryIO, lzma.open(path) if path.suffix == ".xz" else path.open("rb")) as file:
        number = 0
        while True:
            try:
                line = file.readline()
            except (lzma.LZMAError, EOFError) as error:
                raise InputError(f"{path}: broken after line {number} ({error})") from None
            if not line:
                return
            number += 1
            if b"\0" in line:
                raise InputError(f"{path}: line {number} holds a zero byte, which no text does; the file is damaged")
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: line {number} is not UTF-8 ({error.reason}); convert the file") from None


def tokenise(line: str, unit: Unit) -> list[str]:
    """Return the tokens of one line, `<eos>` last; a blank line is an `<eos>` alone."""
    return [*(line.split() if unit == "word" else line), EOS]


def build_vocabulary(
    paths: dict[str, Path], *, order: Order, unit: Unit, max_words: int | None = None
) -> dict[str, int]:
    """Return word -> number, by the rule of `text_corpus`.

    Raises:
        InputError: `<unk>` is not among the words kept.
    """
    if order == "appearance":
        numbers: dict[str, int] = {}
        for split in SPLITS:
            for line in lines(paths[split]):
                for word in tokenise(line, unit):
                    numbers.setdefault(word, len(numbers))
        return numbers
    counts: Counter[str] = Counter()
    for line in _shown(paths["train"], "counting words"):
        counts.update(tokenise(line, unit))
    del counts[EOS]
    # A Counter keeps the order of first appearance, and the sort is stable: ties stay in that order.
    ranked = sorted(counts, key=lambda word: -counts[word])
    if max_words is not None:
        ranked = ranked[: max_words - 1]
        if "<unk>" not in ranked:
            raise InputError(
                f"data.max_words={max_words}: {paths['train']} has no <unk> among so many most frequent words"
            )
    # A text of words brings its own <unk>; of characters none does.
    return {word: number for number, word in enumerate([EOS, *ranked, *(["<unk>"] if unit == "char" else [])])}


def _build(paths: dict[str, Path], target: Path, *, order: Order, unit: Unit, max_words: int | None) -> None:
    """Write the numbers into a folder beside the target and rename it: the cache is whole or not there."""
    numbers = build_vocabulary(paths, order=order, unit=unit, max_words=max_words)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for split, path in paths.items():
            tokens = _encode(path, numbers, unit=unit)
            if len(tokens) < 2:
                raise InputError(f"{path}: holds no text")
            np.save(work / f"{split}.npy", tokens)
        counts = np.bincount(np.load(work / "train.npy"), minlength=len(numbers)).tolist()
        text = json.dumps({"words": list(numbers), "counts": counts}, ensure_ascii=False)
        (work / "vocabulary.json").write_text(text, encoding="utf-8")
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _encode(path: Path, numbers: dict[str, int], *, unit: Unit) -> Tokens:
    unknown = numbers.get("<unk>")
    parts: list[Tokens] = []
    for number, line in enumerate(_shown(path, f"reading {path.name}"), 1):
        words = tokenise(line, unit)
        try:
            parts.append(np.fromiter((numbers[w] for w in words), dtype=np.int32, count=len(words)))
        except KeyError as error:
            if unknown is None:
                raise InputError(
                    f"{path}: line {number} holds {error.args[0]!r}; the training text has neither it nor <unk>"
                ) from None
            parts.append(np.fromiter((numbers.get(w, unknown) for w in words), dtype=np.int32, count=len(words)))
        if len(parts) == 100_000:  # joined now and then: a million small arrays cost more than their contents
            parts = [np.concatenate(parts)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)


def _shown(path: Path, what: str) -> Iterator[str]:
    """Yield the lines of a file, with a bar where that takes long."""
    yield from tqdm(lines(path), desc=what, unit=" lines", leave=False, delay=2, mininterval=1)


def _digest(paths: list[Path], rule: dict[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]
