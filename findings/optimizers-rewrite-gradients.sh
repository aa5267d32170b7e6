#!/usr/bin/env bash
# Ten optimizers of pytorch_optimizer change .grad in step, so what is read afterwards is not the gradient
#
# Guess: step reads gradients and writes weights, as every optimizer of torch.optim and timm does.
# Happens: Ten of the 111 that take a plain step normalise, clip, centre or decay the gradient in place: after the
#   step .grad holds an intermediate result. Among them are lars, novograd, ranger and the package's two schedule-free
#   optimizers.
# Matters: Gradient norms logged after the step are wrong for these alone, and a comparison of optimizers compares
#   different numbers.
# Instead: Read gradients before the step.
# Versions: pytorch_optimizer 4.1.0, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/adamp/test_optimizers.py: the gradient is never modified
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 pytorch_optimizer==4.1.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import inspect
import sys

import torch
from pytorch_optimizer import get_supported_optimizers, load_optimizer


def rewrites(optimizer_class):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((6, 5), (4, 3))]
    optimizer = optimizer_class(weights)
    for _ in range(20):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        before = [weight.grad.clone() for weight in weights]
        optimizer.step()
        if not all(torch.equal(a, weight.grad) for a, weight in zip(before, weights, strict=True)):
            return True
    return False


def names(classes):
    found, tried = set(), 0
    for name, optimizer_class in classes.items():
        try:
            if rewrites(optimizer_class):
                found.add(name)
            tried += 1
        except Exception:
            continue  # needs a closure, a network, more arguments or another package
    return sorted(found), tried


supported = {n: load_optimizer(n) for n in sorted(set(get_supported_optimizers())) if "bnb" not in n and "torchao" not in n}
own = {n: c for n, c in vars(torch.optim).items() if inspect.isclass(c) and c is not torch.optim.Optimizer}
found, tried = names(supported)
print(f"pytorch_optimizer: {len(found)} of {tried}: {', '.join(found)}")
saw = {"pytorch_optimizer": found, "torch.optim": names(own)[0]}
expected = {
    "pytorch_optimizer": [
        "adalite", "grokfastadamw", "lars", "novograd", "ranger", "schedulefreeadamw", "schedulefreeradam",
        "scionlight", "spectralsphere", "stablespam",
    ],
    "torch.optim": [],
}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
