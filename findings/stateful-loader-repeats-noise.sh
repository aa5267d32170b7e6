#!/usr/bin/env bash
# A resumed StatefulDataLoader gives the rest of the epoch the random numbers of its beginning
#
# Guess: The order of the examples and, since the loader keeps a seed in its state, the augmentations go on as without
#   the interruption.
# Happens: The order goes on. The workers start their generators over from the epoch's seed, which is in the state:
#   batch 6 gets the random numbers that batch 0 had, batch 7 those of batch 1, whatever the new process was seeded
#   with.
# Matters: A job that is preempted often trains on the same crops and flips again and again; a resumed run is not the
#   uninterrupted one.
# Instead: Draw augmentations from a generator seeded with (seed, epoch, index of the example).
# Versions: torchdata 0.11.0, torch 2.11.0, Python 3.11.7
# Date: 2026-11-30
# Guard: tests/tasks/data/test_loader.py: order and augmentation follow seed and epoch
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
packages=(torch==2.11.0 numpy==2.4.6 torchdata==0.11.0)
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uv==0.13.9
"$folder/venv/bin/uv" pip install -q --python "$folder/venv/bin/python" "${packages[@]}" ||
  "$folder/venv/bin/pip" install -q "${packages[@]}"
cat >"$folder/finding.py" <<'PY'
import sys

import torch
from torchdata.stateful_dataloader import StatefulDataLoader


class Noisy(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, index):
        return index, torch.rand(()).item()  # stands for a random crop


def loader():
    return StatefulDataLoader(Noisy(), batch_size=4, shuffle=True, num_workers=2)


torch.manual_seed(0)
first, whole = loader(), []
for index, noise in first:
    whole.append((index.tolist(), noise.tolist()))
    if len(whole) == 6:
        state = first.state_dict()
torch.manual_seed(999)  # another process, seeded otherwise
second = loader()
second.load_state_dict(state)
rest = [(index.tolist(), noise.tolist()) for index, noise in second]
for i, (_, noise) in enumerate(rest):
    print(f"batch {6 + i} has the noise of batch {[n for _, n in whole].index(noise)} of the uninterrupted epoch")
saw = {
    "order goes on": [index for index, _ in rest] == [index for index, _ in whole[6:]],
    "noise goes on": [noise for _, noise in rest] == [noise for _, noise in whole[6:]],
    "noise starts over": [noise for _, noise in rest] == [noise for _, noise in whole[:6]],
}
expected = {"order goes on": True, "noise goes on": False, "noise starts over": True}
if saw != expected:
    sys.exit(f"changed: expected {expected}; saw {saw}")
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
