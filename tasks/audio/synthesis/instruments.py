"""Short pieces for synthesised instruments, in the layout of MagnaTagATune.

Each instrument is a sum of partials with an envelope of its own; nothing is sampled from a recording. A piece has a
tempo, a loudness and one to three instruments, which are its tags.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from tasks.base import InputError

Wave = NDArray[np.float64]
RATE = 16_000
LICENCE = "made here, as this project"


@dataclass(frozen=True)
class Timbre:
    """How a note of an instrument sounds.

    Attributes:
        octave: Shift of its range.
        falloff: Partial n has amplitude n ** -falloff.
        partials: How many.
        attack: Seconds to full loudness.
        decay: Seconds to 1/e; higher partials fade faster. Infinite: until the note ends.
        vibrato: Depth, as a share of the frequency, at about 6 Hz.
        breath: Amplitude of noise in the note.
        stretch: Inharmonicity: partial n lies at n (1 + stretch n^2).
        odd: Odd partials alone.
        voices: Detuned copies.
        formant: Centre in Hz of the partials that are heard best; 0 for none.
    """

    octave: int = 0
    falloff: float = 1.0
    partials: int = 12
    attack: float = 0.005
    decay: float = np.inf
    vibrato: float = 0.0
    breath: float = 0.0
    stretch: float = 0.0
    odd: bool = False
    voices: int = 1
    formant: float = 0.0


TIMBRES = {
    "guitar": Timbre(octave=-1, falloff=1.3, decay=0.5),
    "piano": Timbre(falloff=1.6, decay=0.8, stretch=4e-4),
    "violin": Timbre(octave=1, falloff=0.9, partials=16, attack=0.08, vibrato=0.006),
    "cello": Timbre(octave=-2, falloff=0.9, partials=20, attack=0.1, vibrato=0.004),
    "strings": Timbre(falloff=1.0, partials=12, attack=0.2, vibrato=0.004, voices=3),
    "flute": Timbre(octave=1, falloff=2.5, partials=4, attack=0.06, vibrato=0.003, breath=0.06),
    "harpsichord": Timbre(falloff=0.4, partials=24, decay=0.25),
    "harp": Timbre(falloff=2.2, partials=6, decay=1.0),
    "sitar": Timbre(octave=-1, falloff=0.3, partials=30, decay=0.9, stretch=2e-5, vibrato=0.012),
    "synth": Timbre(falloff=1.0, partials=20, odd=True, voices=2),
    "choir": Timbre(falloff=0.5, partials=24, attack=0.15, vibrato=0.008, voices=3, breath=0.02, formant=800.0),
    "drums": Timbre(),
}
CLASSICAL = {"violin", "cello", "strings", "piano", "harpsichord", "harp", "flute"}
TAGS = (
    *TIMBRES, "beat", "slow", "fast", "loud", "quiet", "solo", "classical", "electronic", "techno", "no vocals",
)  # fmt: skip
SCALE = (0, 2, 4, 7, 9)  # pentatonic: any notes of it go together


def note(timbre: Timbre, frequency: float, seconds: float, generator: np.random.Generator) -> Wave:
    """Return one note (N,), peak about 1."""
    time = np.arange(int(RATE * seconds)) / RATE
    wave = np.zeros_like(time)
    for _ in range(timbre.voices):
        detune = 1 + (0.004 * generator.standard_normal() if timbre.voices > 1 else 0.0)
        wobble = timbre.vibrato / 6 * np.sin(2 * np.pi * 6 * time + generator.uniform(0, 6)) / (2 * np.pi)
        phase = 2 * np.pi * frequency * detune * (time + wobble)
        for n in range(1, timbre.partials + 1, 2 if timbre.odd else 1):
            ratio = n * (1 + timbre.stretch * n**2)
            if frequency * ratio > 0.45 * RATE:
                break
            size = n**-timbre.falloff
            if timbre.formant:
                size *= np.exp(-(((frequency * n - timbre.formant) / 500) ** 2)) + 0.05
            wave += size * np.exp(-time * np.sqrt(n) / timbre.decay) * np.sin(ratio * phase + generator.uniform(0, 6))
    wave /= max(np.abs(wave).max(), 1e-9)
    wave += timbre.breath * generator.standard_normal(len(time))
    fade = min(0.03, seconds / 4)
    return wave * np.clip(time / timbre.attack, 0, 1) * np.clip((seconds - time) / fade, 0, 1)


def drum_beat(beat: float, seconds: float, generator: np.random.Generator) -> Wave:
    """Return a bass drum on every beat, a snare between them and a cymbal on every half."""
    wave = np.zeros(int(RATE * seconds))
    for number, start in enumerate(np.arange(0, seconds - 0.1, beat / 2)):
        time = np.arange(int(RATE * min(0.25, seconds - start))) / RATE
        hit = 0.15 * generator.standard_normal(len(time)) * np.exp(-time / 0.02)
        if number % 4 == 0:
            hit += np.sin(2 * np.pi * (50 * time - 4 * np.exp(-time / 0.03))) * np.exp(-time / 0.12)
        elif number % 4 == 2:
            hit += 0.6 * generator.standard_normal(len(time)) * np.exp(-time / 0.07)
        first = int(RATE * start)
        wave[first : first + len(hit)] += hit[: len(wave) - first]
    return wave


def piece(seconds: float, generator: np.random.Generator) -> tuple[Wave, set[str]]:
    """Return a piece (N,) and its tags."""
    names = list(TIMBRES)
    chosen = [names[i] for i in generator.permutation(len(names))[: generator.choice([1, 2, 3], p=[0.35, 0.4, 0.25])]]
    tempo = float(
        generator.choice([generator.uniform(50, 75), generator.uniform(85, 125), generator.uniform(145, 190)])
    )
    beat, root = 60 / tempo, 220 * 2 ** (generator.integers(0, 12) / 12)
    mix = np.zeros(int(RATE * seconds))
    for name in chosen:
        if name == "drums":
            mix += drum_beat(beat, seconds, generator)
            continue
        start = 0.0
        while start < seconds - 0.1:
            length = beat * float(generator.choice([0.5, 1.0, 1.0, 2.0]))
            octave = TIMBRES[name].octave + int(generator.integers(0, 2))
            pitch = root * 2 ** (octave + SCALE[generator.integers(0, len(SCALE))] / 12)
            played = note(TIMBRES[name], pitch, min(length, seconds - start), generator)
            first = int(RATE * start)
            mix[first : first + len(played)] += played[: len(mix) - first]
            start += length
    loudness = float(generator.choice([0.03, 0.15, 0.6]))
    mix *= loudness / max(np.abs(mix).max(), 1e-9)
    mix += 1e-4 * generator.standard_normal(len(mix))
    return mix, _tags(set(chosen), tempo, loudness)


def _tags(chosen: set[str], tempo: float, loudness: float) -> set[str]:
    rules = {
        "beat": "drums" in chosen, "slow": tempo < 80, "fast": tempo > 140, "loud": loudness > 0.5,
        "quiet": loudness < 0.1, "solo": len(chosen) == 1, "classical": chosen <= CLASSICAL,
        "electronic": "synth" in chosen, "techno": chosen >= {"synth", "drums"}, "no vocals": "choir" not in chosen,
    }  # fmt: skip
    return chosen | {tag for tag, holds in rules.items() if holds}


def write(folder: Path, *, clips: int = 480, seconds: float = 6.0, seed: int = 0) -> None:
    """Write the set: `annotations_final.csv` and mp3 files in sixteen folders, 0 to f.

    Args:
        folder: Exists and is empty.
        clips: Pieces, dealt to the sixteen folders by turns.
        seconds: Length of each.
        seed: Of all draws; a piece depends on it and on its own number.
    """
    if not clips >= 16:
        raise InputError(f"data.clips={clips}: must be at least 16, one for each folder of the layout")
    if not seconds > 0:
        raise InputError(f"data.seconds={seconds}: must be positive")
    with (folder / "annotations_final.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(["clip_id", *TAGS, "mp3_path"])
        for number in tqdm(range(clips), desc="playing", unit=" pieces", leave=False, delay=2, mininterval=1):
            wave, tags = piece(seconds, np.random.default_rng([seed, number]))
            name = f"{number % 16:x}/piece-{number:05d}.mp3"
            (folder / "mp3" / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "mp3" / name, wave, RATE, format="MP3")
            table.writerow([number, *(int(tag in tags) for tag in TAGS), name])
