#!/usr/bin/env bash
# torchaudio's AmplitudeToDB cuts a quiet clip at the loudest clip of its batch
#
# Guess: top_db=80 limits each clip to 80 dB below its own peak, so a clip's features do not depend on its neighbours.
# Happens: A batch of mel spectrograms has the shape (clips, mel, time), which is read as (channels, mel, time) of one
#   clip: one peak for the whole batch. A clip 60 dB below its neighbour loses all but its top 20 dB. With a channel
#   axis, (clips, 1, mel, time), each clip has its own peak.
# Matters: Training features depend on the shuffle, and a clip is scored differently alone and in a batch.
# Instead: Add a channel axis before the call, or take logarithms with a fixed floor.
# Versions: torchaudio 2.11.0, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: tasks/audio/harmonic.py takes the logarithm with a fixed floor
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 torchaudio==2.11.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import torch
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

generator = torch.Generator().manual_seed(0)
loud, quiet = torch.randn(16000, generator=generator), 1e-3 * torch.randn(16000, generator=generator)
quiet[8000:] *= 0.01  # its second half 40 dB further down
mel, decibels = MelSpectrogram(16000), AmplitudeToDB(top_db=80)
alone = decibels(mel(quiet))
batch = decibels(mel(torch.stack([loud, quiet])))[1]
channel = decibels(mel(torch.stack([loud, quiet]).unsqueeze(1)))[1, 0]
for name, features in (("alone", alone), ("in a batch", batch), ("in a batch, with a channel axis", channel)):
    print(f"quiet clip {name}: {features.min():.1f} to {features.max():.1f} dB")
saw = {"batch": (batch - alone).abs().max().item() < 1, "with a channel axis": torch.equal(channel, alone)}
expected = {"batch": False, "with a channel axis": True}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
