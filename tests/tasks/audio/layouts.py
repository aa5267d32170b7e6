"""Tiny sets in the official layouts: tones whose harmonics depend on the class, so that each can be learned."""

from pathlib import Path

import numpy as np
import soundfile

from tasks.audio.official import DCASE_LISTS

RATE = 16_000


def tone(number: int, seconds: float, *, rate: int = RATE) -> np.ndarray:
    """A note (N,) of a pitch and brightness of its own."""
    time = np.arange(int(rate * seconds)) / rate
    wave = sum(np.sin(2 * np.pi * 220 * (1 + 0.5 * number) * n * time) / n ** (1 + number % 3) for n in (1, 2, 3))
    noise = 0.01 * np.random.default_rng(number).standard_normal(len(time))
    return 0.3 * wave + noise


def write(path: Path, wave: np.ndarray, *, rate: int = RATE, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)


def speech_commands(base: Path, *, words=("yes", "no", "up"), each: int = 8) -> Path:
    """Three words, both lists, one short clip, one folder of background noise; returns the folder with the lists."""
    root = base / "SpeechCommands" / "speech_commands_v0.02"
    lists = {"validation_list.txt": [], "testing_list.txt": []}
    for number, word in enumerate(words):
        for i in range(each):
            name = f"{word}/{i:08x}_nohash_0.wav"
            write(root / name, tone(number, 0.3 if i == 0 else 0.9 + 0.01 * i))
            if i == each - 2:
                lists["validation_list.txt"].append(name)
            elif i == each - 1:
                lists["testing_list.txt"].append(name)
    write(root / "_background_noise_" / "hum.wav", tone(7, 2.0))
    for file, names in lists.items():
        (root / file).write_text("\n".join(names) + "\n")
    return root


def fsdd(base: Path, *, speakers=("anna", "theo", "yweweler"), each: int = 2, rate: int = 8_000) -> Path:
    """Ten digits by each speaker; returns the folder around recordings/."""
    root = base / "free-spoken-digit-dataset"
    for digit in range(10):
        for number, speaker in enumerate(speakers):
            for i in range(each):
                write(
                    root / "recordings" / f"{digit}_{speaker}_{i}.wav",
                    tone(digit + number, 0.3 + 0.1 * i, rate=rate),
                    rate=rate,
                )
    return root


def mtat(base: Path, *, seconds: float = 1.0, tags: int = 188, clips: int = 32) -> Path:
    """Clips over all sixteen folders, every eighth without a frequent tag, one empty file."""
    root = base / "mtat"
    names = [f"tag {i:03d}" for i in range(tags)]
    lines = ["\t".join(f'"{name}"' for name in ["clip_id", *names, "mp3_path"])]
    for i in range(clips):
        marks = np.zeros(tags, int)
        if i % 8 == 7:
            marks[tags - 1] = 1 if i == 7 else 0
        else:
            marks[i % 3] = marks[3 + i % 2] = 1
        path = f"{i % 16:x}/clip-{i:03d}.mp3"
        if i == 1:
            (root / "mp3" / "1").mkdir(parents=True, exist_ok=True)
            (root / "mp3" / path).write_bytes(b"")
        else:
            write(root / "mp3" / path, tone(i % 3, seconds), format="MP3")
        lines.append("\t".join(f'"{value}"' for value in [i, *marks, path]))
    (root / "annotations_final.csv").write_text("\n".join(lines) + "\n")
    return root


DCASE_ROWS = {
    "training": [
        *((f"train{i:02d}", "Train") for i in range(8)),
        *((f"horn{i:02d}", "Air horn, truck horn") for i in range(8)),
        ("both", "Train"),
        ("both", "Bicycle"),
        ("shared", "Car"),
        ("leaked", "Car"),
    ],
    "testing": [("shared", "Bus"), ("bus00", "Bus"), ("bus01", "Bus")],
    "evaluation": [("eval00", "Train"), ("eval01", "Air horn, truck horn"), ("leaked", "Car")],
}


def dcase(base: Path, *, seconds: float = 1.0, rate: int = RATE) -> Path:
    """A clip of two labels, a label with a comma, a clip in two lists, one in training and evaluation; four tones."""
    root = base / "dcase" / "raw"
    kinds = {"Train": 0, "Air horn, truck horn": 1, "Bus": 2, "Car": 3, "Bicycle": 0}
    for which, rows in DCASE_ROWS.items():
        lines = []
        for stem, label in rows:
            name = f"{stem}_30.000_40.000.wav"
            write(root / DCASE_LISTS[which] / f"Y{name}", tone(kinds[label], seconds, rate=rate), rate=rate)
            lines.append(f"{name}\t30.000\t40.000\t{label}")
        (root / f"groundtruth_weak_label_{which}_set.csv").write_text("\n".join(lines) + "\n")
    return root
