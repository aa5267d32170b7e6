"""PEFT: AdamP on LoRA adapters and on a layer that is trained whole, each by its mark.

Needs peft 0.17 or newer; runs in seconds on a CPU.
"""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn

import adamp


class Network(nn.Module):
    """A perceptron with two layers before norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 32, bias=False)
        self.stem_norm = nn.BatchNorm1d(32)
        self.body = nn.Linear(32, 32, bias=False)
        self.body_norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 8) to (B, 3)."""
        x = F.relu(self.stem_norm(self.stem(x)))
        return self.head(F.relu(self.body_norm(self.body(x))))


def train(steps: int = 4) -> tuple[nn.Module, torch.optim.Optimizer, list[float]]:
    """Adapt the body with LoRA and train the stem whole; return the model, the optimizer and the losses."""
    torch.manual_seed(0)
    model = get_peft_model(Network(), LoraConfig(r=2, target_modules=["body"], modules_to_save=["stem"]))
    inputs = torch.randn(32, 8)
    labels = inputs[:, :3].argmax(1)
    # Before a norm W + B A is scale-invariant as a whole, but not B and A, since W is frozen. Their gradients are small
    # or 0 at first, and 0 counts as orthogonal. So let marks decide and not the test: adapters take AdamW's step.
    # Without layers like the stem it is enough to say scale_invariant=False.
    optimizer = adamp.create("adamp", model, example_batch=inputs, lr=1e-2, weight_decay=1e-2)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()  # parameters without a gradient, here the frozen ones, stay as they are
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, optimizer, losses


if __name__ == "__main__":
    model, optimizer, losses = train()
    print(losses)
    print([(group["scale_invariant"], len(group["params"])) for group in optimizer.param_groups])
    print(sorted(get_peft_model_state_dict(model)))
