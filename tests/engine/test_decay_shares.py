"""What a step's decay takes off a weight, in the units of all optimizers, against a measurement on weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import Optimizer

import adamp
from tasks.engine.optim import rate_and_decay

LR, DECAY, ON = 0.1, 0.01, {"scale_invariant": True}


def shrunk(make: Callable[..., Optimizer], *, steps: int = 400) -> float:
    """Return the share that one step takes off a weight in the long run, the gradient being next to nothing."""
    weight = torch.nn.Parameter(torch.ones(1, 2, dtype=torch.float64))
    optimizer = make([weight])
    before = weight.detach().clone()
    for _ in range(steps):
        weight.grad = torch.full((1, 2), 1e-9, dtype=torch.float64)
        before = weight.detach().clone()
        optimizer.step()
    return float(1 - (weight.detach() / before).mean())


CASES: dict[str, tuple[Callable[..., Optimizer], str]] = {
    "sgd": (lambda p: torch.optim.SGD(p, LR, momentum=0.5, weight_decay=DECAY), "other"),
    "sgdp": (lambda p: adamp.SGDP(p, LR, momentum=0.5, weight_decay=DECAY, scale_invariant=False), "other"),
    "sgdp projected": (
        lambda p: adamp.SGDP(p, LR, momentum=0.5, weight_decay=DECAY, scale_invariant=True),
        "projected",
    ),
    "adamw": (lambda p: torch.optim.AdamW(p, LR, weight_decay=DECAY, eps=1e3), "other"),
    "adamp": (lambda p: adamp.AdamP(p, LR, weight_decay=DECAY, eps=1e3, scale_invariant=False), "other"),
    "adamp projected": (lambda p: adamp.AdamP(p, LR, weight_decay=DECAY, eps=1e3, **ON), "projected"),
    "nadam": (lambda p: torch.optim.NAdam(p, LR, weight_decay=DECAY, eps=1e3, decoupled_weight_decay=True), "other"),
    "adarem": (lambda p: adamp.AdaRem(p, LR, weight_decay=DECAY), "other"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_logged_share_is_what_weights_lose(name: str) -> None:
    make, kind = CASES[name]
    _, shares = rate_and_decay(make([torch.nn.Parameter(torch.ones(1, 2))]))
    # SGD's momentum settles on a little more than the limit of small rates.
    assert shares[f"decay/{kind}"] == pytest.approx(shrunk(make), rel=5e-3)


def test_projected_weights_lose_wd_ratio_of_it() -> None:
    _, shares = rate_and_decay(adamp.SGDP([torch.nn.Parameter(torch.ones(1, 2))], 0.1, momentum=0.9, weight_decay=1e-4))
    assert shares["decay/other"] == pytest.approx(1e-4)  # lr x weight_decay / (1 - momentum)
    assert shares["decay/projected"] == pytest.approx(1e-5)
    assert shares["weight_decay_step"] == pytest.approx(1e-5)


def test_the_papers_decays_are_those_of_its_captions_in_these_units() -> None:
    weight = [torch.nn.Parameter(torch.ones(1, 2))]
    made = {
        "adamw": torch.optim.AdamW(weight, 1e-3, weight_decay=0.1),
        "adamp": adamp.AdamP(weight, 1e-3, weight_decay=1e-2),
    }
    shares = {name: rate_and_decay(optimizer)[1]["decay/projected"] for name, optimizer in made.items()}
    assert shares == {"adamw": pytest.approx(1e-4), "adamp": pytest.approx(1e-6)}


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop])
def test_a_decay_that_is_rescaled_with_the_gradient_has_no_share(make: Callable[..., Optimizer]) -> None:
    _, shares = rate_and_decay(make([torch.nn.Parameter(torch.ones(1, 2))], lr=1e-3, weight_decay=1e-4))
    assert set(shares) == {"weight_decay_step"}
