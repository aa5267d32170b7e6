#!/usr/bin/env bash
# A second scheduler starts from the new learning rate or from the first scheduler's, depending on its class
#
# Guess: After the first schedule ended and the optimizer's lr was set to 0.01, any new scheduler starts from 0.01.
# Happens: The first scheduler left initial_lr = 0.1 in the optimizer's groups, and a later one does not replace it.
#   StepLR, ExponentialLR and CosineAnnealingLR multiply the rate that they find and start from 0.01; LambdaLR and
#   CosineAnnealingWarmRestarts compute from initial_lr and are back at 0.1. An optimizer's restored state carries
#   initial_lr too.
# Matters: Fine-tuning after a schedule, or a second phase with the same optimizer, runs at ten times the rate that
#   was set.
# Instead: Delete group['initial_lr'] when you set group['lr'], or build a new optimizer for a new phase.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/engine/test_schedules.py: schedules start from each group's own value
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
from torch.optim import lr_scheduler

SECOND = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1.0),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10),
}
saw = {}
for name, scheduler in SECOND.items():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    first = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(10):
        optimizer.step()
        first.step()
    optimizer.param_groups[0]["lr"] = 0.01
    scheduler(optimizer)
    saw[name] = optimizer.param_groups[0]["lr"]
print(saw)
expected = {**dict.fromkeys(SECOND, 0.01), "LambdaLR": 0.1, "CosineAnnealingWarmRestarts": 0.1}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
