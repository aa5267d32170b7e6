#!/usr/bin/env bash
# BatchNorm's running mean in bfloat16 stops a third short of the mean at momentum 0.01
#
# Guess: Statistics in bfloat16 are right to its precision, 0.4 %, as they are with momentum 0.1.
# Happens: For data of mean 3 the running mean stops at 2.03, and with momentum 0.003 at 1.01; more data changes
#   nothing. A step is momentum x the distance still to go, and once that is less than half of the spacing of bfloat16
#   it rounds to nothing. An average of the weights (EMA) in bfloat16 stops for the same reason: with decay 0.999 it
#   does not move at all from 1 to 1.5.
# Matters: Networks whose layers use 0.01, such as torchvision's MobileNetV3, train well in bfloat16 and are wrong in
#   eval mode.
# Instead: Keep BatchNorm's buffers, and averages of weights, in float32 when the network is converted.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: weights, buffers and averages stay float32 under autocast
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

saw = {}
for dtype in (torch.float32, torch.bfloat16):
    for momentum in (0.1, 0.01, 0.003):
        torch.manual_seed(0)
        norm = nn.BatchNorm1d(4, momentum=momentum).to(dtype)
        for _ in range(1500):
            norm(torch.randn(64, 4).mul(2).add(3).to(dtype))
        mean = norm.running_mean.float().mean().item()
        print(f"{dtype}, momentum {momentum}: running mean {mean:.3f} of data with mean 3")
        saw[str(dtype), momentum] = "right" if abs(mean - 3) < 0.15 else "short"
expected = {
    ("torch.float32", 0.1): "right",
    ("torch.float32", 0.01): "right",
    ("torch.float32", 0.003): "right",
    ("torch.bfloat16", 0.1): "right",
    ("torch.bfloat16", 0.01): "short",
    ("torch.bfloat16", 0.003): "short",
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
