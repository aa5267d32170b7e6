#!/usr/bin/env bash
# AdamW's second moment in bfloat16 only grows: one large gradient shrinks the steps of a weight for good
#
# Guess: Rounding adds noise; 3,000 steps after a spike, with beta2 = 0.999, the second moment is nearly back.
# Happens: It keeps the spike's value to the last bit in all three implementations. A step would lower it by 0.1 %,
#   and bfloat16's neighbours are 0.4 % to 0.8 % apart, so every step rounds back to the same number. Only a gradient
#   large enough can raise it.
# Matters: Weights of a pure bfloat16 network that saw one large gradient, in the warm-up for example, learn at a
#   fraction of the rate for the rest of the run, without any sign in the loss of the others.
# Instead: Keep float32 weights and moments (autocast), use beta2 = 0.99 or less, or an optimizer that rounds
#   stochastically.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: docs/optimizers.md (How a step is computed)
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


def second_moment(dtype, **implementation):
    weight = torch.nn.Parameter(torch.ones(64, dtype=dtype))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, **implementation)
    values = []
    for step in range(3000):
        weight.grad = torch.full_like(weight, 10.0 if step == 100 else 0.1)
        optimizer.step()
        values.append(optimizer.state[weight]["exp_avg_sq"][0].item())
    return values


saw = {}
for name in ("plain", "foreach", "fused"):
    for dtype in (torch.float32, torch.bfloat16):
        implementation = {"foreach": name == "foreach", "fused": name == "fused"}
        values = second_moment(dtype, **implementation)
        print(f"{name}, {dtype}: {values[100]:.5f} after the spike, {values[-1]:.5f} at the end")
        saw[name, str(dtype)] = "unchanged" if values[-1] == values[100] else "decays"
expected = {
    (name, dtype): change
    for name in ("plain", "foreach", "fused")
    for dtype, change in (("torch.float32", "decays"), ("torch.bfloat16", "unchanged"))
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
