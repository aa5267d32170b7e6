#!/usr/bin/env bash
# When the loss scale overflows in the first step, SGD(fused=True) goes on with uninitialised memory as momentum
#
# Guess: GradScaler skips a step with infinite gradients whole: weights and momentum are those before.
# Happens: So it is with foreach, and in later steps with fused. In the first step the fused implementation allocates
#   the momentum buffer, the kernel then sees the overflow and leaves it as it is, and the next step takes what is in
#   it for momentum. Here deterministic mode fills fresh memory with NaN, which makes it visible: the weights are NaN.
#   Without it they are whatever lay there, often zeros, sometimes 1e30.
# Matters: The first steps are where the initial scale of 65,536 overflows; the same seed diverges on one machine and
#   not on another.
# Instead: Use foreach=True with GradScaler, or start with a small init_scale.
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/engine/test_non_finite.py: a refused step leaves memory as it was
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

torch.use_deterministic_algorithms(True)  # torch.empty gives NaN
saw = {}
for name, options in (("foreach", {"foreach": True}), ("fused", {"fused": True})):
    weight = torch.nn.Parameter(torch.ones(4))
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, **options)
    for step in range(2):
        optimizer.zero_grad()
        loss = (weight * 1e38 * 1e3).sum() if step == 0 else weight.sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        print(f"{name}: weight {weight[0].item():.1f} after step {step}, loss scale {scaler.get_scale()}")
    saw[name] = "finite" if weight.isfinite().all() else "not finite"
expected = {"foreach": "finite", "fused": "not finite"}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
