"""The corpus of bad inputs: every reader's files spoiled in every way, and what must come of each.

A spoiled file must give an error of one or two lines that names it, or be left out and counted, or change nothing at
all. A traceback and a result that differs without a word are the two things that must not be.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tasks.base import InputError
from tests.reliability import sets, spoil

REFUSED, COUNTED, SAME, CRASHED, SILENT = "refused", "counted", "unchanged", "TRACEBACK", "SILENT"
# Where another reading is right, and why: layout -> parts of the cases. Keep it short.
MEANT = {
    "coco": ("iscrowd is a boolean",),  # which is 0 or 1
    "music tags": ("mp3: cut by a byte",),  # an incomplete last frame, which players take
    # A text is whatever its bytes say: other words are another text, and a corpus has no list to compare them with.
    "words": ("cut", "a page of HTML", "a column", "the last line", "column", "with"),
    "characters": ("cut", "a page of HTML", "a column", "the last line", "column", "with"),
}


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        case: Layout, file and way.
        kind: REFUSED, COUNTED, SAME, or one of the two that must not be: CRASHED, SILENT.
        said: The error's message.
    """

    case: str
    kind: str
    said: str = ""

    @property
    def bad(self) -> bool:
        """Whether this must not be."""
        return self.kind in (CRASHED, SILENT)


def outcomes(name: str, base: Path) -> Iterator[Outcome]:
    """Spoil the files of one layout, one way at a time, and yield what its reader makes of each.

    Args:
        name: Of `sets.LAYOUTS`.
        base: An empty folder.
    """
    layout, root = sets.LAYOUTS[name], base / "set"
    root.mkdir(parents=True)
    layout.write(root)
    sets.write_outside(base)
    sound = layout.read(root, base / "cache")
    for pattern, kind in layout.files.items():
        path = sorted(root.glob(pattern))[0]
        kept = base / "kept"
        shutil.copy2(path, kept)
        for way, spoiling in spoil.ways(path, kind, found=kind in layout.found):
            spoiling(path)
            case = f"{name}: {path.relative_to(root)}: {way}"
            meant = any(part in case for part in MEANT.get(name, ()))
            yield _read(case, layout, root, path=path, base=base, sound=sound, meant=meant)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            shutil.copy2(kept, path)


def _read(
    case: str, layout: sets.Layout, root: Path, *, path: Path, base: Path, sound: sets.Reading, meant: bool
) -> Outcome:
    cache = base / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of much that it then refuses
            logging.disable(logging.WARNING)
            found = layout.read(root, cache)
    except InputError as error:
        said = str(error)
        if len(said.splitlines()) > 2 or len(said) > 600:
            return Outcome(case, CRASHED, f"an error of {len(said.splitlines())} lines, {len(said)} letters")
        named = any(part in said for part in (path.name, str(path.parent), path.stem))
        return Outcome(case, REFUSED if named else CRASHED, said if named else f"does not name the file: {said}")
    except Exception as error:
        return Outcome(case, CRASHED, f"{type(error).__name__}: {str(error)[:200]}")
    finally:
        logging.disable(logging.NOTSET)
    if found.digest == sound.digest and found.skipped == sound.skipped:
        return Outcome(case, SAME)
    if found.skipped > sound.skipped:
        return Outcome(case, COUNTED, f"{found.skipped - sound.skipped} left out")
    return Outcome(case, SAME, "as meant") if meant else Outcome(case, SILENT)
