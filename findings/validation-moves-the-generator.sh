#!/usr/bin/env bash
# Reading an unshuffled DataLoader without workers moves the global generator: validation changes training
#
# Guess: A loader with shuffle=False and num_workers=0 uses no random number, so validating more or less often changes
#   no weight.
# Happens: Every iterator draws a seed for workers that it does not have, from the global generator. Dropout masks of
#   the next step are others, and so are the weights at the end.
# Matters: Runs that differ only in how often they validate cannot be compared bit for bit; the noise looks like an
#   effect.
# Instead: Give each loader a generator of its own: DataLoader(..., generator=torch.Generator()).
# Versions: torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/tasks/data/test_loader.py: no global generator moves
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
from torch.utils.data import DataLoader, TensorDataset


def train(loader=None):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.ones(4, 8)).square().mean().backward()
        optimizer.step()
        if loader is not None:
            network.eval()
            with torch.no_grad():
                for (x,) in loader:
                    network(x)
            network.train()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


data = TensorDataset(torch.ones(10, 8))
never, often = train(), train(DataLoader(data, shuffle=False, num_workers=0))
apart = train(DataLoader(data, shuffle=False, num_workers=0, generator=torch.Generator()))
print(f"largest difference of a weight: {(never - often).abs().max():.3f}; with a generator {(never - apart).abs().max()}")
saw = {"same weights": torch.equal(never, often), "with a generator": torch.equal(never, apart)}
expected = {"same weights": False, "with a generator": True}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
