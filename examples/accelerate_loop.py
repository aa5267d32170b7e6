"""accelerate: AdamP and the projection around AdamW, with accumulated gradients, clipping and resuming.

Needs accelerate 1; runs in seconds on a CPU, and in several processes with `accelerate launch`.
"""

import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import adamp


def train(steps: int, *, kind: str = "adamp", resume: str | None = None, save: str | None = None) -> nn.Module:
    """Train up to `steps` batches of 8, two to an update.

    Args:
        steps: Batches in all.
        kind: adamp, or where the projection is attached to AdamW: before_prepare or after_prepare, which are the same.
        resume: Folder of a saved state to go on from.
        save: Folder to save the state in at the end.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    points = torch.randn(64, 6)
    loader = DataLoader(TensorDataset(points, points[:, :3].argmax(1)), batch_size=8)
    accelerator = Accelerator(gradient_accumulation_steps=2, cpu=True)

    if kind == "adamp":
        optimizer = adamp.AdamP(model.parameters(), lr=1e-2, weight_decay=1e-2)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if kind == "before_prepare":
        adamp.project_updates(optimizer)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    if kind == "after_prepare":
        adamp.project_updates(optimizer)  # finds the optimizer inside accelerate's wrapper

    done = 0
    if resume is not None:
        accelerator.load_state(resume)
        done = int(optimizer.state[next(model.parameters())]["step"]) * accelerator.gradient_accumulation_steps
    for inputs, labels in accelerator.skip_first_batches(loader, done):
        if done == steps:
            break
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()  # where gradients only accumulate, neither a step nor hooks
            scheduler.step()
            optimizer.zero_grad()
        done += 1
    if save is not None:
        accelerator.save_state(save)
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        train(4, save=folder)
        train(8, resume=folder)
    train(8, kind="before_prepare")
    print(train(8, kind="after_prepare"))
