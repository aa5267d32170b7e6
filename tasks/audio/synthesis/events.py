"""Synthesised horns, sirens, beeps and engines, in the layout of DCASE 2017 task 4.

Each of the 17 events is a frequency over time with partials, a loudness over time, and a band of noise. A clip mixes
one to three of them over faint noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from tasks.audio.official import DCASE_LISTS, EVENTS
from tasks.base import InputError

Wave = NDArray[np.float64]
Curve = Callable[[Wave], Wave]  # of time in seconds
RATE = 16_000
LICENCE = "made here, as this project"


def _steady(time: Wave) -> Wave:
    return np.ones_like(time)


def _pulses(rate: float, share: float) -> Curve:
    """Return 1 for a share of each of `rate` periods a second, else 0."""
    return lambda time: ((time * rate) % 1 < share).astype(np.float64)


def _clicks(rate: float, fade: float) -> Curve:
    """Return `rate` strokes a second, each fading to 1/e in `fade` seconds."""
    return lambda time: np.exp(-((time * rate) % 1) / (rate * fade))


def _between(low: float, high: float, rate: float) -> Curve:
    """Return a slide up and down between two values, `rate` times per second."""
    return lambda time: low + (high - low) * (0.5 - 0.5 * np.cos(2 * np.pi * rate * time))


def _turns(first: float, second: float, rate: float) -> Curve:
    """Return two values by turns, `rate` pairs a second."""
    return lambda time: np.where((time * rate) % 1 < 0.5, first, second)


@dataclass(frozen=True)
class Sound:
    """An event.

    Attributes:
        pitch: Fundamental in Hz over time.
        chord: Ratios of the fundamentals sounding together.
        partials: Of each.
        falloff: Partial n has amplitude n ** -falloff.
        gate: Loudness over time.
        noise: Amplitude of the noise; the tones have 1.
        band: Of the noise, in Hz.
        noise_gate: Its loudness over time.
    """

    pitch: Curve = _steady
    chord: tuple[float, ...] = ()
    partials: int = 8
    falloff: float = 1.0
    gate: Curve = _steady
    noise: float = 0.0
    band: tuple[float, float] = (50.0, 7000.0)
    noise_gate: Curve = _steady


def _at(frequency: float) -> Curve:
    return lambda time: np.full_like(time, frequency)


SOUNDS = {
    "Train horn": Sound(_at(311), (1.0, 1.19, 1.33, 1.59), 10, 0.8, _pulses(0.4, 0.7)),
    "Air horn, truck horn": Sound(_at(190), (1.0, 1.26), 16, 0.4, _pulses(0.9, 0.6)),
    "Car alarm": Sound(_turns(900, 1400, 4), (1.0,), 4, 1.0),
    "Reversing beeps": Sound(_at(1250), (1.0,), 2, 1.5, _pulses(1.2, 0.5)),
    "Ambulance (siren)": Sound(_turns(440, 590, 0.6), (1.0,), 6, 0.9),
    "Police car (siren)": Sound(_between(650, 1500, 3.0), (1.0,), 4, 1.0),
    "Fire engine, fire truck (siren)": Sound(_between(400, 1100, 0.4), (1.0, 1.5), 5, 0.8),
    "Civil defense siren": Sound(_between(240, 480, 0.12), (1.0, 1.2), 8, 0.6),
    "Screaming": Sound(_between(1000, 1300, 7.0), (1.0,), 5, 0.5, _pulses(0.7, 0.8), 0.15, (900.0, 5000.0)),
    "Bicycle": Sound(noise=1.0, band=(2500.0, 7500.0), noise_gate=_clicks(14.0, 0.006)),
    "Skateboard": Sound(noise=1.0, band=(300.0, 3000.0), noise_gate=lambda t: 0.3 + _clicks(3.0, 0.03)(t)),
    "Car": Sound(_at(95), (1.0,), 10, 1.2, noise=0.15, band=(50.0, 800.0)),
    "Car passing by": Sound(noise=1.0, band=(100.0, 2500.0), noise_gate=lambda t: np.exp(-((t % 3 - 1.5) ** 2) / 0.3)),
    "Bus": Sound(_at(48), (1.0,), 14, 0.8, noise=0.5, band=(3000.0, 7500.0), noise_gate=_pulses(0.5, 0.25)),
    "Truck": Sound(_at(32), (1.0,), 24, 0.5, lambda t: 0.6 + 0.4 * _clicks(8.0, 0.05)(t), 0.2, (50.0, 500.0)),
    "Motorcycle": Sound(_between(60, 150, 0.5), (1.0,), 24, 0.3, noise=0.1),
    "Train": Sound(noise=1.0, band=(60.0, 1200.0), noise_gate=lambda t: 0.15 + _clicks(2.2, 0.05)(t)),
}  # fmt: skip


def band_noise(num: int, band: tuple[float, float], generator: np.random.Generator) -> Wave:
    """Return noise (N,) of deviation 1 in a band of frequencies."""
    spectrum = np.fft.rfft(generator.standard_normal(num))
    frequencies = np.fft.rfftfreq(num, 1 / RATE)
    spectrum[(frequencies < band[0]) | (frequencies > band[1])] = 0
    wave = np.fft.irfft(spectrum, num)
    normalised: Wave = wave / max(float(wave.std()), 1e-12)
    return normalised


def perform(sound: Sound, seconds: float, generator: np.random.Generator) -> Wave:
    """Return an event (N,), peak 1, at a pace and pitch of its own."""
    num = int(RATE * seconds)
    pace, tune = generator.uniform(0.85, 1.15), generator.uniform(0.92, 1.08)
    time = pace * (np.arange(num) / RATE) + generator.uniform(0, 5)
    wave = np.zeros(num)
    phase = 2 * np.pi * np.cumsum(sound.pitch(time)) * tune / RATE
    for ratio in sound.chord:
        for n in range(1, sound.partials + 1):
            wave += n**-sound.falloff * np.sin(n * ratio * phase + generator.uniform(0, 6))
    wave *= sound.gate(time)
    if sound.noise:
        peak = max(float(np.abs(wave).max()), 1.0)
        wave += sound.noise * peak * sound.noise_gate(time) * band_noise(num, sound.band, generator) / 3
    scaled: Wave = wave / max(float(np.abs(wave).max()), 1e-9)
    return scaled


def scene(labels: list[int], seconds: float, generator: np.random.Generator) -> Wave:
    """Return a clip (N,) of the events with these numbers, each with a loudness and a stretch of its own."""
    num = int(RATE * seconds)
    mix = 0.003 * generator.standard_normal(num)
    for label in labels:
        length = int(num * generator.uniform(0.6, 1.0))
        start = int(generator.integers(0, num - length + 1))
        sound = perform(SOUNDS[EVENTS[label]], length / RATE, generator)
        mix[start : start + len(sound)] += generator.uniform(0.1, 0.35) * sound
    return mix


def write(folder: Path, *, clips: int = 600, seconds: float = 4.0, seed: int = 0) -> None:
    """Write the set: three lists without a header, and WAV files in the three folders.

    Args:
        folder: Exists and is empty.
        clips: In all: 70 % in the training list, 10 % in the testing list, 20 % in the evaluation list.
        seconds: Length of each.
        seed: Of all draws; a clip depends on it and on its own number.
    """
    if not clips >= 10 * len(EVENTS):
        raise InputError(
            f"data.clips={clips}: must be at least {10 * len(EVENTS)}, so that every split has every event"
        )
    if not seconds >= 1:
        raise InputError(f"data.seconds={seconds}: must be at least 1")
    lines: dict[str, list[str]] = {which: [] for which in DCASE_LISTS}
    for directory in DCASE_LISTS.values():
        (folder / directory).mkdir()
    # A tenth of the numbers is dealt out at a time, in blocks that hold every event.
    for number in tqdm(range(clips), desc="performing", unit=" clips", leave=False, delay=2, mininterval=1):
        generator = np.random.default_rng([seed, number])
        block = number // len(EVENTS) % 10
        which = "evaluation" if block in (3, 7) else "testing" if block == 5 else "training"
        others = generator.permutation(len(EVENTS))[: generator.choice([0, 1, 2], p=[0.5, 0.35, 0.15])].tolist()
        labels = sorted({number % len(EVENTS), *others})
        name = f"event{number:06d}_0.000_{seconds:.3f}.wav"
        wave = scene(labels, seconds, generator)
        soundfile.write(folder / DCASE_LISTS[which] / f"Y{name}", np.clip(wave, -1, 1), RATE, subtype="PCM_16")
        lines[which] += [f"{name}\t0.000\t{seconds:.3f}\t{EVENTS[label]}" for label in labels]
    for which, rows in lines.items():
        path = folder / f"groundtruth_weak_label_{which}_set.csv"
        path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
