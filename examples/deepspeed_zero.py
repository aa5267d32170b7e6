"""DeepSpeed: AdamP keeps its rows at stage 0 of ZeRO; from stage 1 on it warns that nothing is projected.

`torchrun --nproc-per-node 1 examples/deepspeed_zero.py`, or `deepspeed` in the place of torchrun; on a CPU with
DS_ACCELERATOR=cpu. The first run compiles for a minute.
"""

import deepspeed
import torch
import torch.nn.functional as F
from torch import nn

import adamp


def train(stage: int, steps: int = 2) -> list[tuple[int, ...]]:
    """Train a perceptron and return the shapes that the optimizer has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = adamp.AdamP(model.parameters(), lr=1e-2, weight_decay=1e-2)
    config = {
        "train_micro_batch_size_per_gpu": 8,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,  # of every optimizer that is not DeepSpeed's own
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    inputs = torch.randn(8, 8, device=engine.device)
    labels = inputs[:, :3].argmax(1)
    for _ in range(steps):
        engine.backward(F.cross_entropy(engine(inputs), labels))
        engine.step()
    return [tuple(param.shape) for group in optimizer.param_groups for param in group["params"]]


if __name__ == "__main__":
    for stage in (0, 1, 2):
        print(f"stage {stage}: {train(stage)}")
