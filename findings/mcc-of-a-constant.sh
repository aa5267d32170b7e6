#!/usr/bin/env bash
# torchmetrics gives a binary classifier that always says no a Matthews correlation of 0.9985
#
# Guess: A constant prediction carries no information: 0 by convention, as in scikit-learn, or undefined.
# Happens: With one positive among 1,000 the constant 0 scores +0.9985 and the constant 1 scores -0.9985; with half of
#   each class 0. The zero denominator is replaced by a small one, and the formula for that case does not vanish. The
#   three-class metric gives 0 for the same labels.
# Matters: A collapsed network on a rare class looks nearly perfect, and early stopping on this score picks it.
# Instead: Compute it from the confusion matrix, or with scikit-learn; report the number of predicted classes with it.
# Versions: torchmetrics 1.9.0, scikit-learn 1.9.1, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: torchmetrics is not used
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 torchmetrics==1.9.0 scikit-learn==1.9.1)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import torch
from sklearn.metrics import matthews_corrcoef
from torchmetrics.classification import BinaryMatthewsCorrCoef, MulticlassMatthewsCorrCoef

labels = torch.zeros(1000, dtype=torch.long)
labels[0] = 1
never, always = torch.zeros_like(labels), torch.ones_like(labels)
saw = {
    "torchmetrics, always no": round(BinaryMatthewsCorrCoef()(never, labels).item(), 4),
    "torchmetrics, always yes": round(BinaryMatthewsCorrCoef()(always, labels).item(), 4),
    "torchmetrics, three classes": round(MulticlassMatthewsCorrCoef(num_classes=3)(never, labels).item(), 4),
    "scikit-learn": round(float(matthews_corrcoef(labels, never)), 4),
}
print(saw)
expected = {
    "torchmetrics, always no": 0.9985,
    "torchmetrics, always yes": -0.9985,
    "torchmetrics, three classes": 0.0,
    "scikit-learn": 0.0,
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
