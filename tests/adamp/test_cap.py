"""The predicted cap of effective steps against optimizers on random tangent gradients, and on a network."""

import math

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from adamp import SGDP, AdamP, NormProbe
from adamp.probes import predicted_cap

STEPS, WINDOW = 3000, 200  # of the schedule; around half-way, averaged
SCHEDULES = {
    "constant": [1.0] * STEPS,
    "cosine": [(1 + math.cos(math.pi * step / STEPS)) / 2 for step in range(STEPS)],
}


def tangent(w, generator, size):
    """Return independent gradients of length size / norm, orthogonal to each row: those of a scale-invariant loss."""
    square = w.square().sum(dim=1, keepdim=True)
    direction = torch.randn(w.shape, generator=generator, dtype=w.dtype)
    direction = direction - w * ((w * direction).sum(dim=1, keepdim=True) / square)
    return direction * (size / square.sqrt() / direction.norm(dim=1, keepdim=True))


def directions(w):
    return w / w.norm(dim=1, keepdim=True)


def measured(make, schedule):
    """Return the root mean square effective step half-way, at rates 1, 2 and 4 times the smallest, (3,)."""
    generator = torch.Generator().manual_seed(8)
    size = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64).repeat_interleave(8)[:, None]
    weight = nn.Parameter(directions(torch.randn(24, 100, generator=generator, dtype=torch.float64)))
    optimizer = make([weight])
    lr, squares = optimizer.param_groups[0]["lr"], 0.0
    for step, factor in enumerate(schedule[: (STEPS + WINDOW) // 2]):
        before = weight.detach().clone()
        weight.grad = size * tangent(before, generator, 1.0)
        optimizer.param_groups[0]["lr"] = lr * factor
        optimizer.step()
        if step >= (STEPS - WINDOW) // 2:
            squares = squares + (directions(weight.detach()) - directions(before)).square().sum(dim=1)
    return (squares / WINDOW).view(3, 8).mean(dim=1).sqrt()


def sgd(momentum, **options):
    # A gradient moves the weight by lr / (1 - momentum) of its length in all
    return lambda params: SGD(params, lr=1 - momentum, momentum=momentum, foreach=False, **options)


@pytest.mark.parametrize(
    ("make", "schedule", "options", "tolerance"),
    [
        (sgd(0.0), "cosine", {"momentum": 0.0}, 0.05),
        (sgd(0.9), "constant", {"momentum": 0.9}, 0.05),
        (sgd(0.9), "cosine", {"momentum": 0.9}, 0.05),
        (sgd(0.95), "cosine", {"momentum": 0.95}, 0.08),
        (lambda p: SGD(p, lr=0.005, momentum=0.99, foreach=False), "constant", {"momentum": 0.99}, 0.15),
        (sgd(0.9, nesterov=True), "cosine", {"momentum": 0.9, "nesterov": True}, 0.05),
        (lambda p: SGDP(p, lr=0.4, momentum=0.9), "cosine", {"momentum": 0.0}, 0.1),
        # Squared gradients are remembered for 100 steps; at Adam's 1,000 their shrinking would show.
        (lambda p: AdamW(p, lr=0.03, betas=(0.9, 0.99), weight_decay=0, foreach=False), "constant",
         {"momentum": 0.9, "adaptive": True}, 0.12),
        (lambda p: AdamP(p, lr=0.03, betas=(0.9, 0.99)), "constant", {"momentum": 0.0, "adaptive": True}, 0.1),
    ],
    ids=["sgd-0", "sgd-constant", "sgd", "sgd-0.95", "sgd-0.99", "nesterov", "sgdp", "adamw", "adamp"],
)  # fmt: skip
def test_effective_steps_reach_the_cap_whatever_the_rate(make, schedule, options, tolerance):
    cap = predicted_cap(SCHEDULES[schedule], **options)[STEPS // 2]
    assert (measured(make, SCHEDULES[schedule]) / cap - 1).abs().max() < tolerance


@pytest.mark.parametrize("lr", [0.2, 0.8])
def test_a_network_without_decay_keeps_its_steps_at_the_cap(lr):
    torch.manual_seed(0)
    teacher = torch.randn(16, 10)
    layers = [module for _ in range(2) for module in (nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU())]
    network = nn.Sequential(*layers, nn.Linear(16, 10).requires_grad_(False))  # its scale would change the gradients'
    optimizer = SGD([p for p in network.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    probe = NormProbe([(name, p) for name, p in network.named_parameters() if p.shape == (16, 16)], every=1)
    steps = 800
    with probe.attach(optimizer):
        for step in range(steps):
            x = torch.randn(64, 16)
            labels = (x @ teacher + 3 * torch.randn(64, 10)).argmax(dim=1)  # noise: gradients that do not fade
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), labels).backward()
            optimizer.step()
            if step == steps - 201:
                probe.read()
    cap = predicted_cap([lr] * steps)[steps - 100]
    assert probe.read()["effective_step/mean"] == pytest.approx(cap, rel=0.2)


def test_half_way_through_4000_cosine_steps_the_caps_are_those_in_closed_form():
    cosine = [(1 + math.cos(math.pi * step / 4000)) / 2 for step in range(4000)]
    # The sum of squares to half-way is 4000 (3/16 + 1/(2π)), less than a step off
    expected = 0.5 * math.sqrt(0.1 / 1.9) / math.sqrt(2 * 4000 * (3 / 16 + 1 / (2 * math.pi)))
    assert predicted_cap(cosine)[2000] == pytest.approx(expected, rel=1e-3)
    assert predicted_cap(cosine)[2000] == pytest.approx(0.0022, abs=5e-5)
    ratio = predicted_cap(cosine, 0.0)[2000] / predicted_cap(cosine)[2000]
    assert ratio == pytest.approx(math.sqrt(19))


def test_the_unit_of_the_schedule_does_not_matter_and_a_warm_up_from_zero_begins_at_zero():
    assert predicted_cap([0.0, 0.2, 0.4]) == pytest.approx(predicted_cap([0.0, 1.0, 2.0]))
    assert predicted_cap([0.0, 1.0])[0] == 0.0
    assert predicted_cap([1.0], 0.0, adaptive=True) == [1.0]


@pytest.mark.parametrize(
    ("schedule", "momentum", "value"),
    [
        ([1.0], 1.0, "momentum=1.0"),
        ([1.0], -0.1, "momentum=-0.1"),
        ([1.0, -1.0], 0.9, "-1.0"),
        ([math.nan], 0.9, "nan"),
    ],
)
def test_a_value_out_of_range_is_named(schedule, momentum, value):
    with pytest.raises(ValueError, match=value):
        predicted_cap(schedule, momentum)
