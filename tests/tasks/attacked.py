"""A small network, a batch and an attack on it."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from tasks.adversarial import pgd_attack


class Net(nn.Module):
    """Convolution, batch norm, dropout, classifier: everything that tells the two modes apart. K = 10."""

    def __init__(self, *, scale=1.0):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8 * 16, 10)
        self.scale = scale

    def forward(self, x):
        x = self.drop(F.relu(self.bn(self.conv(x))))
        return self.scale * self.fc(F.avg_pool2d(x, 2).flatten(1))


def net(**options):
    torch.manual_seed(0)
    return Net(**options)


def batch(num=6, *, size=8, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(num, 3, size, size, generator=generator)
    return images.to(dtype), torch.arange(num) % 10


def attack(network, images, labels, **options):
    return pgd_attack(
        network,
        images,
        labels,
        **{"norm": "linf", "epsilon": 0.1, "steps": 3, "step_size": 0.05, "random_start": False, **options},
    )


def sizes(moved, images, norm):
    """Return each image's perturbation, measured in float64."""
    delta = (moved.double() - images.double()).flatten(1)
    return torch.linalg.vector_norm(delta, ord=math.inf if norm == "linf" else 2, dim=1)
