#!/usr/bin/env bash
# torch.optim.Adafactor cannot step parameters that FSDP shards; AdamW, Muon and nine others can
#
# Guess: Adafactor is in torch for large models, so fully_shard and Adafactor work together.
# Happens: The first step raises: the foreach implementation uses an operation that DTensor has no rule for, and the
#   plain one an in-place power of a partial sum. Rprop raises too. The other dense optimizers of torch.optim step
#   shards.
# Matters: The error comes after the first backward pass of a job that waited for its nodes.
# Instead: Use AdamW, or an Adafactor written for shards; try one step on two CPU processes first.
# Versions: torch 2.11.0 (Gloo), Python 3.11.7
# Date: 2026-11-30
# Guard: tests/adamp/test_dtensor.py: fully sharded networks train as one process
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
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

NAMES = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "ASGD", "Adadelta", "Adagrad", "Muon", "Adafactor", "Rprop")


def step(name, mesh, **options):
    torch.manual_seed(0)
    network = nn.Linear(8, 6, bias=False)
    fully_shard(network, mesh=mesh)
    optimizer = getattr(torch.optim, name)(network.parameters(), **options)
    network(torch.ones(4, 8)).square().sum().backward()
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    return "steps"


def process(rank, world, answers):
    dist.init_process_group("gloo", f"file://{os.path.dirname(__file__)}/{world}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found = {name: step(name, mesh) for name in NAMES}
    found["Adafactor, foreach=True"] = step("Adafactor", mesh, foreach=True)
    if rank == 0:
        answers.put(found)
    dist.destroy_process_group()


answers = torch.multiprocessing.get_context("fork").SimpleQueue()
torch.multiprocessing.start_processes(process, (2, answers), nprocs=2, start_method="fork")
found = answers.get()
for name, result in found.items():
    print(f"{name}: {result}")
saw = sorted(name for name, result in found.items() if result != "steps")
expected = ["Adafactor", "Adafactor, foreach=True", "Rprop"]
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
