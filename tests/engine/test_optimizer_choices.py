"""Every opt=NAME: built as the engine builds it from its configuration, trained, saved and put back."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import hydra
import pytest
import pytorch_optimizer
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.optim import Optimizer

import launch.compose  # noqa: F401  registers the schema of train.*
from tasks.engine.group_overrides import convert_networks, expand_overrides, normalised_parameters
from tasks.engine.optim import build_optimizer, parameter_groups

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "opt").glob("*.yaml"))


@pytest.fixture(scope="module", params=NAMES)
def chosen(request: pytest.FixtureRequest) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"opt={request.param}"])


def made(cfg: Any) -> tuple[nn.Module, Optimizer]:
    """Return a small convolutional network and its optimizer, as a run makes them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    networks = {"model": model}
    convert_networks(networks, cfg.normalise)
    having = {"scale_invariant": {"model": ["0.weight", "3.weight"]}, "normalised": normalised_parameters(networks)}
    rules = expand_overrides([], cfg.marks, networks=networks, params_by_property=having)
    factory = hydra.utils.instantiate(cfg.opt, _convert_="all")
    return model, build_optimizer(factory, parameter_groups("model", model, rules))


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> float:
    """Train on one batch and return the loss before the last step."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 2, 6, 6, generator=generator), torch.randint(3, (24,), generator=generator)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float(loss.detach())


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_it_learns_a_batch_at_its_own_rate(chosen: Any) -> None:
    model, optimizer = made(chosen)
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 40) < 0.9 * first


def test_put_back_from_a_checkpoint_it_goes_on_bit_for_bit(chosen: Any) -> None:
    model, optimizer = made(chosen)
    train(model, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, other = made(chosen)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(copy.deepcopy(saved["optimizer"]))
    train(model, optimizer, 3)
    train(twin, other, 3)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(twin), strict=True))


def test_frozen_parameters_stay(chosen: Any) -> None:
    model, optimizer = made(chosen)
    before = weights(model)
    for parameter in list(model.parameters())[:3]:
        parameter.requires_grad_(False)
    train(model, optimizer, 3)
    same = [torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert same == [True] * 3 + [False] * 5


@pytest.mark.parametrize("foreach", [False, True])
def test_the_librarys_adabound_is_the_papers(foreach: bool) -> None:
    # arXiv:1902.09843, Algorithm 2, with the bias corrections and bounds of its authors' code, and decoupled decay.
    generator = torch.Generator().manual_seed(0)
    p = nn.Parameter(torch.randn(4, 5, generator=generator, dtype=torch.float64))
    w = p.detach().clone()
    lr, final_lr, gamma, weight_decay, eps = 1e-2, 0.1, 1e-1, 0.3, 1e-8
    optimizer = pytorch_optimizer.AdaBound(
        [p], lr=lr, final_lr=final_lr, gamma=gamma, weight_decay=weight_decay, eps=eps, foreach=foreach
    )
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 8):
        p.grad = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * p.grad, 0.999 * v + 0.001 * p.grad**2
        lower, upper = final_lr * (1 - 1 / (gamma * t + 1)), final_lr * (1 + 1 / (gamma * t))
        rate = lr * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) / (v.sqrt() + eps)
        w = (1 - lr * weight_decay) * w - rate.clamp(lower, upper) * m
        optimizer.step()
        torch.testing.assert_close(p.detach(), w, rtol=0, atol=1e-11)
