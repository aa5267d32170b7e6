#!/usr/bin/env bash
# torchmetrics' R2Score exceeds 1 where the targets lie far from zero
#
# Guess: R2 is at most 1; float32 sums cost its last digits.
# Happens: For targets around 10,000 with standard deviation 1 and errors of 0.5 the metric says anything from 0 to
#   1.03 where 0.75 is right: the total sum of squares is the difference of two sums of squares that agree in eight
#   digits. ExplainedVariance does the same.
# Matters: Years, prices, frequencies in Hz or distances in metres are such targets; the best epoch is chosen by
#   rounding.
# Instead: Subtract a constant near the mean from targets and predictions before the update, or pass float64.
# Versions: torchmetrics 1.9.0, scikit-learn 1.9.1, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: no task regresses
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
from sklearn.metrics import r2_score
from torchmetrics import ExplainedVariance, R2Score

generator = torch.Generator().manual_seed(0)
scores = {"R2Score": [], "ExplainedVariance": [], "centred": [], "scikit-learn": []}
for _ in range(50):
    target = torch.randn(1000, generator=generator) + 10_000
    predicted = target + 0.5 * torch.randn(1000, generator=generator)
    scores["R2Score"].append(R2Score()(predicted, target).item())
    scores["ExplainedVariance"].append(ExplainedVariance()(predicted, target).item())
    scores["centred"].append(R2Score()(predicted - 10_000, target - 10_000).item())
    scores["scikit-learn"].append(r2_score(target, predicted))
for name, values in scores.items():
    print(f"{name}: {min(values):.3f} to {max(values):.3f} over 50 draws")
saw = {name: max(values) > 1 for name, values in scores.items()}
expected = {"R2Score": True, "ExplainedVariance": True, "centred": False, "scikit-learn": False}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
