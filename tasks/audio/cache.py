"""Cache of decoded audio: one memory-mapped array file per sound file, named by its hash.

A file is decoded again only if no array of its hash is there, so that stopping in the middle loses nothing, moving a
data set costs reading but no decoding, and equal files share one array. Arrays are written beside their place and
renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly
from tqdm import tqdm

from tasks.base import InputError
from tasks.data.cache import cache_folder as data_folder

MP3_FRAME = 1152  # samples of the longest frame
SAVE_SECONDS = 20.0  # between two savings of the index while decoding


@dataclass(frozen=True)
class Entry:
    """A decoded clip: its array file, and its samples at the cache's rate."""

    array: Path
    length: int


@dataclass(frozen=True)
class Fault:
    """Why a file gives no clip."""

    reason: str


def cache_folder(cache: str | Path | None = None) -> Path:
    """Return the folder of decoded clips."""
    return Path(cache).expanduser() if cache is not None else data_folder() / "audio"


def read_wave(content: bytes, *, sample_rate: int) -> tuple[NDArray[Any], int]:
    """Return a sound file's samples, mono at `sample_rate`, and the rate it had.

    Channels are averaged; other rates resampled by a polyphase filter. Samples are int16 where the file holds exactly
    such samples, half the size, else float32.

    Raises:
        ValueError: It cannot be decoded, is empty, or holds samples that are not finite.
    """
    if not content:
        raise ValueError("the file is empty")
    try:
        with soundfile.SoundFile(BytesIO(content)) as file:
            rate = file.samplerate
            exact = file.subtype == "PCM_16" and file.channels == 1 and rate == sample_rate
            expected = file.frames
            samples = file.read(dtype="int16" if exact else "float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"cannot be decoded ({' '.join(str(error).split())})") from None
    if not len(samples):
        raise ValueError("holds no samples")
    # An MP3's last frame may be incomplete in files that players take; more than that is missing is a damaged copy.
    if (lost := expected - len(samples)) > max(MP3_FRAME, expected // 100):
        raise ValueError(f"is truncated: {lost} of {expected} samples are missing")
    _check_wave(content)
    if exact:
        return samples[:, 0], rate
    wave = samples.mean(axis=1)
    if not np.isfinite(wave).all():
        raise ValueError("holds samples that are not finite (NaN or infinite)")
    if rate != sample_rate:
        common = gcd(rate, sample_rate)
        wave = resample_poly(wave, sample_rate // common, rate // common)
    return wave.astype(np.float32), rate


def _check_wave(content: bytes) -> None:
    """Raise ValueError for a RIFF file that ends before its data does: the library reads what is there without a word.

    Programs that write to a pipe cannot go back to fill in the size; they leave nothing or about 2^31 or 2^32 there.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(content):
        name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if name == b"data":
            if 0 < size < 0x7FFFF000 and at + 8 + size > len(content):
                raise ValueError(f"is truncated: {at + 8 + size - len(content)} of {size} bytes are missing")
            return
        at += 8 + size + size % 2


def load_samples(entry: Entry, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
    """Return samples start to stop of a decoded clip as float32; only these are read from the disk."""
    part = np.load(entry.array, mmap_mode="r")[start:stop]
    return part.astype(np.float32) / np.float32(32768) if part.dtype == np.int16 else np.array(part)


def decode_all(
    paths: Sequence[Path],
    root: Path,
    *,
    sample_rate: int,
    resample: bool = True,
    cache: str | Path | None = None,
    workers: int | None = None,
) -> dict[Path, Entry | Fault]:
    """Return what each file decoded to, decoding only what no earlier call did.

    Of several processes that start at once, one decodes. An index remembers the hash of each file by its size and time
    of change, so that a later call reads none of them.

    Args:
        paths: Sound files: WAV, FLAC, OGG, MP3.
        root: Folder they lie in; the index is kept by it.
        sample_rate: To decode to, in Hz.
        resample: False refuses files of another rate.
        cache: Folder of the cache; None: the default.
        workers: Decoding threads; None: one a core.

    Raises:
        InputError: The cache cannot be written, or a rate is refused.
    """
    store = _Store(cache_folder(cache), root, sample_rate)
    try:
        with store.locked():
            if not resample:
                store.refuse_other_rates(paths)
            missing = [path for path in paths if not store.knows(path)]
            _decode(store, missing, workers or os.cpu_count() or 1)
    except OSError as error:
        raise InputError(
            f"the cache {store.folder} cannot be written ({error.strerror or error}); set ADAMP_DATA"
        ) from None
    return {path: store.result(path) for path in paths}


def _decode(store: _Store, paths: Sequence[Path], workers: int) -> None:
    if not paths:
        return
    bar = tqdm(total=len(paths), desc="decoding clips", unit=" clips", leave=False, delay=2, mininterval=1)
    saved = time.monotonic()
    pool = ThreadPoolExecutor(workers)  # libsndfile decodes, and files are read, without the interpreter's lock
    try:
        for done in as_completed([pool.submit(store.decode, path) for path in paths]):
            done.result()
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                store.save()
                saved = time.monotonic()
    finally:  # stopped in the middle, what is done stays done
        pool.shutdown(cancel_futures=True)
        bar.close()
        store.save()


class _Store:
    """The arrays of one rate, and the index of one root: path -> [size, time, rate, hash and length, or the fault]."""

    def __init__(self, folder: Path, root: Path, sample_rate: int) -> None:
        self.folder, self.root, self.sample_rate = folder, root.resolve(), sample_rate
        self.arrays = folder / f"{sample_rate}"
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:16]
        self.index_path = self.arrays / f"index-{name}.json"
        self.index: dict[str, list[Any]] = {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.arrays.mkdir(parents=True, exist_ok=True)
        with self.index_path.with_suffix(".lock").open("w") as file:
            with contextlib.suppress(OSError):  # a file system without locks: then several build the same
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                self.index = dict(json.loads(self.index_path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                self.index = {}  # as good as none: files are hashed again, and found decoded
            yield

    def save(self) -> None:
        _write(self.index_path, json.dumps(dict(self.index)).encode())

    def _key(self, path: Path) -> str:
        # realpath, since Path.resolve raises for a link to itself.
        return os.path.relpath(os.path.dirname(os.path.realpath(path)), self.root) + "/" + path.name  # noqa: PTH120

    def knows(self, path: Path) -> bool:
        """Whether the index has this very file, and its array is there."""
        entry = self.index.get(self._key(path))
        if not entry or entry[:2] != _stamp(path):
            return False
        return "fault" in entry[2] or self._array(entry[2]).exists()

    def result(self, path: Path) -> Entry | Fault:
        facts: Mapping[str, Any] = self.index[self._key(path)][2]
        return Fault(facts["fault"]) if "fault" in facts else Entry(self._array(facts), facts["length"])

    def _array(self, facts: Mapping[str, Any]) -> Path:
        return self.arrays / facts["hash"][:2] / f"{facts['hash']}.npy"

    def decode(self, path: Path) -> None:
        """Enter a file into the index, and write its array unless one of its hash is there."""
        stamp = _stamp(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            self.index[self._key(path)] = [*stamp, {"fault": f"cannot be read ({error.strerror})"}]
            return
        facts: dict[str, Any] = {"hash": hashlib.sha256(content).hexdigest()}
        array = self._array(facts)
        try:
            if array.exists():
                facts["length"] = len(np.load(array, mmap_mode="r"))
            else:
                wave, _ = read_wave(content, sample_rate=self.sample_rate)
                buffer = BytesIO()
                np.save(buffer, wave)
                _write(array, buffer.getvalue())
                facts["length"] = len(wave)
        except ValueError as error:
            facts = {"fault": str(error)}
        self.index[self._key(path)] = [*stamp, facts]

    def refuse_other_rates(self, paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                rate = soundfile.info(str(path)).samplerate
            except (soundfile.SoundFileError, OSError):
                continue  # broken files are told of elsewhere
            if rate != self.sample_rate:
                raise InputError(
                    f"{path}: has {rate} Hz, not {self.sample_rate}, and data.resample=false refuses to resample"
                )


def _stamp(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return [-1, -1]
    return [status.st_size, status.st_mtime_ns]


def _write(path: Path, content: bytes) -> None:
    """Write a file whole: beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:
        try:
            file.write(content)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
