#!/usr/bin/env bash
# From three processes on, a run that is resumed under DDP is not the uninterrupted run
#
# Guess: With the same processes, data, weights and momentum, the steps after a checkpoint repeat bit for bit.
# Happens: A second whole run repeats the first bit for bit, but one that is resumed in the middle differs in the last
#   bit of some weights. DDP sums its very first backward pass in buckets in the reversed order of registration, then
#   regroups the buckets in the order in which gradients arrived. An element's place in its bucket decides the order
#   in which Gloo adds the processes' values. A resumed run goes through the first order again. Two processes are
#   safe: a + b = b + a.
# Matters: A test that a resumed run leaves the same bits passes with two processes and says nothing about four;
#   differences grow over an epoch.
# Instead: Build DDP with find_unused_parameters=True, which never regroups (checked here), or run one backward pass
#   before the first step.
# Versions: torch 2.11.0 (Gloo), Python 3.11.7
# Date: 2026-11-30
# Guard: docs/runs.md (Stopping and resuming)
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
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def train(rank, resume, **options):
    """Ten steps; with resume, network, DDP and optimizer are built anew from their states after five."""
    def build():
        torch.manual_seed(0)
        layers = [layer for _ in range(6) for layer in (nn.Linear(37, 37), nn.Tanh())]
        network = nn.Sequential(*layers, nn.Linear(37, 3))
        wrapped = DistributedDataParallel(network, **options)
        return network, wrapped, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)

    network, wrapped, optimizer = build()
    for step in range(10):
        if resume and step == 5:
            weights, state = network.state_dict(), optimizer.state_dict()
            network, wrapped, optimizer = build()
            network.load_state_dict(weights)
            optimizer.load_state_dict(state)
        generator = torch.Generator().manual_seed(100 * step + rank)
        x, y = torch.randn(16, 37, generator=generator), torch.randint(3, (16,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def process(rank, world, answers):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{os.path.dirname(__file__)}/{world}", rank=rank, world_size=world)
    whole, again, resumed = train(rank, False), train(rank, False), train(rank, True)
    fixed = [train(rank, resume, find_unused_parameters=True) for resume in (False, True)]
    if rank == 0:
        print(f"{world} processes: {(whole != resumed).sum().item()} of {len(whole)} weights differ after the resumption")
        answers.put([torch.equal(whole, again), torch.equal(whole, resumed), torch.equal(*fixed)])
    dist.destroy_process_group()


saw = {}
for world in (2, 3):
    answers = torch.multiprocessing.get_context("fork").SimpleQueue()
    torch.multiprocessing.start_processes(process, (world, answers), nprocs=world, start_method="fork")
    saw[world] = dict(zip(("repeated", "resumed", "resumed, never regrouped"), answers.get(), strict=True))
same = {"repeated": True, "resumed": True, "resumed, never regrouped": True}
expected = {2: same, 3: {**same, "resumed": False}}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
TORCH_CPP_LOG_LEVEL=ERROR "$folder/venv/bin/python" -W ignore "$folder/finding.py"
