#!/usr/bin/env bash
# On the CPU torch.manual_seed keeps 32 of 64 bits: seeds 1 and 1 + 2**32 are one stream
#
# Guess: manual_seed accepts 64 bits and initial_seed() returns all of them, so different 64-bit seeds are different
#   streams.
# Happens: The Mersenne Twister is started from the lower 32 bits. Seeds that differ above them give the same numbers,
#   in generators of one's own too; NumPy mixes all bits.
# Matters: Seeds packed as (run << 32) + step or (epoch << 40) + index repeat. Hashed 64-bit seeds collide like 32-bit
#   ones: among 77,000 of them two are probably equal. And CUDA's generator does use all 64 bits.
# Instead: Hash to 32 bits on purpose, and put what must differ into the lower half.
# Versions: torch 2.11.0, numpy 2.4.6, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/tasks/data/test_loader.py: seeds of neighbours differ
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import numpy as np
import torch

LOW, HIGH = 1, 1 + 2**32


def numbers(seed):
    torch.manual_seed(seed)
    return torch.rand(1000)


same = torch.equal(numbers(LOW), numbers(HIGH))
print(f"initial_seed() after seed {HIGH}: {torch.initial_seed()}")
saw = {
    "torch.manual_seed": "same" if same else "different",
    "torch.Generator": "same"
    if torch.equal(*(torch.randperm(1000, generator=torch.Generator().manual_seed(s)) for s in (LOW, HIGH)))
    else "different",
    "numpy": "same" if np.array_equal(*(np.random.default_rng(s).random(1000) for s in (LOW, HIGH))) else "different",
}
print(saw)
expected = {"torch.manual_seed": "same", "torch.Generator": "same", "numpy": "different"}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
