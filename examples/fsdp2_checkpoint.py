"""FSDP2: AdamP on sharded weights with marks, saved and resumed through torch's distributed checkpoints.

`torchrun --nproc-per-node 2 examples/fsdp2_checkpoint.py FOLDER`; needs torch alone and runs in seconds on CPUs.
"""

import sys
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import adamp


def train(steps: int, *, save: str | None = None, resume: str | None = None) -> dict[str, torch.Tensor]:
    """Train up to `steps` steps, from a checkpoint if there is one, and return the whole weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 15, bias=False), nn.BatchNorm1d(15), nn.ReLU(), nn.Linear(15, 3))
    marks = adamp.scale_invariant_parameters(model, torch.randn(32, 8))  # before fully_shard
    fully_shard(model[0])
    fully_shard(model)
    optimizer = adamp.AdamP(adamp.mark_groups(model, marks), lr=1e-2, weight_decay=1e-2)  # after it

    done = torch.tensor(0)
    if resume is not None:
        weights, moments = get_state_dict(model, optimizer)  # of the right shapes, to be filled
        state = {"model": weights, "optimizer": moments, "step": done}
        dcp.load(state, checkpoint_id=resume)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    for step in range(int(done), steps):
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())  # a batch of its own per process
        inputs = torch.randn(16, 8, generator=generator)
        F.cross_entropy(model(inputs), inputs[:, :3].argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    if save is not None:
        weights, moments = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": moments, "step": torch.tensor(steps)}, checkpoint_id=save)
    return {name: param.detach().full_tensor() for name, param in model.named_parameters()}


if __name__ == "__main__":
    dist.init_process_group("gloo")
    train(2, save=sys.argv[1])
    resumed, whole = train(4, resume=sys.argv[1]), train(4)
    print("largest difference", max(float((resumed[name] - whole[name]).abs().max()) for name in whole))
    # Gloo's threads still drop the tensors of finished collectives and need the interpreter's lock for it: a process
    # that ends meanwhile is aborted. A short sleep lets them finish.
    dist.barrier()
    time.sleep(0.5)
    dist.destroy_process_group()
