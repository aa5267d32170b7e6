#!/usr/bin/env bash
# mse_loss of a DTensor with uneven shards is the mean of the shards' means, and says nothing
#
# Guess: The loss of a sharded tensor is that of the whole tensor, as torch.mean's is, or an error is raised.
# Happens: With seven rows over three processes (3, 3 and 1) F.mse_loss and F.smooth_l1_loss weigh the single row
#   three times as much as the others. The result's placement is Partial(avg). The same formula written with mean() is
#   right: mean() looks for uneven shards first.
# Matters: The last batch of an epoch is rarely a multiple of the processes; loss and gradients are then of another
#   objective.
# Instead: Write (x - y).square().mean(), or use reduction='sum' and divide by the global number of elements.
# Versions: torch 2.11.0 (Gloo), Python 3.11.7
# Date: 2026-11-30
# Guard: none needed: losses are computed on plain tensors
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

LOSSES = {
    "mse_loss": F.mse_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "square().mean()": lambda x, y: (x - y).square().mean(),
}


def process(rank, world, answers):
    dist.init_process_group("gloo", f"file://{os.path.dirname(__file__)}/{world}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    x = torch.arange(7.0).unsqueeze(1).expand(7, 5).contiguous()
    right = {}
    for name, loss in LOSSES.items():
        plain = loss(x, torch.zeros(7, 5)).item()
        shards = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, torch.zeros(7, 5))]
        sharded = loss(*shards).full_tensor().item()
        if rank == 0:
            print(f"{name}: {plain:.4f} of the tensor, {sharded:.4f} of its shards")
        right[name] = abs(plain - sharded) < 1e-4
    if rank == 0:
        answers.put(right)
    dist.destroy_process_group()


answers = torch.multiprocessing.get_context("fork").SimpleQueue()
torch.multiprocessing.start_processes(process, (3, answers), nprocs=3, start_method="fork")
saw = answers.get()
expected = {"mse_loss": False, "smooth_l1_loss": False, "square().mean()": True}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
