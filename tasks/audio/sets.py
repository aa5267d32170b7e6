"""Audio sets by name: official ones from their folders, synthetic ones generated at their first use."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tasks.audio.cache import cache_folder
from tasks.audio.clips import ClipSet
from tasks.audio.official import READERS, dcase, mtat, speech_commands
from tasks.base import InputError
from tasks.data.cache import locked

# Name -> the module that writes it, and how its layout is read.
SYNTHETIC = {
    "speech_commands_tts": ("speech", speech_commands),
    "synthetic_instruments": ("instruments", mtat),
    "synthetic_events": ("events", dcase),
}
VERSION = 1  # of what the synthesisers write: part of the folder's name


def official_set(
    name: str,
    root: str | None,
    *,
    num_tags: int | None = None,
    resample: bool = True,
    cache: str | None = None,
    max_undecodable: int | None = None,
    draw: str | None = None,
) -> ClipSet:
    """Read an official set from its folder; the first time decodes it into the cache.

    Args:
        name: speech_commands, fsdd, mtat or dcase2017_task4.
        root: The folder.
        num_tags: Of mtat, the most frequent tags that are classes; None: 50.
        resample: False refuses clips that are not of 16 kHz.
        cache: Folder of decoded clips; None: `audio` in $ADAMP_DATA or ~/.cache/adamp/data.
        max_undecodable: Files that may be missing or broken; None: 1 % and at least 10.
        draw: Of dcase2017_task4, how its validation files are drawn: "published" or "sorted"; None: "published".

    Raises:
        InputError: The folder is not what it should be.
    """
    if name not in READERS:
        raise InputError(f"data.name={name}: must be one of {', '.join(READERS)}")
    options: dict[str, Any] = {}
    for option, value, owner in (("num_tags", num_tags, mtat), ("draw", draw, dcase)):
        if value is None:
            continue
        if READERS[name] is not owner:
            raise InputError(f"data.{option}={value}: has no meaning for {name}")
        options[option] = value
    listing = READERS[name](root, **options)
    return ClipSet(listing, resample=resample, cache=cache, max_undecodable=max_undecodable)


def synthetic_set(
    name: str, *, cache: str | None = None, num_tags: int | None = None, options: dict[str, Any] | None = None
) -> ClipSet:
    """Read a synthetic set, making it first where it has not been made with these options.

    Args:
        name: speech_commands_tts, synthetic_instruments or synthetic_events.
        cache: Folder of sets and decoded clips; None: `audio` in $ADAMP_DATA or ~/.cache/adamp/data.
        num_tags: Of synthetic_instruments, the most frequent tags that are classes; None: 50.
        options: Of the synthesiser's `write`, e.g. {"words": 10}.

    Raises:
        InputError: The synthesiser is missing, or refuses an option.
    """
    if name not in SYNTHETIC:
        raise InputError(f"data.name={name}: must be one of {', '.join(SYNTHETIC)}")
    module, reader = SYNTHETIC[name]
    synthesiser = importlib.import_module(f"tasks.audio.synthesis.{module}")
    folder = make(name, cache_folder(cache), options or {})
    reader_options: dict[str, Any] = {"name": name, "licence": synthesiser.LICENCE}
    if num_tags is not None:
        reader_options |= {"num_tags": num_tags}
    if reader is dcase:  # the draw that the records of this set were made with
        reader_options |= {"draw": "sorted"}
    return ClipSet(reader(folder, **reader_options), cache=cache)


def make(name: str, base: Path, options: dict[str, Any]) -> Path:
    """Return the folder of a synthetic set, writing it beside its place and renaming it if it is not there.

    Args:
        name: Of the set.
        base: The folder is made in `made` below it, named by set, options and version.
        options: Of the synthesiser's `write`.

    Raises:
        InputError: An option is unknown or refused, or the folder cannot be written.
    """
    synthesiser = importlib.import_module(f"tasks.audio.synthesis.{SYNTHETIC[name][0]}")
    key = hashlib.sha256(json.dumps([VERSION, options], sort_keys=True).encode()).hexdigest()[:10]
    target = base / "made" / f"{name}-{key}"
    if target.is_dir():
        return target
    try:
        with locked(target):
            if not target.is_dir():
                work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
                try:
                    synthesiser.write(work, **options)
                    work.rename(target)
                finally:
                    shutil.rmtree(work, ignore_errors=True)
    except TypeError as error:
        raise InputError(f"data.options: {error}") from None
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); set ADAMP_DATA") from None
    return target
