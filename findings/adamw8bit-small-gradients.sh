#!/usr/bin/env bash
# torchao's 8-bit AdamW moves weights with small gradients by thousands of learning rates
#
# Guess: Blockwise 8-bit moments cost a little precision; after 100 steps no weight has moved by more than about 100
#   learning rates.
# Happens: In a block of 256 weights whose gradients span 1 to 1e-5, some weights move by more than 10,000 learning
#   rates. A gradient of 1e-4 of the block's largest has a square of 1e-8 of the largest: the second moment rounds to
#   0, the first does not, and m / (sqrt(0) + 1e-8) is huge. A block is 256 neighbours in memory, so one row of an
#   embedding or one large bias is enough.
# Matters: The run does not diverge at once; a few weights are thrown far away and look like bad luck.
# Instead: Keep 32-bit moments where gradients span orders of magnitude (embeddings, heads), or raise eps to the size
#   of such gradients.
# Versions: torchao 0.18.0, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: no low-bit optimizer is used
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 torchao==0.18.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import torch
from torchao.optim import AdamW8bit

LR, STEPS = 1e-3, 100
scale = torch.tensor([1.0] + [1e-1] * 50 + [1e-2] * 50 + [1e-3] * 50 + [1e-4] * 50 + [1e-5] * 55).repeat(32)


def train(optimizer_class):
    weight = torch.nn.Parameter(torch.zeros_like(scale))
    optimizer = optimizer_class([weight], lr=LR, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        weight.grad = scale * (1 + 0.5 * torch.randn(scale.shape, generator=generator))
        optimizer.step()
    return weight.detach().abs() / LR


furthest = {}
for optimizer_class in (torch.optim.AdamW, AdamW8bit):
    moved = train(optimizer_class)
    furthest[optimizer_class.__name__] = moved.max().item()
    means = {f"{value:.0e}": round(moved[scale == value].mean().item()) for value in scale.unique().tolist()}
    print(f"{optimizer_class.__name__}: learning rates moved, by size of the gradient {means}; furthest {moved.max():.0f}")
saw = {"AdamW within 110": furthest["AdamW"] < 110, "AdamW8bit within 1000": furthest["AdamW8bit"] < 1000}
expected = {"AdamW within 110": True, "AdamW8bit within 1000": False}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
TORCHDYNAMO_DISABLE=1 "$folder/venv/bin/python" -W ignore "$folder/finding.py"
