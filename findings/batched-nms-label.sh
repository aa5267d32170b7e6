#!/usr/bin/env bash
# torchvision's batched_nms decides otherwise about the same boxes when their label is a large number
#
# Guess: Labels only separate the classes: one scene with all boxes of class 1,200 keeps the boxes that nms keeps.
# Happens: Up to 1,000 boxes on the CPU the classes are kept apart by shifting every box by label x (largest
#   coordinate + 1). At class 1,200 of a picture of 1,333 pixels the shift is 1.6 million, where float32 has steps of
#   1/8 pixel: small boxes change their size and their overlap. The first classes are not affected, and neither are
#   more than 1,000 boxes, which are handled class by class.
# Matters: With LVIS's 1,203 classes the score of a class depends on its number, and on how many other boxes the
#   picture has.
# Instead: Call nms for each class, give labels by their rank among the classes present, or shift in float64.
# Versions: torchvision 0.26.0, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: 80 classes at 512 pixels, where a step is 1/256 pixel
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 torchvision==0.26.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import torch
from torchvision.ops import batched_nms, nms

generator = torch.Generator().manual_seed(0)
other = dict.fromkeys((0, 80, 1200), 0)
for _ in range(50):
    corner = (torch.rand(40, 2, generator=generator) * 1300).repeat(5, 1) + torch.rand(200, 2, generator=generator) * 3
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=generator) * 8 + 4], dim=1)
    scores = torch.rand(200, generator=generator)
    right = set(nms(boxes, scores, 0.5).tolist())
    for label in other:
        kept = set(batched_nms(boxes, scores, torch.full((200,), label), 0.5).tolist())
        other[label] += len(kept ^ right)
for label, count in other.items():
    print(f"all boxes of class {label}: {count} of 10,000 decisions differ from nms")
saw = {label: "as nms" if count < 20 else "not as nms" for label, count in other.items()}
expected = {0: "as nms", 80: "as nms", 1200: "not as nms"}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
