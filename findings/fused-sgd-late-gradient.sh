#!/usr/bin/env bash
# SGD(fused=True) with momentum stops with a TypeError when a parameter gets its first gradient later
#
# Guess: fused=True is the same optimizer, faster; a parameter without a gradient is skipped until it has one.
# Happens: The plain and the foreach implementations do that. The fused one makes momentum buffers only if no
#   parameter of the group has one yet, so a layer that is unfrozen, or a branch first used, at step 2 hands None to
#   the kernel. Adam's and AdamW's fused steps are fine.
# Matters: Progressive unfreezing and mixtures of branches stop at the step of the change, hours into a run.
# Instead: Use foreach=True, put late parameters into a group of their own, or give them a zero gradient in the first
#   step.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/adamp/test_optimizers.py: a first gradient may come late
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


def train(optimizer_class, **options):
    used, late = torch.nn.Parameter(torch.ones(5)), torch.nn.Parameter(torch.ones(5))
    optimizer = optimizer_class([used, late], lr=0.1, **options)
    for step in range(3):
        used.grad = torch.ones(5)
        late.grad = torch.ones(5) if step > 0 else None
        try:
            optimizer.step()
        except TypeError as error:
            return f"TypeError: {error}"
    return "trains"


saw = {}
for name, options in (("plain", {"foreach": False}), ("foreach", {"foreach": True}), ("fused", {"fused": True})):
    result = train(torch.optim.SGD, momentum=0.9, **options)
    print(f"SGD {name}: {result}")
    saw[f"SGD {name}"] = result.split(":")[0]
saw["AdamW fused"] = train(torch.optim.AdamW, fused=True)
expected = {"SGD plain": "trains", "SGD foreach": "trains", "SGD fused": "TypeError", "AdamW fused": "trains"}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
