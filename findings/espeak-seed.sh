#!/usr/bin/env bash
# espeak-ng speaks a word four times in one process as four different sounds, seeded before each
#
# Guess: espeak_ng_SetRandSeed fixes the only randomness: the same text, voice and seed are the same samples.
# Happens: The four differ, in length too. A second process gives the same four: what is drawn is seeded, but the
#   synthesiser also keeps a state from word to word, which the seed does not reset. A clip depends on every clip that
#   was spoken before it.
# Matters: A synthetic speech set changes from the first edited word on, and cannot be made by several workers.
# Instead: Speak each clip in a process of its own.
# Versions: espeakng-loader 0.2.4 (espeak-ng), Python 3.11.7
# Date: 2026-11-30
# Guard: docs/audio.md; tests/tasks/audio: a set is the same bytes again
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(espeakng-loader==0.2.4)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import ctypes
import hashlib
import subprocess
import sys

import espeakng_loader


def speak(times):
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    samples = bytearray()

    def collect(wave, count, events):
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0

    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(collect)
    library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(callback)
    library.espeak_SetVoiceByName(b"en")
    text = b"seven hundred"
    for _ in range(times):
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        samples.clear()
        library.espeak_Synth(text, len(text) + 1, 0, 0, 0, 1, None, None)
        library.espeak_Synchronize()
        yield f"{len(samples) // 2} samples {hashlib.sha256(samples).hexdigest()[:8]}"


if len(sys.argv) > 1:
    print(*speak(4), sep="\n")
    sys.exit()
first, second = (subprocess.run([sys.executable, __file__, "4"], capture_output=True, text=True).stdout for _ in range(2))
print(first, end="")
saw = {"different sounds of one word": len(set(first.splitlines())), "a second process": first == second}
expected = {"different sounds of one word": 4, "a second process": True}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
