#!/usr/bin/env bash
# In bfloat16 on the CPU the gradient of a token that occurs 4,096 times is that of 256 occurrences
#
# Guess: A sum of 4,096 ones is 4,096, as sum(), cumsum() and scatter_add_ give in bfloat16: they add in float32.
# Happens: The backward pass of Embedding, of indexing with a repeated index, and index_add_ add one by one in
#   bfloat16. At 256 the next number is 258, and 256 + 1 rounds back: the sum stands still. Whether an operation adds
#   in float32 is not visible from its name.
# Matters: Frequent tokens, the padding class or a hub node learn at a sixteenth of their rate, rare ones at full
#   rate.
# Instead: Keep embeddings in float32 (autocast does), or multiply by a one-hot matrix.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: weights stay float32 under autocast
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

import torch
from torch import nn

COUNT = 4096
index, ones = torch.zeros(COUNT, dtype=torch.long), torch.ones(COUNT, dtype=torch.bfloat16)
embedding = nn.Embedding(4, 1, dtype=torch.bfloat16)
embedding(index).sum().backward()
table = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
table[index].sum().backward()
zero = torch.zeros(1, dtype=torch.bfloat16)
saw = {
    "Embedding backward": embedding.weight.grad[0].item(),
    "indexing backward": table.grad[0].item(),
    "index_add_": zero.clone().index_add_(0, index, ones).item(),
    "scatter_add_": zero.clone().scatter_add_(0, index, ones).item(),
    "cumsum": ones.cumsum(0)[-1].item(),
    "sum": ones.sum().item(),
}
print(saw)
expected = {
    "Embedding backward": 256.0,
    "indexing backward": 256.0,
    "index_add_": 256.0,
    "scatter_add_": 4096.0,
    "cumsum": 4096.0,
    "sum": 4096.0,
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
