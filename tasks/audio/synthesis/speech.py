"""Words spoken by espeak-ng's voices, in the layout of Speech Commands.

espeak-ng (GPL-3.0-or-later) comes with the package espeakng-loader, an optional extra that nothing but this file uses.
A speaker is a voice with an accent; all speakers of a voice are in one split. espeak-ng is seeded for every clip and
runs in a process of its own, since it keeps more than its random numbers from word to word: so a set is the same bytes
again.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly
from tqdm import tqdm

from tasks.base import InputError

WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip
# Accents that espeak-ng takes by name.
ACCENTS = (
    "en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-gb-x-gbclan", "en-us-nyc", "en-gb-x-gbcwmd",
)  # fmt: skip
RATE = 16_000
LICENCE = "made here with espeak-ng (GPL-3.0-or-later; its licence does not extend to what it speaks)"
_SYNCHRONOUS = 2  # espeak's AUDIO_OUTPUT_SYNCHRONOUS: the callback gets the samples, before the call returns
_UTF8 = 1


def loader() -> Any:
    """Return the optional package that brings espeak-ng.

    Raises:
        InputError: It is not installed.
    """
    try:
        import espeakng_loader
    except ImportError:
        raise InputError(
            "data=speech_commands_tts: the package espeakng-loader, which speaks the words, is not installed; "
            "python -m pip install '.[speech]', or scale=full data_root=FOLDER for the recorded words"
        ) from None
    return espeakng_loader


class Speaker:
    """espeak-ng through its C interface.

    Raises:
        InputError: The package is not installed, or the library refuses to start.
    """

    def __init__(self) -> None:
        espeakng_loader = loader()
        data = str(espeakng_loader.get_data_path())
        try:
            self._library = ctypes.CDLL(str(espeakng_loader.get_library_path()))
            self._seed = self._library.espeak_ng_SetRandSeed
        except (OSError, AttributeError) as error:
            raise InputError(
                f"data=speech_commands_tts: espeakng-loader's library cannot be used here ({error}); "
                "it needs espeak-ng 1.52 or newer"
            ) from None
        self._seed.argtypes = [ctypes.c_long]
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self.rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), 0))
        if self.rate <= 0:
            raise InputError(f"data=speech_commands_tts: espeak-ng does not start with the data in {data}")
        self.voices = sorted(path.name for path in (Path(data) / "voices" / "!v").iterdir())
        self._parts: list[NDArray[np.int16]] = []
        self._heard = _callback(self._parts)  # kept: the library holds no reference to it
        self._library.espeak_SetSynthCallback(self._heard)

    def take(self, voice: str) -> None:
        """Speak with a voice from here on, e.g. "en-us+f3".

        Raises:
            InputError: espeak-ng does not know it.
        """
        if self._library.espeak_SetVoiceByName(voice.encode()):
            raise InputError(f"data=speech_commands_tts: espeak-ng has no voice {voice}")

    def say(self, word: str, *, seed: int) -> NDArray[np.int16]:
        """Return a word's samples (N,) at `rate`."""
        self._parts.clear()
        self._seed(seed)
        text = word.encode() + b"\0"
        if self._library.espeak_Synth(text, len(text), 0, 1, 0, _UTF8, None, None):
            raise InputError(f"data=speech_commands_tts: espeak-ng refuses to speak {word!r}")
        self._library.espeak_Synchronize()
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int16)


def _callback(parts: list[NDArray[np.int16]]) -> Any:
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)

    def heard(samples: Any, count: int, _events: Any) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    return kind(heard)


def _number(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:4], "big")


def split_of(place: int) -> str:
    """Return the split of all speakers of a voice by its place among the voices: of ten, one and one are held out."""
    return {3: "val", 8: "test"}.get(place % 10, "train")


def write(folder: Path, *, words: int = 35, speakers: int = 104) -> None:
    """Write the set: `<word>/<speaker>_nohash_0.wav`, mono 16 bit 16 kHz, at most a second, and the two lists.

    Args:
        folder: Exists and is empty.
        words: How many of the 35 words of Speech Commands.
        speakers: Speakers, up to eight for each of espeak-ng's voices.

    Raises:
        InputError: espeak-ng is missing, or a number is out of its range.
    """
    if not 2 <= words <= len(WORDS):
        raise InputError(f"data.words={words}: must be from 2 to {len(WORDS)}")
    loader()  # what is missing is said before a process is started
    # By the file's path: as a module of its package it would load torch.
    command = [sys.executable, __file__, str(folder.resolve()), str(words), str(speakers)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError((done.stdout.strip().splitlines() or ["data=speech_commands_tts: espeak-ng failed"])[-1])


def _write(folder: Path, words: int, speakers: int) -> None:
    espeak = Speaker()
    if not 10 <= speakers <= len(ACCENTS) * len(espeak.voices):
        raise InputError(f"data.speakers={speakers}: must be from 10 to {len(ACCENTS) * len(espeak.voices)}")
    lists: dict[str, list[str]] = {"val": [], "test": [], "train": []}
    for word in WORDS[:words]:
        (folder / word).mkdir()
    common = gcd(RATE, espeak.rate)
    for number in tqdm(range(speakers), desc="speaking", unit=" speakers", leave=False, delay=2, mininterval=1):
        turn, place = divmod(number, len(espeak.voices))
        voice, accent = espeak.voices[place], ACCENTS[(turn + place) % len(ACCENTS)]
        espeak.take(f"{accent}+{voice}")
        name = f"{_number(accent, voice):08x}_nohash_0.wav"
        for word in WORDS[:words]:
            spoken = espeak.say(word, seed=_number(accent, voice, word) >> 1)
            wave = resample_poly(spoken.astype(np.float64), RATE // common, espeak.rate // common)[:RATE]
            soundfile.write(folder / word / name, np.clip(wave.round(), -32768, 32767).astype(np.int16), RATE)
            lists[split_of(place)].append(f"{word}/{name}")
    for split, file in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
        (folder / file).write_text("".join(f"{line}\n" for line in sorted(lists[split])), encoding="utf-8")


if __name__ == "__main__":
    try:
        _write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    except InputError as error:
        print(error)
        sys.exit(2)
