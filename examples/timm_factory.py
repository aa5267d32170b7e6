"""timm: AdamP from its factory, with decay of the rate by layer, Lookahead and a probe.

Needs timm 1.0.12 or newer; runs in seconds on a CPU.
"""

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

import adamp


def train(steps: int = 4) -> tuple[torch.nn.Module, torch.optim.Optimizer, adamp.NormProbe]:
    """Train a small vision transformer on random images; return it, its optimizer and the probe."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=4
    )
    adamp.register_with_timm()  # timm's names adamp, sgdp, adarem and adarems are this package's from here on
    optimizer = create_optimizer_v2(model, opt="lookahead_adamp", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    # Layer decay is an entry lr_scale of the groups, which timm's schedulers multiply with the rate: nothing else does.
    scheduler = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False, lr_min=1e-5)
    scheduler.step_update(0)
    probe = adamp.NormProbe(model.named_parameters())
    probe.attach(optimizer)  # the hooks go to the optimizer inside Lookahead, which runs none

    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    for step in range(1, steps + 1):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step_update(step)
        print(f"step {step}: loss {loss.item():.3f}")
    return model, optimizer, probe


if __name__ == "__main__":
    _, optimizer, probe = train()
    print(f"mean effective step {probe.read()['effective_step/mean']:.4f}")
    for group in optimizer.param_groups:
        print(f"lr_scale {group['lr_scale']:.2f}, decay {group['weight_decay']}: {len(group['params'])} parameters")
